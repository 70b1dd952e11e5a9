"""One checkpoint and one server for all tests that do not end it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import Served, serving, write_checkpoint


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("served") / "tiny")


@pytest.fixture(scope="session")
def server(checkpoint: Path) -> Iterator[Served]:
    with serving(checkpoint, "--memory", "16M", "--body", "256K", "--body-s", "1", "--queue", "32") as served:
        yield served
        assert served.held() == 0
        assert served.end() == 0
