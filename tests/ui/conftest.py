"""A page's server as the command starts it, and Chromium without a window."""

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from chromium import chromium


@pytest.fixture(scope="session")
def address() -> Iterator[str]:
    """Of a server that runs as long as the tests do."""
    command = [sys.executable, "-m", "isoflop", "ui", "--port", "0", "--no-open"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    line = server.stderr.readline()
    assert "http://127.0.0.1:" in line, line
    yield line.split()[2]
    server.terminate()
    rest = server.stderr.read()
    server.stderr.close()
    assert server.wait(timeout=20) in (0, -15)
    assert "Traceback" not in rest, rest


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page; afterwards nothing may have been complained of."""
    from page import Page

    opened = Page(browser, address)
    yield opened
    assert opened.complaints() == []
