"""The law of each family, and what it says of the held-out runs before they start."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from isoflop.atomic import write_atomically
from isoflop.ladder.plan import Plan, PlannedRun
from isoflop.ladder.study import Study
from isoflop.laws.backtest import backtest
from isoflop.laws.fit import Fit, fit_document, fit_law
from isoflop.laws.optimum import Optimum, optimal
from isoflop.laws.prediction import Prediction, predict
from isoflop.table import RunRow

CONVENTION = "N: matmul parameters (active, with the output table); D: training tokens; loss: nats a token, validation"
OTHER_N = ("n_params", "n_params_non_embedding")  # of the run table: the certificate compares what they would say
BAND_POINTS = 40
BAND_REACH = 4  # times the largest run


class Measured(msgspec.Struct, frozen=True):
    """A forecast of one held-out run and, once it has run, what came of it. `forecast` is an
    `isoflop.laws.prediction.Prediction`: without an interval, and with the reason, where the law is refused."""

    run: str
    family: str
    seed: int
    flops_exact: float
    n_params: int  # every parameter
    n_params_matmul: int  # the N of the law
    tokens: int
    forecast: dict[str, Any]
    made_at: str
    made_before_run: bool
    measured: float | None  # nats a token
    bits_per_byte: float | None  # of the same measurement
    relative_error: float | None  # (forecast - measured) / measured
    inside: bool | None


def fit_families(study: Study, rows: Sequence[RunRow]) -> dict[str, Fit | str]:
    """A law for each family from its finished fit rows, or the sentence that says why there is none."""
    laws: dict[str, Fit | str] = {}
    for family in study.families:
        mine = [row for row in rows if row.role == "fit" and row.family == family and row.status == "done"]
        try:
            laws[family] = _fit(study, mine)
        except ValueError as error:
            laws[family] = str(error)
    return laws


def _fit(study: Study, rows: Sequence[RunRow]) -> Fit:
    """Runs of one trunk share a warm-up and the order of the text, so they are one cluster."""
    return fit_law(
        [row.n_params_matmul for row in rows],
        [row.tokens for row in rows],
        [row.loss_valid or 0.0 for row in rows],
        delta=study.forecast.delta,
        bootstrap=study.forecast.bootstrap,
        seed=min(study.training.seeds),
        clusters=[row.trunk for row in rows],
        convention=CONVENTION,
        conventions={name: [getattr(row, name) for row in rows] for name in OTHER_N},
    )


def write_laws(study: Study, laws: dict[str, Fit | str], rows: Sequence[RunRow], folder: Path) -> None:
    """`law.json`: one document, or one a family under `families`."""
    documents = {family: _document(study, family, fit, rows) for family, fit in laws.items()}
    whole = next(iter(documents.values())) if len(documents) == 1 else {"families": documents}
    _write_json(folder / "law.json", whole)


def make_forecasts(
    study: Study, laws: dict[str, Fit | str], plan: Plan, rows: Sequence[RunRow], folder: Path
) -> list[Measured]:
    """Write `forecast.json` for the held-out runs. A forecast that is on disk already, and that the same law makes
    again, keeps its date; one made when the run had begun says so."""
    earlier = {old.run: old for old in read_forecasts(folder)}
    made = []
    for job in plan.jobs:
        begun = (folder / "jobs" / job.trunk).exists()
        for run in job.runs:
            fit = laws[run.family]
            if run.role == "target" and isinstance(fit, Fit):
                made.append(_forecast(study, fit, run, job.spec.seed, earlier.get(run.run), begun))
    complete_forecasts(made, rows, folder)
    return made


def complete_forecasts(forecasts: Sequence[Measured], rows: Sequence[RunRow], folder: Path) -> list[Measured]:
    """Write beside each forecast what was measured."""
    measured = {row.run: row for row in rows if row.status == "done" and row.role == "target"}
    completed = [_complete(forecast, measured.get(forecast.run)) for forecast in forecasts]
    _write_json(folder / "forecast.json", completed)
    return completed


def read_forecasts(folder: Path) -> list[Measured]:
    """The forecasts on disk; none where there is no whole file."""
    try:
        return msgspec.json.decode((folder / "forecast.json").read_bytes(), type=list[Measured])
    except (FileNotFoundError, msgspec.DecodeError):
        return []


def _forecast(study: Study, fit: Fit, run: PlannedRun, seed: int, old: Measured | None, begun: bool) -> Measured:
    said = msgspec.to_builtins(predict(fit, [run.n_params_matmul], [run.tokens], level=study.forecast.level)[0])
    same = old is not None and all(old.forecast.get(key) == said[key] for key in ("loss", "low", "high", "level"))
    return Measured(
        run=run.run,
        family=run.family,
        seed=seed,
        flops_exact=run.flops_exact,
        n_params=run.n_params,
        n_params_matmul=run.n_params_matmul,
        tokens=run.tokens,
        forecast=said,
        made_at=old.made_at if same and old else time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        made_before_run=old.made_before_run if same and old else not begun,
        measured=None,
        bits_per_byte=None,
        relative_error=None,
        inside=None,
    )


def _complete(forecast: Measured, row: RunRow | None) -> Measured:
    if row is None or row.loss_valid is None:
        return forecast
    said, loss = forecast.forecast, row.loss_valid
    return msgspec.structs.replace(
        forecast,
        measured=loss,
        bits_per_byte=row.bits_per_byte,
        relative_error=said["loss"] / loss - 1,
        inside=None if said["low"] is None else bool(said["low"] <= loss <= said["high"]),
    )


def _document(study: Study, family: str, fit: Fit | str, rows: Sequence[RunRow]) -> dict[str, Any]:
    if isinstance(fit, str):
        return {"law": None, "why": fit}
    level = study.forecast.level
    document = fit_document(fit, level=level)
    spent = [row.flops_exact for row in rows if row.family == family and row.role == "fit" and row.status == "done"]
    document["band"] = _band(fit, min(spent), max(spent), level)
    document["backtest"] = _backtest(fit, level)
    return document


def _backtest(fit: Fit, level: float) -> dict[str, Any]:
    """How forecasts of the dearer runs from the cheaper ones came out, or why none could be made."""
    try:
        told: dict[str, Any] = msgspec.to_builtins(backtest(fit.n, fit.d, fit.loss, level))
    except ValueError as error:
        return {"why": str(error)}
    return told


def _band(fit: Fit, least: float, most: float, level: float) -> list[dict[str, Any]]:
    """Forecasts along the law's compute-optimal frontier, at 6 N D equal to the FLOPs; none where it has no optimum."""
    if min(fit.law.parameters[1:]) <= 0:
        return []
    budgets = np.geomspace(least, BAND_REACH * most, BAND_POINTS)
    best = [optimal(fit.law, float(budget), fit.draws, level) for budget in budgets]
    predictions = predict(fit, [b.n for b in best], [b.d for b in best], level=level)
    return [_band_row(b, p) for b, p in zip(best, predictions, strict=True)]


def _band_row(best: Optimum, forecast: Prediction) -> dict[str, Any]:
    """A point of the frontier: the best N and D with their bootstrap's intervals, the loss with its calibrated one."""
    ends = best.intervals or {}
    return {
        "flops": best.flops,
        "n_params_matmul": best.n,
        "n_interval": ends.get("n"),
        "tokens": best.d,
        "tokens_interval": ends.get("d"),
        "loss": forecast.loss,
        "low": forecast.low,
        "high": forecast.high,
        "level": forecast.level,
    }


def _write_json(path: Path, value: Any) -> None:
    write_atomically(path, msgspec.json.format(msgspec.json.encode(value)) + b"\n")
