"""The device at hand, as `isoflop calibrate` measured it: a file that a person can open."""

import os
from pathlib import Path

import msgspec

from isoflop.architecture import Decoder
from isoflop.cost.belief import Belief
from isoflop.cost.layout import Layout
from isoflop.cost.quantity import Quantity
from isoflop.cost.step_time import Ideal, ideal_step
from isoflop.cost.training import novelty
from isoflop.cost.work import work_of
from isoflop.hardware import Accelerator

FILE = "device.json"
TIMING = "timing.json"  # in a study's folder: see `Timing`
# What torch.compile gains on small models on a CPU, and its log deviation (docs/decisions.md): steps are timed eager.
COMPILED_SPEEDUP, COMPILED_DEVIATION = 1.3, 0.15


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What was measured: rates of the device; what is believed of its efficiencies, shared with other work as it was,
    and `alone`; on how many threads, with which torch, when; and every single measurement, its unit in its name."""

    hardware: Accelerator
    belief: Belief
    alone: Belief
    threads: int
    torch: str
    date: str
    measurements: dict[str, float]


class Timing(msgspec.Struct, frozen=True):
    """What a calibration, of a device and a date, expected of the runs of a study that it knows about: `tokens_per_s`
    by run."""

    device: str
    calibrated: str
    tokens_per_s: dict[str, Quantity]


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


def run_ideal(found: Calibration, decoder: Decoder, context: int, batch: int, precision: str) -> Ideal:
    """A step of a run of ours, at the rates of the device."""
    return ideal_step(work_of(decoder, context), found.hardware, Layout(shard="none", micro_batch=batch), precision)


def run_rate(
    found: Calibration, decoder: Decoder, context: int, batch: int, precision: str, compiled: bool
) -> Quantity:
    """Tokens a second of a run of ours on the device, one of those that share it: `batch` sequences of `context`."""
    ideal = run_ideal(found, decoder, context, batch, precision)
    seconds = found.belief.seconds(ideal, novelty(decoder) + (COMPILED_DEVIATION if compiled else 0.0))
    return seconds.inverse(batch * context * (COMPILED_SPEEDUP if compiled else 1.0))


def this_device() -> tuple[Accelerator, Belief]:
    """The device at hand and what is believed of it."""
    found = read_calibration()
    return found.hardware, found.belief
