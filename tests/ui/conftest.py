"""A page's server as the command starts it, and Chromium without a window."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")


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
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the extra `test`)")
    from page import FLAGS

    if not (CHROMIUM.exists() and DRIVER.exists()):
        pytest.skip(f"no browser: {CHROMIUM} and {DRIVER} are not both here (Debian: chromium, chromium-driver)")
    profile = tmp_path_factory.mktemp("profile")
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(DRIVER)))
    yield driver
    driver.quit()
    shutil.rmtree(profile, ignore_errors=True)


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    """The page; afterwards nothing may have been complained of."""
    from page import Page

    opened = Page(browser, address)
    yield opened
    assert opened.complaints() == []
