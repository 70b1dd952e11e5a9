"""Runs that could be trained: a grid of sizes and tokens, or a table of them."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop.laws.forms import Array
from isoflop.laws.tables import Columns, read_form_targets, read_targets

SIZES = 16  # of the grid, even in log N
RATIOS = 8  # of the grid, even in log D/N
TOKENS_PER_PARAM = (5.0, 160.0)
LEAST_SPAN = (10.0, 40.0)  # tokens per parameter that are offered whatever the finished runs had
TAILS = 0.1  # of the finished runs at either end, whose tokens per parameter are not offered again
MOST_OF_TARGET = 0.5  # of the target's compute: a dearer run might as well be the target
ROUNDING = 1e-12
REACH = 1e4  # how much less than the dearest candidate's compute the smallest has, where no run says


@dataclass(frozen=True)
class Candidates:
    """Parameters, tokens and cost in FLOPs of runs that could be trained, one entry a run."""

    n_c: Array
    d_c: Array
    cost_c: Array


def grid(
    most_flops: float,
    n: Array,
    d: Array,
    n_range: tuple[float, float] | None = None,
    tokens_per_param: tuple[float, float] | None = None,
) -> Candidates:
    """Runs of at most `most_flops` = 6 N D; the cheapest alone where all cost more. Without ranges sizes begin at the
    smallest finished run (`n`, `d`), and tokens per parameter span what most finished runs had, or 5 to 160."""
    low, high = tokens_per_param or _ratios(d / n)
    largest = float(np.sqrt(most_flops / (6 * low)))
    smallest = float(n.min()) if len(n) else largest / float(np.sqrt(REACH))
    n_low, n_high = n_range or (smallest, max(smallest, largest))
    n_c, ratio_c = (axis.ravel() for axis in np.meshgrid(_even(n_low, n_high, SIZES), _even(low, high, RATIOS)))
    cost_c = 6 * n_c**2 * ratio_c
    kept = cost_c <= max(most_flops, cost_c.min()) * (1 + ROUNDING)
    return Candidates(n_c[kept], (n_c * ratio_c)[kept], cost_c[kept])


def _ratios(finished: Array) -> tuple[float, float]:
    if not len(finished):
        return TOKENS_PER_PARAM
    low, high = np.quantile(finished, [TAILS, 1 - TAILS])
    return min(float(low), LEAST_SPAN[0]), max(float(high), LEAST_SPAN[1])


def read_candidates(path: Path, columns: Columns, cost: str | None) -> Candidates:
    """Candidates from a table with the columns of N and D that the runs have; cost 6 N D unless a column is named."""
    n, d = read_targets(path, columns)
    if cost is None:
        return Candidates(n, d, 6 * n * d)
    cost_c = read_form_targets(path, {"cost": cost})["cost"]
    if (cost_c <= 0).any():
        raise ValueError(f"{path}: column '{cost}' holds a cost of {cost_c.min():g} FLOPs; a run costs more than 0")
    return Candidates(n, d, cost_c)


def _even(low: float, high: float, count: int) -> Array:
    """From low to high in equal ratios; one where they are equal."""
    return np.unique(np.geomspace(low, high, count))
