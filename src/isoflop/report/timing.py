"""Plan against actual: how fast each run should have gone, and how fast it went."""

from html import escape
from typing import Any

import msgspec

from isoflop.cost.this_device import TIMING, Timing
from isoflop.report.load import Study, as_dict
from isoflop.report.tables import table
from isoflop.table import RunRow

HEAD = ("run", "expected tokens/s", "80 % interval", "measured tokens/s", "measured over expected", "held")


def timing_table(study: Study) -> str:
    """Every finished run beside what was expected before it started: the calibration's interval where the machine was
    calibrated, else the seconds of the plan, which are within a factor of two or so."""
    rows = [row for row in study.rows if row.status == "done" and row.tokens_per_s]
    expected = _calibrated(study)
    if expected is not None:
        return _against_calibration(rows, expected)
    return _against_plan(rows, study.plan)


def _calibrated(study: Study) -> Timing | None:
    path = study.folder / TIMING
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes(), type=Timing)
    except msgspec.DecodeError as error:
        raise ValueError(f"report: {path} is no list of expected speeds ({error}): remove it") from error


def _against_calibration(rows: list[RunRow], expected: Timing) -> str:
    known = [(row, expected.tokens_per_s[row.run]) for row in rows if row.run in expected.tokens_per_s]
    if not known:
        return ""
    held = sum(rate.low <= row.tokens_per_s <= rate.high for row, rate in known)
    body = [
        [
            escape(row.run),
            f"{rate.value:,.0f}",
            f"{rate.low:,.0f} to {rate.high:,.0f}",
            f"{row.tokens_per_s:,.0f}",
            f"{row.tokens_per_s / rate.value:.2f}",
            "yes" if rate.low <= row.tokens_per_s <= rate.high else "no",
        ]
        for row, rate in known
    ]
    source = f"expected by the calibration of {expected.device} of {expected.calibrated}"
    caption = f"Plan against actual: speed, {source}; {held} of {len(known)} intervals held"
    return table(caption, HEAD, body, range(1, len(HEAD)), "wide")


def _against_plan(rows: list[RunRow], plan: Any) -> str:
    jobs = as_dict(as_dict(plan).get("plan")).get("jobs") or []
    planned = {run.get("run"): run.get("estimated_s") for job in jobs for run in job.get("runs", [])}
    known = [(row, planned[row.run]) for row in rows if planned.get(row.run)]
    if not known:
        return ""
    body = [[escape(row.run), f"{s:.3g}", f"{row.wall_s:.3g}", f"{row.wall_s / s:.2f}"] for row, s in known]
    caption = "Plan against actual: seconds of training; `isoflop calibrate` gives intervals instead of guesses"
    return table(caption, ("run", "planned s", "measured s", "measured over planned"), body, range(1, 4))
