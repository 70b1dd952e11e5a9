"""Forecasts of new runs with intervals that hold as often as they say.

The spread is that of `isoflop.laws.discrepancy`: a law with beliefs from public tables, and a discrepancy whose sizes
the table's own runs tell. It is calibrated by how often such intervals held when the dear runs of public tables were
forecast from the cheap ones (the prior's `stretch`). `isoflop.laws.backtest` does the same to any one table.
"""

import msgspec
import numpy as np
import numpy.typing as npt

from isoflop.laws.discrepancy import Posterior, posterior, quantile, require_runs
from isoflop.laws.forms import Array
from isoflop.laws.priors import PUBLIC, Prior
from isoflop.laws.soundness import table_notes

LEVEL = 0.9


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
    """Forecasts of new runs, and what they rest on. `notes` say where it is the prior that speaks, and what is
    doubtful about the runs."""

    forecasts: list[Forecast]
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
    told = posterior(n, d, loss, prior)
    mean, half = interval(told, new_n, new_d, level)
    columns = (new_n, new_d, np.exp(mean), np.exp(mean - half), np.exp(mean + half), new_n * new_d / (n * d).max())
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return Calibration(
        forecasts=[
            Forecast(n=one_n, d=one_d, loss=middle, low=low, high=high, level=level, beyond=beyond)
            for one_n, one_d, middle, low, high, beyond in rows
        ],
        rows=len(n),
        notes=[*told.notes, *table_notes(n, d, loss)],
    )


def require_level(level: float) -> None:
    """ValueError for a level outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"level: {level} must lie strictly between 0 and 1, such as {LEVEL}")


def interval(told: Posterior, n: Array, d: Array, level: float) -> tuple[Array, Array]:
    """Mean of the log loss of new runs, and half the width of its interval, each of shape (m,)."""
    mean, sd = told.moments(n, d)
    return mean, told.prior.stretch * quantile(level) * sd
