"""A small saved model, to be damaged."""

import shutil
from pathlib import Path

import pytest
from oracle import filled, saved


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama of two to four layers with biases, untied, in one file."""
    return saved(filled("llama", 0), tmp_path_factory.mktemp("pristine") / "model")


@pytest.fixture
def model_folder(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(pristine, tmp_path / "model"))
