"""Approaches 1 and 2 of Hoffmann et al. 2022 (sections 3.1, 3.2): optima first, then a line through them.

Approach 1 takes, at many budgets, the run of least loss so far among training curves. Approach 2 draws a parabola of
loss over log N through the runs of each budget (an isoFLOP) and takes its minimum. Both then fit N* = K C^a on
logarithms. (Approach 3 fits the loss itself: `isoflop.laws.fit`.)

Neither is unbiased. An isoFLOP of E + A/N^alpha + B/D^beta is no parabola: where alpha and beta differ, or the grid
does not lie evenly about the minimum, the parabola's minimum is off, by an amount that the design determines and that
`bias_of_design` computes for a given law. Every budget says if its parabola opens downwards, has its minimum outside
its runs, or lies off the middle of them.
"""

from collections.abc import Callable
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.interpolate import Akima1DInterpolator
from scipy.special import stdtrit

from isoflop.laws.certificate import digest
from isoflop.laws.fit import fit_law
from isoflop.laws.forms import Array
from isoflop.laws.optimum import Interval, Law, optimal
from isoflop.laws.tables import Runs

Shape = Literal["minimum", "maximum", "edge", "off-centre", "too few runs"]
How = Literal["parabola", "akima"]
Axis = Literal["N", "D"]

LEVEL_GAP = 0.1  # runs whose FLOPs differ by less are of one budget
FEWEST = {"parabola": 4, "akima": 5}  # runs a budget; three always lie on a parabola
OFF_CENTRE = 0.25  # of a grid's width, that the minimum may lie from its middle
FINE = 4001  # points at which an interpolation is searched
CURVE_BUDGETS = 1500  # Hoffmann et al. 2022, section 3.1
FEWEST_BUDGETS = 3


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """One budget: its runs, and where their least loss lies."""

    flops: float
    runs: int
    shape: Shape
    optimum: float | None  # of the axis: N or D
    loss: float | None
    centre_offset: float | None  # of the optimum from the middle of the grid, in grid widths of log N
    used: bool


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """optimum = K C^a through the optima of the budgets: least squares on logarithms, with t intervals."""

    axis: Axis
    K: float
    a: float
    a_interval: Interval | None  # None where two budgets leave nothing to judge by
    residual_rms: float  # of the log of the optimum
    budgets: list[Budget]
    warnings: list[str]

    def at(self, flops: float) -> float:
        """The optimum at a budget."""
        return float(self.K * flops**self.a)


class DesignBias(msgspec.Struct, frozen=True, kw_only=True):
    """What the approach finds on losses without noise from a known law at this very design, beside the truth."""

    exponent_found: float
    exponent_true: float
    at_largest: float  # found over true optimum at the largest budget
    at_hundredfold: float  # and at a hundred times that


def isoflop_line(
    axis_values: npt.ArrayLike,
    flops: npt.ArrayLike,
    loss: npt.ArrayLike,
    *,
    axis: Axis = "N",
    how: How = "parabola",
    level: float = 0.9,
) -> Line:
    """Approach 2. `axis_values`: N or D of every run, as `axis` says; all (n,) and positive, `loss` any finite number.

    `how`: a parabola of loss over the logarithm, or Akima's interpolation (as in Porian et al. 2024), which bends with
    an uneven isoFLOP. Raises ValueError where fewer than three budgets have a minimum among their runs.
    """
    x, flops, loss = _columns(axis_values, flops, loss)
    budgets = [_budget(np.log(x[rows]), flops[rows], loss[rows], how) for rows in levels(flops)]
    return _line(axis, budgets, level, "isoFLOP")


def levels(flops: Array) -> list[npt.NDArray[np.intp]]:
    """The rows of every budget, smallest first."""
    order = np.argsort(flops, kind="stable")
    breaks = np.flatnonzero(np.diff(np.log(flops[order])) > np.log1p(LEVEL_GAP)) + 1
    return list(np.split(order, breaks))


def envelope_line(
    n: npt.ArrayLike,
    flops: npt.ArrayLike,
    loss: npt.ArrayLike,
    runs: npt.ArrayLike,
    *,
    budgets: int = CURVE_BUDGETS,
    level: float = 0.9,
) -> Line:
    """Approach 1: checkpoints (n,) of training curves, `runs` their labels.

    Each curve is interpolated in log FLOPs, and at every budget the run of least loss is taken. Budgets at which that
    is the smallest or the largest N of those that reach it say nothing (the envelope ends there) and are left out.
    The interval takes each change of the best run for one observation, as neighbouring budgets share their runs.
    """
    n, flops, loss = _columns(n, flops, loss)
    labels = np.asarray(runs)
    curves = [_curve(n[labels == run], flops[labels == run], loss[labels == run]) for run in np.unique(labels)]
    curves = [curve for curve in curves if len(curve[1]) > 1]
    if len(curves) < FEWEST_BUDGETS:
        raise ValueError(f"approach 1 needs checkpoints of at least {FEWEST_BUDGETS} runs; there are {len(curves)}")
    grid = np.geomspace(flops.min(), flops.max(), budgets)
    return _line("N", [_envelope(curves, float(budget)) for budget in grid], level, "envelope")


def bias_of_design(
    law: Law, design: Array, flops: Array, fit: Callable[[Array, Array, Array], Line], axis: Axis = "N"
) -> DesignBias:
    """The approach `fit(design, flops, loss)` on the law's own losses at this design, the other size from C = 6 N D.

    `design`: N or D of every run, as `axis` says. Raises ValueError where the law or the approach has no optimum.
    """
    other = flops / 6 / design
    found = fit(design, flops, law.loss(design, other) if axis == "N" else law.loss(other, design))
    top = float(flops.max())
    best, far = optimal(law, top), optimal(law, 100 * top)
    true = (best.n, far.n, best.a) if axis == "N" else (best.d, far.d, best.b)
    return DesignBias(
        exponent_found=found.a,
        exponent_true=true[2],
        at_largest=found.at(top) / true[0],
        at_hundredfold=found.at(100 * top) / true[1],
    )


def line_document(runs: Runs, axis: Axis, level: float, delta: float) -> dict[str, Any]:
    """What `isoflop fit --approach 1` (where `runs` has clusters) and `--approach 2` print, with the design's own bias.

    The bias is that on losses of approach 3's law, fitted to the same rows; None where that law has no optimum.
    """
    x = runs.n if axis == "N" else runs.d
    labels = runs.clusters

    def fit(x: Array, flops: Array, loss: Array) -> Line:
        return (
            isoflop_line(x, flops, loss, axis=axis, level=level)
            if labels is None
            else envelope_line(x, flops, loss, labels, level=level)
        )

    line = fit(x, runs.flops, runs.loss)
    told = [*line.warnings, *runs.doubts]
    bias = None
    try:
        law = fit_law(runs.n, runs.d, runs.loss, delta=delta, bootstrap=0).law
        bias = bias_of_design(law, x, 6 * runs.n * runs.d, fit, axis)
    except ValueError as mistake:
        told.append(f"the design's bias is not known: {mistake}")
    status = "weak" if told or line.a_interval is None else "sound"
    return {
        "law": {"form": f"{axis}* = K C^a", "K": line.K, "a": line.a},
        "objective": line.residual_rms**2 * sum(one.used for one in line.budgets),
        "certificate": {
            "axis": axis,
            "budgets": msgspec.to_builtins(line.budgets),
            "residual_rms": line.residual_rms,
            "design_bias": msgspec.to_builtins(bias),
            "n_rows": runs.rows,
            "n_used": len(runs.n),
            "excluded": runs.excluded,
            "data_digest": digest(runs.n, runs.d, runs.loss),
            "convention": runs.convention,
            "status": status,
            "reasons": told,
            "warnings": [*told, *_bias_warning(bias)],
        },
        "intervals": {} if line.a_interval is None else {"a": msgspec.to_builtins(line.a_interval)},
        "predictions": [],
    }


def _bias_warning(bias: DesignBias | None) -> list[str]:
    if bias is None:
        return []
    return [
        f"this design is biased: on losses without noise from approach 3's law it finds exponent "
        f"{bias.exponent_found:.4f} for {bias.exponent_true:.4f}, and {bias.at_hundredfold - 1:+.1%} at a hundred "
        "times the compute"
    ]


def _columns(*columns: npt.ArrayLike) -> tuple[Array, ...]:
    arrays = tuple(np.asarray(column, float) for column in columns)
    if len({array.shape for array in arrays}) != 1 or arrays[0].ndim != 1:
        raise ValueError("the axis, FLOPs and losses must be of one length")
    if not all(np.isfinite(array).all() for array in arrays) or not all((array > 0).all() for array in arrays[:2]):
        raise ValueError("sizes and FLOPs must be positive, and every number finite")
    return arrays


def _budget(log_x: Array, flops: Array, loss: Array, how: How) -> Budget:
    middle, width = 0.5 * (log_x.max() + log_x.min()), np.ptp(log_x)
    find = _parabola if how == "parabola" else _akima
    where, least, shape = find(log_x, loss) if len(np.unique(log_x)) >= FEWEST[how] else NOTHING
    offset = None if where is None else float((where - middle) / width)
    if shape == "minimum" and offset is not None and abs(offset) > OFF_CENTRE:
        shape = "off-centre"
    return Budget(
        flops=float(np.exp(np.log(flops).mean())) if np.ptp(flops) else float(flops[0]),
        runs=len(loss),
        shape=shape,
        optimum=None if where is None else float(np.exp(where)),
        loss=least,
        centre_offset=offset,
        used=shape in ("minimum", "off-centre"),
    )


_Found = tuple[float | None, float | None, Shape]
NOTHING: _Found = (None, None, "too few runs")


def _parabola(log_x: Array, loss: Array) -> _Found:
    middle = log_x.mean()
    bend, slope, height = np.polyfit(log_x - middle, loss, 2)
    if bend <= 0:
        return None, None, "maximum"
    where = float(middle - 0.5 * slope / bend)
    least = float(height - 0.25 * slope**2 / bend)
    return where, least, "minimum" if log_x.min() < where < log_x.max() else "edge"


def _akima(log_x: Array, loss: Array) -> _Found:
    x, inverse = np.unique(log_x, return_inverse=True)
    y = np.bincount(inverse, loss) / np.bincount(inverse)  # seeds of one size are averaged
    fine = np.linspace(x[0], x[-1], FINE)
    values = Akima1DInterpolator(x, y)(fine)
    k = int(values.argmin())
    return float(fine[k]), float(values[k]), "edge" if k in (0, FINE - 1) else "minimum"


def _curve(n: Array, flops: Array, loss: Array) -> tuple[float, Array, Array]:
    order = np.argsort(flops)
    return float(n[0]), np.log(flops[order]), loss[order]


def _envelope(curves: list[tuple[float, Array, Array]], flops: float) -> Budget:
    log_c = np.log(flops)
    reached = [(n, float(np.interp(log_c, x, y))) for n, x, y in curves if x[0] <= log_c <= x[-1]]
    sizes = sorted({n for n, _ in reached})
    best, least = min(reached, key=lambda one: one[1]) if reached else (None, None)
    shape: Shape = "too few runs"
    if len(sizes) >= FEWEST_BUDGETS:
        shape = "minimum" if best not in (sizes[0], sizes[-1]) else "edge"
    return Budget(
        flops=flops,
        runs=len(reached),
        shape=shape,
        optimum=best,
        loss=least,
        centre_offset=None,
        used=shape == "minimum",
    )


def _line(axis: Axis, budgets: list[Budget], level: float, what: str) -> Line:
    used = [(one.flops, one.optimum) for one in budgets if one.used and one.optimum is not None]
    flops, optima = np.array(used).reshape(-1, 2).T
    if len(used) < FEWEST_BUDGETS or np.ptp(np.log(flops)) < np.log(2):
        shapes = ", ".join(f"{sum(one.shape == shape for one in budgets)} {shape}" for shape in _shapes(budgets))
        raise ValueError(
            f"{len(used)} of {len(budgets)} budgets have a least loss among their runs ({shapes}); "
            f"a line needs {FEWEST_BUDGETS} over a factor of 2 in FLOPs, so widen the grids of N"
        )
    x, y = np.log(flops), np.log(optima)
    a, at_mean = np.polyfit(x - x.mean(), y, 1)
    residual = y - at_mean - a * (x - x.mean())
    # Neighbouring points of an envelope are the same run: what counts is how many runs there are.
    distinct = len(used) if what == "isoFLOP" else len(np.unique(optima))
    interval = None
    if distinct > 2:
        error = np.sqrt((residual**2).mean() * distinct / (distinct - 2) / (np.var(x) * distinct))
        reach = float(stdtrit(distinct - 2, 0.5 + level / 2) * error)
        interval = Interval(float(a) - reach, float(a) + reach, level)
    return Line(
        axis=axis,
        K=float(np.exp(at_mean - a * x.mean())),
        a=float(a),
        a_interval=interval,
        residual_rms=float(np.sqrt((residual**2).mean())),
        budgets=budgets if what == "isoFLOP" else _few(budgets),
        warnings=_warnings(budgets, what),
    )


def _shapes(budgets: list[Budget]) -> list[Shape]:
    return list(dict.fromkeys(one.shape for one in budgets))


def _few(budgets: list[Budget]) -> list[Budget]:
    """Of an envelope's budgets, the first of every best run."""
    firsts = {one.optimum: one for one in reversed(budgets) if one.used}
    return sorted(firsts.values(), key=lambda one: one.flops)


def _warnings(budgets: list[Budget], what: str) -> list[str]:
    if what == "envelope":
        ends = sum(one.shape == "edge" for one in budgets) / len(budgets)
        told = "at {:.0%} of the budgets the smallest or largest run is the best: the envelope says nothing there"
        return [told.format(ends)] if ends > 0.2 else []
    meaning = {
        "maximum": "the parabola opens downwards: a maximum, and left out",
        "edge": "the least loss lies at or beyond the edge of the runs, and is left out",
        "off-centre": "the minimum lies far from the middle of the runs, where a parabola is biased; kept",
        "too few runs": "too few sizes for a curve, and left out",
    }
    return [f"budget {one.flops:.3g}: {meaning[one.shape]}" for one in budgets if one.shape != "minimum"]
