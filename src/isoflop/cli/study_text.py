"""A study's plan and outcome as a terminal's tables and as JSON."""

import sys
from pathlib import Path

import msgspec
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from isoflop.data.dataset import Dataset
from isoflop.ladder.estimate import START_S
from isoflop.ladder.forecast import Measured
from isoflop.ladder.messages import Message
from isoflop.ladder.plan import Job, Plan, PlannedRun
from isoflop.ladder.run import Outcome, count_workers
from isoflop.ladder.study import Study
from isoflop.ladder.until import additions_line, possible_of, until_document, until_line

LEAST_WIDTH = 100  # columns of the plan
PIPED_WIDTH = 170  # columns where nobody's terminal limits them
ROOMY = 140  # columns from which on counts are written out in full


class Quiet:
    """A display that shows nothing."""

    def stage(self, text: str) -> None: ...
    def begin(self, jobs: list[Job], workers: int) -> None: ...
    def listen(self, message: Message) -> None: ...
    def end(self) -> None: ...


def print_plan(study: Study, plan: Plan, dataset: Dataset) -> None:
    """Every run before it starts, the total, and what looks wrong."""
    console = _console()
    _say(console, "the plan: every run before it starts")
    console.print(_plan_table(plan, roomy=console.width >= ROOMY))
    fitted, targets, manifest = plan.runs("fit"), plan.runs("target"), dataset.manifest
    trunks = sum(job.runs[0].role == "fit" for job in plan.jobs)
    _say(
        console,
        f"{len(fitted)} fitted runs on {trunks} trunks, {len(targets)} held out; "
        f"{_total_flops(plan):.4g} exact FLOPs if every run were trained alone",
    )
    _say(
        console,
        f"text: {manifest.source}; {manifest.train.tokens:,} training and {manifest.valid.tokens:,} validation tokens",
    )
    _say(
        console,
        f"estimated time: {_duration(estimated_seconds(study, plan))} (assumed rates, within a factor of two)",
    )
    if study.forecast.until is not None:
        _say(console, until_line(study, plan, possible_of(study, plan, dataset)))
    for warning in plan.warnings:
        _say(console, warning, label="looks wrong:", colour="yellow")


def plan_json(study: Study, plan: Plan, dataset: Dataset) -> str:
    """The same, complete."""
    record = {
        "jobs": plan.jobs,
        "warnings": plan.warnings,
        "flops_exact": _total_flops(plan),
        "estimated_s": estimated_seconds(study, plan),
        "data": dataset.manifest,
        "until": until_document(study, plan, possible_of(study, plan, dataset)) if study.forecast.until else None,
    }
    return msgspec.json.encode(record).decode()


def estimated_seconds(study: Study, plan: Plan) -> float:
    """Wall-clock seconds of a whole study on this machine."""
    total = 0.0
    for role in ("fit", "target"):
        jobs = [job for job in plan.jobs if job.runs[0].role == role]
        if jobs:
            seconds = [job.estimated_s for job in jobs]
            total += START_S + max(sum(seconds) / count_workers(study, jobs), max(seconds))
    return total


def print_outcome(outcome: Outcome, answers: list[str], folder: Path) -> None:
    """The law, the forecasts, and where everything is."""
    console = _console()
    for family, fit in outcome.laws.items():
        if isinstance(fit, str):
            _say(console, fit, label=f"{family}: no law:", colour="red")
            continue
        law = fit.law
        _say(
            console,
            f"{family}: L = {law.E:.4g} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}   "
            f"(nats a token; N matmul parameters; {fit.certificate.n_used} runs)",
        )
        for warning in fit.certificate.warnings:
            _say(console, warning, label="  caution:", colour="yellow")
    if outcome.additions:
        _say(console, additions_line(outcome.additions))
    for forecast in outcome.forecasts:
        _say(console, _forecast_line(forecast))
        if told := forecast.forecast.get("warning"):
            _say(console, told, label="  caution:", colour="yellow")
    for row in outcome.rows:
        if row.status != "done":
            _say(console, row.reason or "", label=f"{row.run} {row.status}:", colour="red")
    for answer in answers:
        _say(console, answer)
    _say(console, f"{_duration(outcome.seconds)}; report: {folder / 'report.html'}")


def outcome_json(outcome: Outcome, answers: list[str], folder: Path) -> str:
    """The same, complete."""
    record = {
        "study": str(folder),
        "report": str(folder / "report.html"),
        "families_compared": answers,
        "laws": {family: fit if isinstance(fit, str) else fit.law for family, fit in outcome.laws.items()},
        "forecasts": outcome.forecasts,
        "runs": outcome.rows,
        "failures": outcome.failures,
        "until": outcome.additions,
        "seconds": outcome.seconds,
    }
    return msgspec.json.encode(record).decode()


def _console() -> Console:
    """As wide as the terminal, but never so narrow that numbers are cut: a terminal wraps what it cannot show."""
    console = Console()
    return Console(width=max(console.width, LEAST_WIDTH)) if sys.stdout.isatty() else Console(width=PIPED_WIDTH)


def _say(console: Console, text: str, *, label: str = "", colour: str = "") -> None:
    """One sentence on one line, whatever its characters and length."""
    opening = f"[{colour}]{escape(label)}[/] " if label else ""
    console.print(opening + escape(text), soft_wrap=True, highlight=False)


def _plan_table(plan: Plan, roomy: bool) -> Table:
    """Counts in full where there is room, else to four digits and the family only where there are several."""
    rows = [_plan_cells(job, run, roomy) for job in plan.jobs for run in job.runs]
    if not roomy and len({row["family"] for row in rows}) == 1:
        rows = [{name: cell for name, cell in row.items() if name != "family"} for row in rows]
    table = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    for name in rows[0]:
        table.add_column(name, justify="left" if name in ("run", "role", "family") else "right")
    for row in rows:
        table.add_row(*row.values())
    return table


def _plan_cells(job: Job, run: PlannedRun, roomy: bool) -> dict[str, str]:
    def count(n: int) -> str:
        return f"{n:,}" if roomy else _short(n)

    return {
        "run": run.run,
        "role": run.role,
        "family": escape(run.family),
        "d_model": str(run.d_model),
        "N\nall": count(run.n_params),
        "N no\nemb.": count(run.n_params_non_embedding),
        "N\nmatmul": count(run.n_params_matmul),
        "D\ntokens": count(run.tokens),
        "exact\nFLOPs": f"{run.flops_exact:.4g}" if roomy else f"{run.flops_exact:.3g}",
        "lr": f"{job.spec.recipe.lr:.3g}",
        "batch\ntokens": count(job.batch_tokens),
        "steps": f"{run.steps:,}",
        "est.\ns": f"{run.estimated_s:.3g}",
    }


def _short(count: int) -> str:
    """Four digits and a unit: 1.234M."""
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k")):
        if count >= size:
            return f"{count / size:.4g}{unit}"
    return str(count)


def _total_flops(plan: Plan) -> float:
    return sum(run.flops_exact for run in plan.runs())


def _forecast_line(forecast: Measured) -> str:
    said = forecast.forecast
    line = f"{forecast.family} N = {forecast.n_params:,}, D = {forecast.tokens:,}: forecast {said['loss']:.4f} "
    if said["low"] is None:
        line += "(no interval)"
    else:
        line += f"({said['level']:.0%} interval {said['low']:.4f} to {said['high']:.4f})"
    if forecast.measured is not None and forecast.relative_error is not None:
        line += f", measured {forecast.measured:.4f} nats a token ({forecast.bits_per_byte:.4f} bits per byte)"
        line += f": {forecast.relative_error:+.2%}"
    if forecast.inside is not None:
        line += ", inside" if forecast.inside else ", outside"
    return line


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
