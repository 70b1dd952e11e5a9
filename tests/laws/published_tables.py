"""Tables that others published, kept beside the project."""

import csv
from pathlib import Path

import numpy as np
import pytest

DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "runs"


def published(*parts: str) -> Path:
    """A table kept beside the project; skips where it is absent."""
    path = DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent: published tables are kept beside the project")
    return path


def columns_of(path: Path) -> dict[str, list[str]]:
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return {name: [row[name] for row in rows] for name in rows[0]}


def numbers(columns: dict[str, list[str]], *names: str) -> list[np.ndarray]:
    return [np.array(columns[name], float) for name in names]
