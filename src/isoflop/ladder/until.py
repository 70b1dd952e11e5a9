"""Runs added to a finished ladder until the interval at the held-out runs is as narrow as asked.

Each time the cheapest set of affordable runs that should be enough is worked out (`isoflop.decide`), its first few are
trained, and the law learns from them. What is chosen depends on nothing but the results before, so a study that is
killed chooses the same again.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from isoflop.atomic import write_atomically
from isoflop.cost import parameters
from isoflop.data.dataset import Dataset
from isoflop.decide.candidates import MOST_OF_TARGET, Candidates
from isoflop.decide.choose import choose
from isoflop.decide.experiment import LossAt, look
from isoflop.decide.outlook import Outlook
from isoflop.ladder.design import LAW_PARAMETERS
from isoflop.ladder.execute import JobFailure
from isoflop.ladder.machine import Machine, this_machine
from isoflop.ladder.plan import Job, Plan, PlannedRun, flops_per_token, single_job
from isoflop.ladder.sizes import widths_of
from isoflop.ladder.study import Grid, IsoFlop, Study
from isoflop.laws.calibrated import interval
from isoflop.laws.discrepancy import Posterior, posterior, quantile, unseen
from isoflop.laws.forms import Array
from isoflop.laws.priors import PUBLIC
from isoflop.table import RunRow

AT_A_TIME = 2  # runs, on any machine: what is chosen next may not depend on how many it can train at once
LEAST_STEPS = 10
BETWEEN = 2**0.5  # ratio of the tokens, or the budgets, of neighbouring candidates
SAME_TOKENS = 0.05  # how near to a planned run's a candidate's tokens may not come: it would repeat it
DEFAULT_CAP = 2.0  # times the planned ladder's FLOPs

Train = Callable[[list[Job]], tuple[list[RunRow], list[JobFailure]]]
Say = Callable[[str], None]


class Width(msgspec.Struct, frozen=True):
    """Half the width of the interval at a held-out run, in log units (.01 is about +-1 %)."""

    run: str
    family: str
    half_width: float


class Step(msgspec.Struct, frozen=True):
    """Runs added together, and the widths at the held-out runs once they were trained."""

    runs: list[PlannedRun]
    widths: list[Width]


class Additions(msgspec.Struct, frozen=True, kw_only=True):
    """What became of `until`. FLOPs are exact ones of runs to fit; `saved` is the cap less what was spent."""

    asked: float
    reached: bool
    why: str  # it stopped
    before: list[Width]  # after the planned ladder
    steps: list[Step]
    planned_flops: float
    added_flops: float
    cap_flops: float
    saved_flops: float
    saved_s: float  # estimated, of one worker


def cap_flops(study: Study, plan: Plan) -> float:
    """The most exact FLOPs that runs to fit may take together."""
    return study.forecast.most_flops or DEFAULT_CAP * _flops(plan.runs("fit"))


def require_start(study: Study, plan: Plan) -> None:
    """ValueError for a planned ladder that is dearer than the cap, or too short for a law to start from."""
    runs = plan.runs("fit")
    if cap_flops(study, plan) < _flops(runs):
        raise ValueError(
            f"[forecast] most_flops = {study.forecast.most_flops:.3g} is less than the planned ladder, "
            f"{_flops(runs):.3g} exact FLOPs; give more, or fewer [budgets]"
        )
    for family in study.families:
        count = sum(run.family == family for run in runs)
        if count < LAW_PARAMETERS:
            raise ValueError(
                f"[forecast] until: the planned ladder of {family} has {count} runs, and a law needs {LAW_PARAMETERS} "
                "before others are added; give more [budgets]"
            )


def possible_jobs(study: Study, plan: Plan, vocab_size: int, data_digest: str, machine: Machine) -> list[Job]:
    """A job of one run for every size of the ladder and tokens between and beyond its own, none over what is left."""
    left = cap_flops(study, plan) - _flops(plan.runs("fit"))
    largest_batch = max(job.batch_tokens for job in plan.jobs)
    jobs = []
    for family in study.families:
        most = min(left, MOST_OF_TARGET * max((run.flops_exact for run in _targets(plan, family)), default=0.0))
        for width, tokens in _places(study, family, vocab_size, most):
            job = single_job(study, family, width, tokens, vocab_size, data_digest, machine)
            [run] = job.runs
            fits = run.steps >= LEAST_STEPS and job.batch_tokens <= largest_batch and run.flops_exact <= most
            if fits and not any(_alike(run, planned) for planned in plan.runs("fit")):
                jobs.append(job)
    return jobs


def possible_of(study: Study, plan: Plan, dataset: Dataset) -> list[Job]:
    """The jobs that may be added on this machine, to train on this text."""
    return possible_jobs(study, plan, dataset.vocab_size, dataset.digest, this_machine())


def until_document(study: Study, plan: Plan, possible: list[Job]) -> dict[str, Any]:
    """What may come after the planned ladder, before anything is trained. The widths are what the prior alone expects
    the planned ladder to leave."""
    cap, planned = cap_flops(study, plan), _flops(plan.runs("fit"))
    return {
        "asked": study.forecast.until,
        "expected": expected_widths(study, plan),
        "planned_flops": planned,
        "cap_flops": cap,
        "most_s": (cap - planned) * _pace(plan),
        "possible": [run for job in possible for run in job.runs],
    }


def until_line(study: Study, plan: Plan, possible: list[Job]) -> str:
    """The same in a sentence."""
    told = until_document(study, plan, possible)
    runs, widest = told["possible"], max(width.half_width for width in told["expected"])
    sizes = f"d_model {min(run.d_model for run in runs)} to {max(run.d_model for run in runs)}, " if runs else ""
    return (
        f"then runs are added until the held-out interval is ±{told['asked']:.2%} (the prior expects ±{widest:.2%} "
        f"after the plan), out of {len(runs)} possible ones ({sizes}{AT_A_TIME} at a time), with at most "
        f"{told['cap_flops'] - told['planned_flops']:.3g} FLOPs more, about {told['most_s']:.0f} s of one worker"
    )


def add_until(
    study: Study, plan: Plan, possible: list[Job], rows: Sequence[RunRow], train: Train, say: Say
) -> tuple[Additions, list[JobFailure]]:
    """Add runs until the widest interval is as narrow as asked, the cap is reached, or nothing more would help. `train`
    trains jobs and returns the rows of everything so far. Where a run fails nothing more is added."""
    asked, spent, steps = study.forecast.until, _flops(plan.runs("fit")), list[Step]()
    assert asked is not None
    left = cap_flops(study, plan) - spent
    before = widths = widths_now(study, plan, rows)
    why, failures = "", list[JobFailure]()
    while not (why or failures):
        widest = max(widths, key=lambda width: width.half_width)
        if widest.half_width <= asked:
            why = "as narrow as asked"
            break
        jobs = _next(study, plan, widest, possible, rows, left)
        if not jobs:
            why = "no run within the cap would narrow it further"
            break
        runs = [run for job in jobs for run in job.runs]
        say(f"{widest.family}: held-out interval ±{widest.half_width:.2%}, asked ±{asked:.2%}: {_listed(runs)}")
        rows, failures = train(jobs)
        left -= _flops(runs)
        possible = [job for job in possible if job not in jobs]
        widths = widths_now(study, plan, rows)
        steps.append(Step(runs, widths))
    added = _flops([run for step in steps for run in step.runs])
    told = Additions(
        asked=asked,
        reached=max(width.half_width for width in widths) <= asked,
        why=why or "a run failed",
        before=before,
        steps=steps,
        planned_flops=spent,
        added_flops=added,
        cap_flops=cap_flops(study, plan),
        saved_flops=left,
        saved_s=left * _pace(plan),
    )
    return told, failures


def widths_now(study: Study, plan: Plan, rows: Sequence[RunRow]) -> list[Width]:
    """Half the width of the interval at every held-out run, from the finished runs of its family (none: the prior)."""
    widths = []
    for run in plan.runs("target"):
        _, half = interval(_told(plan, run.family, rows), *_point(run), study.forecast.level)
        widths.append(Width(run.run, run.family, float(half[0])))
    return widths


def expected_widths(study: Study, plan: Plan) -> list[Width]:
    """Before anything is trained: what the planned ladder should leave, from the prior alone."""
    widths = []
    for run in plan.runs("target"):
        outlook = _outlook(plan, run, [job for job in plan.jobs if job.runs[0].role == "fit"], [])
        sd = float(np.sqrt(outlook.after(range(len(outlook.cost_c)))[0]))
        widths.append(Width(run.run, run.family, sd * _stretched(study)))
    return widths


def write_additions(folder: Path, told: Additions) -> None:
    """`until.json`."""
    write_atomically(folder / "until.json", msgspec.json.format(msgspec.json.encode(told)) + b"\n")


def additions_line(told: Additions) -> str:
    """What was added, what came of it, and what was saved, in a sentence."""
    runs = sum(len(step.runs) for step in told.steps)
    last = max(width.half_width for width in (told.steps[-1].widths if told.steps else told.before))
    end = "" if told.reached else f": {told.why}"
    return (
        f"{runs} runs added to the planned ladder, {told.added_flops:.3g} FLOPs beside {told.planned_flops:.3g}; "
        f"held-out interval ±{last:.2%}, asked ±{told.asked:.2%}{end}; saved {told.saved_flops:.3g} FLOPs of the "
        f"{told.cap_flops:.3g} allowed (about {told.saved_s:.0f} s of one worker)"
    )


def _next(
    study: Study, plan: Plan, widest: Width, possible: list[Job], rows: Sequence[RunRow], left: float
) -> list[Job]:
    """The first few of the cheapest runs that should be enough; of the best affordable ones where none are."""
    jobs = [job for job in possible if job.runs[0].family == widest.family and _flops(job.runs) <= left]
    if not jobs:
        return []
    [target] = [run for run in plan.runs("target") if run.run == widest.run]
    assert study.forecast.until is not None
    enough = (study.forecast.until / _stretched(study)) ** 2
    chosen = choose(_outlook(plan, target, jobs, rows), left, enough=enough)
    return [jobs[k] for k in chosen[:AT_A_TIME]]


def _outlook(plan: Plan, target: PlannedRun, jobs: list[Job], rows: Sequence[RunRow]) -> Outlook:
    runs = [run for job in jobs for run in job.runs if run.family == target.family]
    n_c, d_c = (np.array([getattr(run, name) for run in runs], dtype=float) for name in ("n_params_matmul", "tokens"))
    candidates = Candidates(n_c, d_c, np.array([run.flops_exact for run in runs]))
    goal = LossAt(float(target.n_params_matmul), float(target.tokens))
    return look(_told(plan, target.family, rows), candidates, goal)[0]


def _told(plan: Plan, family: str, rows: Sequence[RunRow]) -> Posterior:
    """What the finished runs of a family say; the prior alone, anchored at its dearest run, where there are none."""
    mine = [row for row in rows if row.family == family and row.role == "fit" and row.loss_valid is not None]
    if not mine:
        dearest = max((run for run in plan.runs("fit") if run.family == family), key=lambda run: run.flops_exact)
        return unseen(float(dearest.n_params_matmul), float(dearest.tokens))
    columns = [[row.n_params_matmul for row in mine], [row.tokens for row in mine], [row.loss_valid for row in mine]]
    n, d, loss = (np.array(column, dtype=float) for column in columns)
    return posterior(n, d, loss)


def _stretched(study: Study) -> float:
    """Half widths over standard deviations."""
    return PUBLIC.stretch * quantile(study.forecast.level)


def _places(study: Study, family: str, vocab_size: int, most: float) -> list[tuple[int, float]]:
    """Width and tokens of the runs to consider, none over `most` FLOPs."""
    places = []
    match study.budgets:
        case Grid(d_model=widths, tokens=tokens):
            for width in widths:
                per_token = flops_per_token(study, family, width, vocab_size)
                places += [(width, d) for d in _up(min(tokens), most / per_token)]
        case IsoFlop(flops=flops, tokens_per_param=(low, high)) as budgets:
            for width in widths_of(budgets, study.families[family], vocab_size, study.training.context):
                per_token = flops_per_token(study, family, width, vocab_size)
                size = parameters(study.families[family].build(width, vocab_size, study.training.context)).matmul
                lengths = [budget / per_token for budget in _up(min(flops), most)]
                places += [(width, d) for d in lengths if low <= d / size <= high]
    return places


def _up(first: float, last: float) -> list[float]:
    """From the first on in equal ratios, none over the last."""
    count = int(np.log(last / first) / np.log(BETWEEN)) + 1 if last >= first else 0
    return [first * BETWEEN**k for k in range(count)]


def _alike(run: PlannedRun, planned: PlannedRun) -> bool:
    same = run.family == planned.family and run.d_model == planned.d_model
    return same and abs(run.tokens / planned.tokens - 1) < SAME_TOKENS


def _point(run: PlannedRun) -> tuple[Array, Array]:
    return np.array([float(run.n_params_matmul)]), np.array([float(run.tokens)])


def _targets(plan: Plan, family: str) -> list[PlannedRun]:
    return [run for run in plan.runs("target") if run.family == family]


def _pace(plan: Plan) -> float:
    """Estimated seconds of one worker a FLOP, of the planned runs to fit."""
    return sum(job.estimated_s for job in plan.jobs if job.runs[0].role == "fit") / _flops(plan.runs("fit"))


def _flops(runs: Sequence[PlannedRun]) -> float:
    return sum(run.flops_exact for run in runs)


def _listed(runs: list[PlannedRun]) -> str:
    """What is trained next, in words."""
    return "training " + ", ".join(f"d_model {run.d_model} on {run.tokens:,} tokens" for run in runs)
