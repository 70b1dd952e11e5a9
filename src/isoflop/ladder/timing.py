"""How fast each run should go, as this machine's calibration says, written down before the runs start."""

from pathlib import Path

import msgspec

from isoflop.atomic import write_atomically
from isoflop.cost.quantity import Quantity
from isoflop.cost.this_device import TIMING, Calibration, Timing, calibration_path, read_calibration, run_rate
from isoflop.ladder.plan import Job, Plan


def expect(plan: Plan, folder: Path) -> None:
    """Write what is expected of the plan's runs, if this machine was calibrated and nothing was written before. No
    study stops for a calibration that cannot be read: `isoflop cost --hardware this` says what is wrong with it."""
    path = folder / TIMING
    if path.exists() or not calibration_path().exists():
        return
    try:
        found = read_calibration()
    except ValueError:
        return
    rates = {run.run: rate for job in plan.jobs if (rate := _rate(found, job)) is not None for run in job.runs}
    if rates:
        timing = Timing(found.hardware.name, found.date, rates)
        write_atomically(path, msgspec.json.format(msgspec.json.encode(timing), indent=2))


def _rate(found: Calibration, job: Job) -> Quantity | None:
    """Of a job that trains as the calibration did: on its kind of device, in its precision, on as many threads."""
    spec = job.spec
    on_cpu = "fp32" in found.hardware.tflops
    if (job.device == "cpu") != on_cpu or spec.dtype not in found.hardware.tflops:
        return None
    if on_cpu and job.threads != found.threads:
        return None
    return run_rate(found, spec.decoder, job.context, spec.recipe.batch, spec.dtype, spec.compile)
