"""The device at hand, as `isoflop calibrate` measured it: a file that a person can open."""

import os
from pathlib import Path

import msgspec

from isoflop.cost.belief import Belief
from isoflop.hardware import Accelerator

FILE = "device.json"


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured: rates of the device, what is believed of its efficiencies, on how many threads, with which
    torch, when, and every single measurement by name (seconds, or the unit in its name)."""

    hardware: Accelerator
    belief: Belief
    threads: int
    torch: str
    date: str
    measurements: dict[str, float]


def calibration_path() -> Path:
    """Where the calibration lies: isoflop/device.json in the user's configuration folder."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "isoflop" / FILE


def read_calibration(path: Path | None = None) -> Calibration:
    """The calibration of this machine. Raises ValueError where there is none, or none that can be read."""
    path = calibration_path() if path is None else path
    if not path.exists():
        raise ValueError(
            f"hardware 'this' is not known yet: {path} is absent; `isoflop calibrate` makes it in a minute"
        )
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except msgspec.DecodeError as error:
        raise ValueError(f"{path}: {error}; `isoflop calibrate` makes it anew") from None


def this_device() -> tuple[Accelerator, Belief]:
    """The device at hand and what is believed of it."""
    found = read_calibration()
    return found.hardware, found.belief
