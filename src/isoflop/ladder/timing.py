"""How fast each run should go, as this machine's calibration says, written down before the runs start; and what
finished runs teach the calibration."""

from pathlib import Path

import msgspec

from isoflop.atomic import write_atomically
from isoflop.cost.quantity import Quantity
from isoflop.cost.this_device import (
    TIMING,
    Calibration,
    Timing,
    calibration_path,
    read_calibration,
    run_ideal,
    run_rate,
)
from isoflop.ladder.plan import Job, Plan
from isoflop.table import read_table


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
    """Of a job that trains as the calibration did: on its kind of device, in its precision, on as many threads, with no
    early exit."""
    spec = job.spec
    on_cpu = "fp32" in found.hardware.tflops
    if (job.device == "cpu") != on_cpu or spec.dtype not in found.hardware.tflops or spec.early_exit:
        return None
    if on_cpu and job.threads != found.threads:
        return None
    return run_rate(found, spec.decoder, job.context, spec.recipe.batch, spec.dtype, spec.compile)


class _Recorded(msgspec.Struct):
    """The part of plan.json that matters here."""

    plan: Plan


def learned(found: Calibration, folder: Path) -> tuple[Calibration, int]:
    """The calibration once the finished runs of a study have moved it, and how many did: those that trained as it was
    made, and eager. Raises ValueError where the folder is no study with finished runs."""
    if not (folder / "plan.json").exists() or not (folder / "runs.parquet").exists():
        raise ValueError(f"{folder} has no plan.json and runs.parquet: not a study directory with finished runs")
    try:
        plan = msgspec.json.decode((folder / "plan.json").read_bytes(), type=_Recorded).plan
    except msgspec.DecodeError as error:
        raise ValueError(f"{folder / 'plan.json'}: {error}") from None
    rows = {row.run: row for row in read_table(folder) if row.status == "done" and row.tokens_per_s}
    belief, used = found.belief, 0
    for job in plan.jobs:
        if _rate(found, job) is None or job.spec.compile:
            continue
        ideal = run_ideal(found, job.spec.decoder, job.context, job.spec.recipe.batch, job.spec.dtype)
        for run in job.runs:
            if run.run in rows:
                belief, used = belief.after(ideal, job.batch_tokens / rows[run.run].tokens_per_s), used + 1
    return msgspec.structs.replace(found, belief=belief), used
