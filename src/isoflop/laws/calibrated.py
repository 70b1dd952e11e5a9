"""Forecasts of new runs with intervals that hold as often as they say.

The spread is that of `isoflop.laws.discrepancy`: a law with beliefs from public tables, and a discrepancy. It is
calibrated twice: by how often such intervals held on public tables (the prior's `stretch`), and by hold-outs of the
table itself, whose dearer runs are forecast from its cheaper ones (`widening`).
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from isoflop.laws.discrepancy import Posterior, posterior, quantile, require_runs
from isoflop.laws.forms import Array
from isoflop.laws.priors import PUBLIC, Prior

LEVEL = 0.9
CUTS = (2.0, 4.0, 8.0)  # the dearest run over the dearest fitted, in the hold-outs that calibrate
ROWS = 150  # they use so many rows at most: time
FEWEST = 6  # rows that a hold-out fits
SAME = 1.0001  # ratio of computes that are one level
LARGEST_RATIO = 16.0  # of squared error to squared spread: one wild row must not rule
NOTEWORTHY = 1.2  # a widening worth a word


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """The loss expected of a new run, in the unit of the table: it lies in [low, high] with probability `level`."""

    n: float
    d: float
    loss: float
    low: float
    high: float
    level: float
    beyond: float  # compute over the largest fitted


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """Forecasts of new runs, and what they rest on. `notes` say where it is the prior that speaks."""

    forecasts: list[Forecast]
    widening: float  # of the intervals, by the hold-outs of the table
    holdouts: int  # how many of them there were
    rows: int
    notes: list[str]


def calibrated_prediction(
    n: npt.ArrayLike,
    d: npt.ArrayLike,
    loss: npt.ArrayLike,
    new_n: npt.ArrayLike,
    new_d: npt.ArrayLike,
    level: float = LEVEL,
    prior: Prior = PUBLIC,
) -> Calibration:
    """Forecast runs of `new_n` parameters and `new_d` tokens from finished ones.

    `n`, `d`, `loss`: one positive entry a run, in any order; the loss in any unit. Even one run gives a forecast, by
    the prior. Raises ValueError for entries that are not positive, and for a level outside (0, 1). Deterministic.
    """
    require_level(level)
    n, d, loss, new_n, new_d = (np.atleast_1d(np.asarray(column, float)) for column in (n, d, loss, new_n, new_d))
    require_runs(n, d, loss)
    require_runs(new_n, new_d, np.ones_like(new_n))
    told, ratios = posterior(n, d, loss, prior), hold_out_ratios(n, d, loss, prior)
    factor = widening(ratios, prior)
    mean, half = interval(told, new_n, new_d, level, factor)
    columns = (new_n, new_d, np.exp(mean), np.exp(mean - half), np.exp(mean + half), new_n * new_d / (n * d).max())
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return Calibration(
        forecasts=[
            Forecast(n=one_n, d=one_d, loss=middle, low=low, high=high, level=level, beyond=beyond)
            for one_n, one_d, middle, low, high, beyond in rows
        ],
        widening=factor,
        holdouts=len(ratios),
        rows=len(n),
        notes=notes(told, ratios, factor),
    )


def require_level(level: float) -> None:
    """ValueError for a level outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level: {level} must lie strictly between 0 and 1, such as {LEVEL}")


def cheaper(compute: Array, cuts: Sequence[float]) -> list[npt.NDArray[np.bool_]]:
    """The rows each hold-out fits: those that cost at most the dearest over a cut. Every set of rows once."""
    masks = (compute <= compute.max() / cut * SAME for cut in cuts)
    kept = {int(mask.sum()): mask for mask in masks}
    return [mask for count, mask in kept.items() if FEWEST <= count < len(compute)]


def hold_out_ratios(n: Array, d: Array, loss: Array, prior: Prior) -> list[float]:
    """For each hold-out within the table the mean squared error over squared claimed spread: 1 where the claim held."""
    order = np.argsort(n * d, kind="stable")[:: -len(n) // ROWS]  # from the dearest, every k-th
    n, d, loss = n[order], d[order], loss[order]
    ratios = []
    for kept in cheaper(n * d, CUTS):
        mean, sd = posterior(n[kept], d[kept], loss[kept], prior).moments(n[~kept], d[~kept])
        squared = ((mean - np.log(loss[~kept])) / (prior.stretch * sd)) ** 2
        ratios.append(float(np.minimum(squared, LARGEST_RATIO).mean()))
    return ratios


def widening(ratios: Sequence[float], prior: Prior) -> float:
    """By how much intervals widen. Hold-outs of one table are few and overlap, so only a power of what they ask for,
    learnt from public tables, is granted; and intervals never narrow."""
    return max(1.0, float(np.mean(ratios)) ** (prior.trust / 2)) if ratios else 1.0


def interval(told: Posterior, n: Array, d: Array, level: float, factor: float) -> tuple[Array, Array]:
    """Mean of the log loss of new runs, and half the width of its interval, each of shape (m,)."""
    mean, sd = told.moments(n, d)
    return mean, factor * told.prior.stretch * quantile(level) * sd


def notes(told: Posterior, ratios: Sequence[float], factor: float) -> list[str]:
    """Sentences on what the forecasts rest on."""
    said = list(told.notes)
    if not ratios:
        said.append("too few runs to hold any out: intervals are calibrated by public tables alone")
    if factor > NOTEWORTHY:
        said.append(f"dearer runs of the table lay further off than claimed: intervals are widened {factor:.2f} times")
    return said
