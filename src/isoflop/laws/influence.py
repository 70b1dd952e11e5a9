"""Which runs decide the answer: every run left out in turn, then small groups, by exact refits.

The answer is the compute-optimal D/N (where the law has one) at the largest compute fitted, or another asked for. Runs
that act together hide each other from leaving out one at a time, so groups grow greedily: the run that moves the answer
furthest is left out, the law refitted, and so on, towards more and towards fewer tokens.

Legend: K tables with rows left out, n rows, p parameters.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from isoflop.laws.bootstrap import CHUNK
from isoflop.laws.forms import Array, PowerSum
from isoflop.laws.solver import Problem, solve

GROUP = 5  # runs a group grows to: five decided the Chinchilla ratio
GROUP_SHARE = 0.1  # of all runs, at most
SHORTLIST = 20  # runs that a group tries next, those that move the answer most alone
TOLD = 5  # runs listed
EXPECTED_TIMES = 1.6  # a group that moves the answer so much more than normal influences would is flagged
NOTABLE = 0.15  # and only if it moves the answer by so much (of its logarithm)
LONE_SHARE = 0.2  # of all squared influence in one run, which is flagged too
STEPS = 60
DECIDED = 1.5  # ratio of the answers with and without a group at which the law is weak


class Removal(msgspec.Struct, frozen=True, kw_only=True):
    """One run left out: what it is, and the answer without it. Of a cluster of rows, the one furthest from the law."""

    row: int  # in the order of the fit's rows, from 0
    n: float
    d: float
    loss: float
    residual: float  # log L - log Lhat of the law with all rows
    answer: float | None
    rows: int = 1  # left out with it, as checkpoints of the same run


class Group(msgspec.Struct, frozen=True, kw_only=True):
    """Runs left out together, in the order they were chosen, and the answer after each."""

    runs: list[Removal]
    answer: float | None
    shift: float  # log(answer / answer with all rows)
    expected: float  # the shift of as many of the most influential runs where influences are normal


class Influence(msgspec.Struct, frozen=True, kw_only=True):
    """How much of the answer hangs on how few runs."""

    quantity: str
    flops: float
    answer: float | None
    standard_error: float | None  # jackknife, of log(answer)
    largest_share: float | None  # of the jackknife's variance in one run
    runs: list[Removal]  # alone, largest change first
    groups: list[Group]
    flagged: bool


@dataclass(frozen=True)
class _Table:
    problem: Problem
    form: PowerSum
    delta: float
    flops: float

    def refit(self, theta: Array, weights_Kn: Array) -> tuple[Array, Array]:
        """Parameters and log answers (nan: none) of K weightings, from one optimum."""
        problem = replace(self.problem, weights=weights_Kn)
        start = np.repeat(theta[None], len(weights_Kn), axis=0)
        theta_Kp = solve(problem, start, self.delta, staircase=False, max_steps=STEPS).theta_Sp
        return theta_Kp, log_ratio(self.form, theta_Kp, self.flops)


def log_ratio(form: PowerSum, theta_Kp: Array, flops: float) -> Array:
    """log(D*/N*) at `flops` under C = 6 N D; nan where the law has no optimum. Shape (K,)."""
    _, P, Q, alpha, beta = theta_Kp.T
    with np.errstate(all="ignore"):
        # In logarithms: A and B themselves overflow long before their ratio does.
        log_a, log_b = np.log(P) + alpha * form.log_n0, np.log(Q) + beta * form.log_d0
        log_n = (np.log(alpha) + log_a - np.log(beta) - log_b + beta * np.log(flops / 6)) / (alpha + beta)
    alive = (theta_Kp[:, 1:] > 0).all(axis=1)
    ratio: Array = np.where(alive, np.log(flops / 6) - 2 * log_n, np.nan)
    return ratio


def influence(
    problem: Problem,
    form: PowerSum,
    theta: Array,
    rows: tuple[Array, Array, Array],
    delta: float,
    flops: float,
    labels: npt.NDArray[np.int64] | None = None,
) -> Influence:
    """Refit without every run, and without the groups that move the answer furthest. `rows`: N, D and loss (n,).

    A run is a row, or all rows of one of the `labels`, numbered from 0.
    """
    table = _Table(problem, form, delta, flops)
    residuals = problem.log_loss - np.log(form.value(theta[None], problem.features))[0]
    answer = float(log_ratio(form, theta[None], flops)[0])
    runs = np.arange(len(residuals)) if labels is None else labels
    size = int(runs.max()) + 1
    parts = np.array_split(np.arange(size), -(-size // CHUNK))
    alone = np.concatenate([table.refit(theta, problem.weights * _without(runs, part))[1] for part in parts])
    shifts = alone - answer

    def removal(run: int, value: float) -> Removal:
        members = np.flatnonzero(runs == run)
        row = int(members[np.abs(residuals[members]).argmax()])
        n, d, loss = (float(column[row]) for column in rows)
        told = None if np.isnan(value) else float(np.exp(value))
        return Removal(row=row, n=n, d=d, loss=loss, residual=float(residuals[row]), answer=told, rows=len(members))

    known = np.nan_to_num(shifts, nan=0.0)
    total = float((known**2).sum())
    order = np.argsort(-np.abs(known), kind="stable")
    share = float((known**2).max() / total) if total > 0 else None
    error = None if np.isnan(answer) else float(np.sqrt(total * (size - 1) / size))
    most = min(GROUP, max(1, int(GROUP_SHARE * size)))
    signs = () if np.isnan(answer) or total == 0 else (1.0, -1.0)
    chosen = [_grow(table, theta, runs, sign * known, sign, most) for sign in signs]
    groups = [_group(steps, answer, error or 0.0, size, removal) for steps in chosen]
    lone = share is not None and share > max(LONE_SHARE, 3 * 2 * np.log(size) / size) and abs(known).max() > NOTABLE
    flagged = lone or any(_remarkable(group) for group in groups)
    return Influence(
        quantity="compute-optimal D/N",
        flops=flops,
        answer=None if np.isnan(answer) else float(np.exp(answer)),
        standard_error=error,
        largest_share=share,
        runs=[removal(int(run), float(alone[run])) for run in order[:TOLD]],
        groups=groups,
        flagged=bool(flagged),
    )


def _without(runs: npt.NDArray[np.int64], chosen: npt.NDArray[np.int64]) -> Array:
    """0 at the rows of each chosen run and 1 elsewhere, shape (chosen, n); `runs` (n,) says whose a row is."""
    kept: Array = (runs != chosen[:, None]).astype(float)
    return kept


def _grow(
    table: _Table, theta: Array, runs: npt.NDArray[np.int64], gains: Array, sign: float, most: int
) -> list[tuple[int, float]]:
    """Runs left out one after the other, each the one that moves the answer furthest, and the log answers."""
    left = np.argsort(-gains, kind="stable")[:SHORTLIST]
    weights, chosen = table.problem.weights.copy(), list[tuple[int, float]]()
    for _ in range(most):
        theta_Kp, answers = table.refit(theta, weights * _without(runs, left))
        moved = np.where(np.isnan(answers), -np.inf, sign * answers)
        best = int(moved.argmax())
        if not np.isfinite(moved[best]):
            break
        chosen.append((int(left[best]), float(answers[best])))
        weights, theta = weights * _without(runs, left[[best]])[0], theta_Kp[best]
        left = np.delete(left, best)
        if not len(left):
            break
    return chosen


def _group(
    steps: list[tuple[int, float]], answer: float, error: float, size: int, removal: Callable[[int, float], Removal]
) -> Group:
    ranks = (np.arange(len(steps)) + 0.5) / size
    expected = float((-ndtri(ranks)).clip(0).sum() * error / np.sqrt(size))
    last = steps[-1][1] if steps else answer
    return Group(
        runs=[removal(row, value) for row, value in steps],
        answer=float(np.exp(last)),
        shift=last - answer,
        expected=expected,
    )


def _remarkable(group: Group) -> bool:
    return abs(group.shift) > max(NOTABLE, EXPECTED_TIMES * group.expected)


def deciders(found: Influence) -> list[str]:
    """A doubt where a handful of runs moves the answer by half and more."""
    moved = max((abs(group.shift) for group in found.groups), default=0.0)
    return [f"{GROUP} or fewer runs decide the optimal D/N"] if found.flagged and moved > np.log(DECIDED) else []


def influence_warnings(found: Influence) -> list[str]:
    """One sentence for a table whose answer hangs on a few runs."""
    if not found.flagged or found.answer is None:
        return []
    group = max(found.groups, key=lambda one: abs(one.shift) / max(one.expected, 1e-300))
    if not group.runs or group.answer is None:
        return []
    losses = ", ".join(f"{run.loss:.4g}" for run in group.runs)
    count = len(group.runs)
    decide, whose, them = ("1 run decides", "that", "it") if count == 1 else (f"{count} runs decide", "those", "them")
    return [
        f"{decide} the answer: without {whose} of loss {losses} the optimal D/N at "
        f"{found.flops:.3g} FLOPs is {group.answer:.3g}, with {them} {found.answer:.3g}"
    ]
