"""The compute multiplier between two ladders: how much more compute A needs to reach the loss B reaches.

    C_A(L_B(C)) / C,    L_B(C): B's lowest loss at C = 6 N D, D/N within what the runs cover; C_A: the inverse of A's

Two fits are made. The shared law has one floor and one pair of exponents; B's runs are A's with N and D multiplied, and
then the multiplier is one number wherever both optima are free. The separate laws share nothing, and the multiplier
is a function of compute. The separate ones speak only where the gap between the ladders changes with compute by more
than the shared law allows, or where the shared law leaves much larger residuals. Runs count by how near they are to
the best at their compute; where the runs themselves differ by another gap than their laws do, losses are corrected by
how far the runs near a budget lie off them.

Uncertainty is a jackknife over clusters: the checkpoints of a run, and runs of A and B that share N, D and seed, are
left out together, so that what they share cancels (Quenouille's grouped jackknife; Bell & McCaffrey 2002 on why it
holds with few clusters). Interval and test are one: the interval holds the multipliers m for which the losses of A at
m C and of B at C do not differ at the level, so it excludes 1 exactly when the test at C says that they differ.
`benchmarks/multiplier.py` measures how often both hold.

Legend: S weightings (the first is the whole table), n rows, m points.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.special import fdtrc, stdtr, stdtrit

from isoflop.laws.ladders import (
    OWN,
    SEPARATE,
    SHARED,
    Kind,
    Ladders,
    best_log_loss,
    fit,
    log_value,
    own_of_both,
    published,
    refit,
)
from isoflop.laws.optimum import Law

LEVEL = 0.95
LEAST = 4  # clusters a ladder: with fewer, leaving one out leaves no ladder
WIDEST = float(np.log(1e3))  # multipliers are looked for up to a thousand either way
FINENESS = 0.02  # of the logarithm of the multiplier
GROUPS = 100  # clusters beyond this many are left out in groups
CHECKED = 4  # budgets at which laws are held against their runs
CURVE = 9  # budgets of the reported curve
LOCAL = 0.4 * float(np.log(10))  # of log compute: how near a run must be to speak for a budget
MISSES = 0.01  # chance of error at which laws are said to miss the gap between the runs themselves
NOTHING = 1e-6  # of log loss: a difference below this is rounding of the fit
CHANGES = 0.05  # chance of error at which the multiplier is said to change with compute
UNLIKE = 0.01  # the same, where one law leaves much larger residuals than two
MISFIT = 0.02  # residuals of log loss beyond which a law does not describe its ladder
OTHER_UNIT = 0.25  # of log loss: a gap that looks like another unit (nats and bits differ by .37)

Winner = Literal["A", "B"]


@dataclass(frozen=True)
class Side:
    """One ladder: N, D and loss of its runs, what belongs together, and seeds where they are known."""

    n: npt.NDArray[np.float64]
    d: npt.NDArray[np.float64]
    loss: npt.NDArray[np.float64]
    clusters: list[str] | None = None
    seeds: npt.NDArray[np.float64] | None = None


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """Both ladders at one budget. None: no such multiplier within a factor of a thousand."""

    flops: float
    loss_a: float
    loss_b: float
    low_a: float  # interval of the expected loss, not of a single run
    high_a: float
    low_b: float
    high_b: float
    multiplier: float | None
    low: float | None
    high: float | None
    p_value: float
    probability_b_better: float


class Left(msgspec.Struct, frozen=True):
    """What the multiplier is without the runs that move it most."""

    runs: list[str]
    multiplier: float | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What two ladders say about each other; `at` is the verdict's budget, `winner` None where within noise or
    where the laws miss the runs by so much that they decide nothing (`residual_rms`)."""

    law: Kind
    corrected: bool  # by how far the runs near a budget lie off the laws, as these miss the gap between them
    level: float
    winner: Winner | None
    at: Point
    curve: list[Point]
    changes_p_value: float | None  # of a multiplier that does not change with compute by more than a shared law allows
    unlike_p_value: float  # of residuals about the shared law no larger than chance makes them beside those about two
    laws: dict[Kind, dict[str, Law]]
    residual_rms: float  # of log loss, about the chosen law
    clusters: int
    pairs: int
    degrees: int
    influence: Left
    notes: list[str]


@dataclass(frozen=True)
class _Fitted:
    """One kind of law on the whole table and with each cluster left out."""

    rows: Ladders
    kind: Kind
    own_a_Sp: npt.NDArray[np.float64]
    own_b_Sp: npt.NDArray[np.float64]
    ratios: tuple[tuple[float, float], tuple[float, float]]
    noise: float
    weights_Sn: npt.NDArray[np.float64]

    def best(self, side: Winner, log_flops: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Lowest log loss of a side at budgets, (S, m)."""
        own = self.own_a_Sp if side == "A" else self.own_b_Sp
        return best_log_loss(self.rows, own, log_flops, self.ratios[side == "B"])

    def residuals(self) -> npt.NDArray[np.float64]:
        """Log losses less what the laws of the whole table say, (n,)."""
        rows = self.rows
        x, y = (rows.log_n - rows.log_n0)[None], (rows.log_d - rows.log_d0)[None]
        of_a, of_b = (log_value(own[:1], x, y)[0][0] for own in (self.own_a_Sp, self.own_b_Sp))
        left: npt.NDArray[np.float64] = rows.log_loss - np.where(rows.is_b > 0, of_b, of_a)
        return left

    def missed(self, side: Winner, log_flops: float) -> npt.NDArray[np.float64]:
        """How far a side's runs lie above its law near a budget, (S, 1): their mean, the near ones foremost."""
        rows = self.rows
        own = self.own_a_Sp if side == "A" else self.own_b_Sp
        value = log_value(own, (rows.log_n - rows.log_n0)[None], (rows.log_d - rows.log_d0)[None])[0]
        away = (np.log(6) + rows.log_n + rows.log_d - log_flops) / LOCAL
        weights = self.weights_Sn * np.exp(-(away**2) / 2) * (rows.is_b == (side == "B"))
        total = np.maximum(weights.sum(axis=1, keepdims=True), 1e-300)
        told: npt.NDArray[np.float64] = (weights * (rows.log_loss - value)).sum(axis=1, keepdims=True) / total
        return told


def compare_ladders(a: Side, b: Side, *, level: float = LEVEL, at: float | None = None) -> Comparison:
    """Compare two ladders at `at` FLOPs (by default the largest compute that both reach). Deterministic.

    `a` and `b` hold one positive, finite entry a run (or checkpoint), losses in one unit on one validation set. Raises
    ValueError for tables too small to say anything, and for a level outside (0, 1).
    """
    _require(a, b, level, at)
    rows = Ladders.joined((a.n, a.d, a.loss), (b.n, b.d, b.loss))
    labels, pairs = cluster_labels(a, b)
    low, high = _common(a, b)
    budget = high if at is None else at
    shared, separate = (_fitted(rows, kind, _groups(labels, rows), (a, b)) for kind in ("shared", "separate"))
    degrees = len(shared.own_a_Sp) - 2
    changes = _changes(shared, separate, np.log([low, high]), degrees) if low < high else None
    unlike = _unlike(shared, separate, int(labels.max()) + 1)
    told = separate if (changes is not None and changes < CHANGES) or unlike < UNLIKE else shared
    corrected = low < high and _misses(told, np.log(np.geomspace(low, high, CHECKED)), degrees)
    budgets = (budget, *np.geomspace(low, high, CURVE))
    points = [_point(told, float(flops), level, degrees, corrected) for flops in budgets]
    sure = points[0].p_value < 1 - level and told.noise <= MISFIT
    return Comparison(
        law=told.kind,
        corrected=corrected,
        level=level,
        winner=None if not sure else "B" if points[0].loss_b < points[0].loss_a else "A",
        at=points[0],
        curve=points[1:] if low < high else [],
        changes_p_value=changes,
        unlike_p_value=unlike,
        laws={one.kind: _laws(one) for one in (shared, separate)},
        residual_rms=told.noise,
        clusters=int(labels.max()) + 1,
        pairs=pairs,
        degrees=degrees,
        influence=_influence(told, _groups(labels, rows), (a, b), budget, corrected),
        notes=_notes(a, b, budget, (low, high), told, labels),
    )


def cluster_labels(a: Side, b: Side) -> tuple[npt.NDArray[np.int64], int]:
    """Which rows (A's first) are left out together, numbered from 0, and how many runs of A have a twin in B.

    Rows of one cluster, and rows of A and B of the same N and D (and seed, where both tables know it), as they share
    data order, initialisation and how far a run of that size strays from any law.
    """
    names = [f"{side} {label}" for side, one in (("A", a), ("B", b)) for label in _own_labels(one)]
    number = {name: index for index, name in enumerate(dict.fromkeys(names))}
    labels = np.array([number[name] for name in names])
    twins: dict[tuple[float, ...], list[int]] = {}
    seeded = a.seeds is not None and b.seeds is not None
    for row, key in enumerate([*_sizes(a, seeded), *_sizes(b, seeded)]):
        twins.setdefault(key, []).append(row)
    paired = [rows for rows in twins.values() if rows[0] < len(a.n) <= rows[-1]]
    for rows in paired:
        joined = np.isin(labels, labels[rows])
        labels[joined] = labels[rows[0]]
    return np.unique(labels, return_inverse=True)[1].astype(np.int64), len(paired)


def _own_labels(side: Side) -> list[str]:
    return side.clusters if side.clusters is not None else [str(row) for row in range(len(side.n))]


def _sizes(side: Side, seeded: bool) -> list[tuple[float, ...]]:
    seeds = side.seeds if seeded and side.seeds is not None else np.zeros(len(side.n))
    return [(float(f"{n:.6g}"), float(f"{d:.6g}"), float(s)) for n, d, s in zip(side.n, side.d, seeds, strict=True)]


def _groups(labels: npt.NDArray[np.int64], rows: Ladders) -> npt.NDArray[np.int64]:
    """The labels, or where there are too many of them as many groups as there may be, each from all of the range."""
    count = int(labels.max()) + 1
    if count <= GROUPS:
        return labels
    first = np.unique(labels, return_index=True)[1]
    rank = np.empty(count, dtype=np.int64)
    rank[np.lexsort(((rows.log_n + rows.log_d)[first], rows.is_b[first]))] = np.arange(count)
    return rank[labels] % GROUPS


def _fitted(rows: Ladders, kind: Kind, labels: npt.NDArray[np.int64], sides: tuple[Side, Side]) -> _Fitted:
    theta, weights, noise = fit(rows, kind)
    without = (labels != np.arange(labels.max() + 1)[:, None]) * weights
    every = refit(rows, kind, np.repeat(theta[None], len(without), axis=0), without, noise)
    theta_Sp = np.concatenate([theta[None], every])
    both = own_of_both(theta_Sp) if kind == "shared" else theta_Sp
    counted = np.concatenate([weights[None], without])
    return _Fitted(rows, kind, both[:, :OWN], both[:, OWN:], _ratios(*sides), noise, counted)


def _ratios(a: Side, b: Side) -> tuple[tuple[float, float], tuple[float, float]]:
    """Bounds of log D/N for both: those that both ladders cover; where there are none, each ladder's own.

    Otherwise a ladder would lose for its choice of sizes, and not for what was changed.
    """
    of_a, of_b = (np.log(side.d / side.n) for side in (a, b))
    low, high = float(max(of_a.min(), of_b.min())), float(min(of_a.max(), of_b.max()))
    if low <= high:
        return (low, high), (low, high)
    return (float(of_a.min()), float(of_a.max())), (float(of_b.min()), float(of_b.max()))


def _common(a: Side, b: Side) -> tuple[float, float]:
    """The compute that both ladders cover; where they do not overlap, the top of the lower one."""
    of_a, of_b = (6 * side.n * side.d for side in (a, b))
    high = min(of_a.max(), of_b.max())
    return float(min(max(of_a.min(), of_b.min()), high)), float(high)


def _spread(values_Sm: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The jackknife's standard error of what the whole table says, (m,)."""
    count = len(values_Sm) - 1
    told: npt.NDArray[np.float64] = np.sqrt((count - 1) / count * ((values_Sm[1:] - values_Sm[0]) ** 2).sum(axis=0))
    return told


def _in_errors(values_Sm: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """What the whole table says over its standard error; 0 where both vanish, as for a table against itself."""
    value, error = values_Sm[0], _spread(values_Sm)
    nothing = np.abs(value) < NOTHING
    told: npt.NDArray[np.float64] = np.where(nothing, 0.0, value / np.maximum(error, 1e-300))
    return told


def _p_value(errors: float, degrees: int) -> float:
    return float(2 * stdtr(degrees, -abs(errors)))


def _changes(shared: _Fitted, separate: _Fitted, ends: npt.NDArray[np.float64], degrees: int) -> float:
    """p of no change: does the gap grow over the common range as the shared law says that it does?"""
    gaps = [np.diff(one.best("A", ends) - one.best("B", ends), axis=1) for one in (separate, shared)]
    return _p_value(float(_in_errors(gaps[0] - gaps[1])[0]), degrees)


def _unlike(shared: _Fitted, separate: _Fitted, clusters: int) -> float:
    """p of the F test of the three parameters that a law for each adds; rows of one cluster count as one."""
    left = [float(separate.weights_Sn[0] @ one.residuals() ** 2) for one in (shared, separate)]
    added, spare = SEPARATE - SHARED, clusters - SEPARATE
    if spare < 1 or left[1] <= 0:
        return 1.0
    return float(fdtrc(added, spare, max(left[0] - left[1], 0.0) / added / (left[1] / spare)))


def _misses(told: _Fitted, budgets: npt.NDArray[np.float64], degrees: int) -> bool:
    """Whether the runs near some budget differ by another gap than their laws do."""
    gaps = [told.missed("A", float(at)) - told.missed("B", float(at)) for at in budgets]
    return any(_p_value(float(_in_errors(gap)[0]), degrees) < MISSES / len(budgets) for gap in gaps)


def _point(told: _Fitted, flops: float, level: float, degrees: int, corrected: bool) -> Point:
    here = np.log(np.array([flops]))
    steps = np.linspace(-WIDEST, WIDEST, 2 * round(WIDEST / FINENESS) + 1)
    of_a, of_b = told.best("A", here + steps), told.best("B", here)
    if corrected:
        of_a, of_b = of_a + told.missed("A", float(here[0])), of_b + told.missed("B", float(here[0]))
    errors = _in_errors(of_a - of_b)
    quantile = float(stdtrit(degrees, (1 + level) / 2))
    middle = len(steps) // 2
    now = float(errors[middle])
    losses: dict[str, float] = {}
    for side, values in (("a", of_a[:, [middle]]), ("b", of_b)):
        value, half = float(values[0, 0]), quantile * float(_spread(values)[0])
        told_of = {"loss": value, "low": value - half, "high": value + half}
        losses |= {f"{name}_{side}": float(np.exp(log)) for name, log in told_of.items()}
    best = _crossing(steps, of_a[0] - of_b[0])
    low, high = (None, None) if best is None else _ends(steps, errors, best, quantile)
    return Point(
        flops=flops,
        multiplier=_exp(best),
        low=_exp(low),
        high=_exp(high),
        p_value=_p_value(now, degrees),
        probability_b_better=float(stdtr(degrees, now)),
        **losses,
    )


def _exp(value: float | None) -> float | None:
    return None if value is None else float(np.exp(value))


def _crossing(steps: npt.NDArray[np.float64], gap: npt.NDArray[np.float64]) -> float | None:
    """Where the gap, which falls with A's compute, is nothing."""
    if not gap[0] >= 0 >= gap[-1]:
        return None
    after = min(int(np.argmax(gap <= 0)), len(steps) - 1)
    before = max(after - 1, 0)
    fall = gap[before] - gap[after]
    part = gap[before] / fall if fall > 0 else 0.0
    return float(steps[before] + part * (steps[after] - steps[before]))


def _ends(
    steps: npt.NDArray[np.float64], errors: npt.NDArray[np.float64], best: float, quantile: float
) -> tuple[float | None, float | None]:
    """Both ends of the run of multipliers about the best that the test does not reject; None: open."""
    if not np.abs(errors).max() > 0:
        return None, None

    def end(outward: npt.NDArray[np.float64], excess: npt.NDArray[np.float64]) -> float | None:
        if not (excess >= 0).any():
            return None
        first = int(np.argmax(excess >= 0))
        if first == 0:
            return float(best)
        part = -excess[first - 1] / (excess[first] - excess[first - 1])
        return float(outward[first - 1] + part * (outward[first] - outward[first - 1]))

    below, above = steps <= best, steps >= best
    return end(steps[below][::-1], errors[below][::-1] - quantile), end(steps[above], -errors[above] - quantile)


def _laws(told: _Fitted) -> dict[str, Law]:
    return {side: published(told.rows, own[0]) for side, own in (("A", told.own_a_Sp), ("B", told.own_b_Sp))}


def _influence(
    told: _Fitted, labels: npt.NDArray[np.int64], sides: tuple[Side, Side], flops: float, corrected: bool
) -> Left:
    """The cluster without which the gap at the budget changes most."""
    here = np.log(np.array([flops]))
    steps = np.linspace(-WIDEST, WIDEST, 2 * round(WIDEST / FINENESS) + 1)
    gaps = told.best("A", here + steps) - told.best("B", here)
    if corrected:
        gaps += told.missed("A", float(here[0])) - told.missed("B", float(here[0]))
    middle = gaps[:, len(steps) // 2]
    worst = int(np.abs(middle[1:] - middle[0]).argmax())
    best = _crossing(steps, gaps[worst + 1])
    names = [
        f"{name} of N {n:.3g}, D {d:.3g}, loss {loss:.4g}"
        for name, side in zip("AB", sides, strict=True)
        for n, d, loss in zip(side.n, side.d, side.loss, strict=True)
    ]
    return Left([names[row] for row in np.flatnonzero(labels == worst)[:6]], _exp(best))


def _notes(
    a: Side, b: Side, flops: float, common: tuple[float, float], told: _Fitted, labels: npt.NDArray[np.int64]
) -> list[str]:
    told_of, (low, high) = [], common
    of_a, of_b = (6 * side.n * side.d for side in (a, b))
    if max(of_a.min(), of_b.min()) > high:
        told_of.append("the ladders have no compute in common: the comparison rests on their laws alone")
    if not low * 0.999 <= flops <= high * 1.001:
        told_of.append(f"{flops:.3g} FLOPs is outside the {low:.3g} to {high:.3g} that both ladders cover")
    if told.ratios[0] != told.ratios[1]:
        told_of.append("the ladders have no D/N in common: each is taken at its own")
    if told.noise > MISFIT:
        told_of.append(
            f"runs lie {told.noise:.1%} off the laws, above {MISFIT:.0%}: no verdict. Keep runs nearer the best D/N, "
            "or a narrower range of compute"
        )
    gap = told.best("A", np.log([high])) - told.best("B", np.log([high]))
    if abs(float(gap[0, 0])) > OTHER_UNIT:
        ratio = float(np.exp(gap[0, 0]))
        told_of.append(f"at equal compute the losses differ by a factor of {ratio:.2f}: are both of one unit and text?")
    if (count := int(labels.max()) + 1) > GROUPS:
        told_of.append(f"{count} clusters were left out in {GROUPS} groups")
    return told_of


def _require(a: Side, b: Side, level: float, at: float | None) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level: {level} must lie strictly between 0 and 1, such as {LEVEL}")
    if at is not None and not (np.isfinite(at) and at > 0):
        raise ValueError(f"at: {at} is not a budget in FLOPs; it must be a positive number")
    for name, side in (("A", a), ("B", b)):
        for what, column in (("N", side.n), ("D", side.d), ("loss", side.loss)):
            if not (np.isfinite(column) & (column > 0)).all():
                raise ValueError(f"ladder {name}: every {what} must be a positive, finite number")
        count = len(set(_own_labels(side)))
        if count < LEAST:
            kind = "runs" if side.clusters is None else "clusters"
            raise ValueError(
                f"ladder {name}: {count} {kind} cannot say how far runs scatter; at least {LEAST} are needed"
            )
        if len(np.unique(np.stack([side.n, side.d]), axis=1).T) < LEAST:
            raise ValueError(f"ladder {name}: fewer than {LEAST} different (N, D); a ladder needs several sizes")
        if np.ptp(np.log(side.n * side.d)) < 0.1:
            raise ValueError(f"ladder {name}: every run has the same compute: how loss falls with it is not seen")
