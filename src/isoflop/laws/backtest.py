"""The rolling hold-out in compute: forecast the dearer runs of a table from its cheaper ones, and see what held.

A forecast here is made exactly as one of a new run (`isoflop.laws.calibrated`), from the cheaper rows alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import msgspec
import numpy as np
import numpy.typing as npt

from isoflop.laws.calibrated import LEVEL, interval, require_level
from isoflop.laws.discrepancy import posterior, require_runs
from isoflop.laws.fit import fit_law
from isoflop.laws.forms import Array
from isoflop.laws.priors import PUBLIC, Prior
from isoflop.laws.soundness import table_notes

CUTS = (2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # the dearest run over the dearest fitted
FEWEST = 6  # rows that a hold-out fits
SAME = 1.0001  # ratio of computes that are one level
BANDS = (1.0, 3.0, 10.0, 30.0, float("inf"))  # of compute over the largest fitted


class Errors(msgspec.Struct, frozen=True, kw_only=True):
    """How forecasts came out. Errors are means of log(forecast / measured); `plain` is the plain Chinchilla fit, None
    where the rows cannot determine it."""

    forecasts: int
    bias: float
    absolute_error: float
    coverage: float
    width: float  # mean of log(high / low)
    plain_bias: float | None
    plain_absolute_error: float | None


class Fold(msgspec.Struct, frozen=True, kw_only=True):
    """One hold-out: the rows up to a compute fitted, all dearer ones forecast."""

    fitted: int
    fitted_compute: float  # largest, 6 N D
    reach: float  # dearest over dearest fitted compute
    errors: Errors


class Band(msgspec.Struct, frozen=True, kw_only=True):
    """Forecasts of all folds that reached so far."""

    above: float  # compute over the largest fitted
    up_to: float | None
    errors: Errors


class Backtest(msgspec.Struct, frozen=True, kw_only=True):
    """All hold-outs of a table: by fold, by extrapolation factor, and pooled, where each fold counts once."""

    level: float
    rows: int
    folds: list[Fold]
    bands: list[Band]
    pooled: Errors
    notes: list[str]


@dataclass(frozen=True)
class Held:
    """The held-out rows of one fold. `error`, `half` (of the interval) and `plain` are of log loss, shape (m,)."""

    beyond: Array
    error: Array
    half: Array
    plain: Array | None

    def part(self, mask: npt.NDArray[np.bool_]) -> "Held":
        """Some of the rows."""
        plain = None if self.plain is None else self.plain[mask]
        return Held(self.beyond[mask], self.error[mask], self.half[mask], plain)


def backtest(
    n: npt.ArrayLike, d: npt.ArrayLike, loss: npt.ArrayLike, level: float = LEVEL, prior: Prior = PUBLIC
) -> Backtest:
    """Forecast the dearer runs from the cheaper ones, at every cut of `CUTS` that leaves rows on both sides.

    `n`, `d`, `loss`: one positive entry a run. Raises ValueError where nothing can be held out.
    """
    require_level(level)
    n, d, loss = (np.asarray(column, dtype=float) for column in (n, d, loss))
    require_runs(n, d, loss)
    cuts = _cheaper(n * d, CUTS)
    if not cuts:
        decades = float(np.ptp(np.log10(n * d)))
        raise ValueError(
            f"nothing to hold out: {len(n)} runs over {decades:.2g} decades of compute; at least {FEWEST} runs must "
            "cost at most half of what the dearest does"
        )
    folds, held = zip(*(_fold((n, d, loss), kept, level, prior) for kept in cuts), strict=True)
    return Backtest(
        level=level,
        rows=len(n),
        folds=list(folds),
        bands=_bands(held),
        pooled=summary(held),
        notes=[*posterior(n, d, loss, prior).notes, *table_notes(n, d, loss)],
    )


def _cheaper(compute: Array, cuts: Sequence[float]) -> list[npt.NDArray[np.bool_]]:
    """The rows each hold-out fits: those that cost at most the dearest over a cut. Every set of rows once."""
    masks = (compute <= compute.max() / cut * SAME for cut in cuts)
    kept = {int(mask.sum()): mask for mask in masks}
    return [mask for count, mask in kept.items() if FEWEST <= count < len(compute)]


def hold_out(rows: tuple[Array, Array, Array], ahead: tuple[Array, Array, Array], level: float, prior: Prior) -> Held:
    """Forecast the runs `ahead` from `rows`, each (N, D, loss), and say how they came out."""
    n, d, loss = ahead
    mean, half = interval(posterior(*rows, prior), n, d, level)
    plain, measured = _plain(rows, (n, d)), np.log(loss)
    beyond = n * d / (rows[0] * rows[1]).max()
    return Held(beyond, mean - measured, half, None if plain is None else plain - measured)


def summary(held: Sequence[Held]) -> Errors:
    """Means over folds of the means over their rows."""
    plain = [one.plain for one in held if one.plain is not None]
    return Errors(
        forecasts=sum(len(one.error) for one in held),
        bias=_mean([one.error for one in held]),
        absolute_error=_mean([np.abs(one.error) for one in held]),
        coverage=_mean([(np.abs(one.error) <= one.half).astype(float) for one in held]),
        width=_mean([2 * one.half for one in held]),
        plain_bias=_mean(plain) if plain else None,
        plain_absolute_error=_mean([np.abs(one) for one in plain]) if plain else None,
    )


def _mean(parts: Sequence[Array]) -> float:
    return float(np.mean([part.mean() for part in parts]))


def _plain(rows: tuple[Array, Array, Array], ahead: tuple[Array, Array]) -> Array | None:
    """log of the losses that the plain Chinchilla fit expects; None where the rows cannot determine it."""
    try:
        law = fit_law(*rows, bootstrap=0).law
    except ValueError:
        return None
    told: Array = np.log(law.loss(*ahead))
    return told


def _fold(
    table: tuple[Array, Array, Array], kept: npt.NDArray[np.bool_], level: float, prior: Prior
) -> tuple[Fold, Held]:
    n, d, loss = table
    held = hold_out((n[kept], d[kept], loss[kept]), (n[~kept], d[~kept], loss[~kept]), level, prior)
    fold = Fold(
        fitted=int(kept.sum()),
        fitted_compute=float(6 * (n * d)[kept].max()),
        reach=float(held.beyond.max()),
        errors=summary([held]),
    )
    return fold, held


def _bands(held: Sequence[Held]) -> list[Band]:
    """Forecasts of all folds by how far beyond the fitted compute they reached."""
    bands = []
    for above, up_to in pairwise(BANDS):
        parts = [one.part((one.beyond > above * SAME) & (one.beyond <= up_to * SAME)) for one in held]
        parts = [part for part in parts if len(part.error)]
        if parts:
            top = up_to if np.isfinite(up_to) else None
            bands.append(Band(above=above, up_to=top, errors=summary(parts)))
    return bands
