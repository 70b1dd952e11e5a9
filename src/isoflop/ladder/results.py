"""A finished run's result on disk: written once, atomically, with its digest, and believed from then on."""

import hashlib
from pathlib import Path
from typing import Literal

import msgspec

from isoflop.atomic import write_atomically


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a run reached. `wall_s` is the training time of its share of the trunk and its decay. `loss_exit`: on the
    held-out tokens, of the early exit that was trained, if any was."""

    run: str
    status: Literal["done", "diverged"]
    reason: str | None
    loss_train: float | None
    loss_valid: float | None
    bits_per_byte: float | None
    unique_tokens: int
    wall_s: float
    router_load: list[list[float]]
    loss_exit: float | None = None


def result_path(folder: Path, run: str) -> Path:
    return folder / "runs" / f"{run}.json"


def write_result(folder: Path, result: Result) -> None:
    """Write a finished run's result. Raises OSError (disk full, no permission)."""
    path = result_path(folder, result.run)
    path.parent.mkdir(exist_ok=True)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(_Record(result, _digest(result)))))


def read_result(folder: Path, run: str) -> Result | None:
    """A finished run's result; None where it is not finished or its file is not what was written."""
    try:
        record = msgspec.json.decode(result_path(folder, run).read_bytes(), type=_Record)
    except (FileNotFoundError, msgspec.DecodeError):
        return None
    return record.result if record.result.run == run and record.sha256 == _digest(record.result) else None


class _Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    result: Result
    sha256: str


def _digest(result: Result) -> str:
    return hashlib.sha256(msgspec.json.encode(result)).hexdigest()
