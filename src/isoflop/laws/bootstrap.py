"""Bootstrap by run: resample rows (or clusters of rows) with replacement and refit, all replicates at once.

A resample is a vector of counts, so every replicate is the same table with other weights, and one batched solve,
started at the optimum, fits them all (Efron 1979; pairs resampling, as in Besiroglu et al. 2024).
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from isoflop.laws.forms import Array
from isoflop.laws.solver import Problem, solve

CHUNK = 500  # replicates solved together: bounds memory, and keeps the arrays in cache
CHECKED = 8  # replicates solved again from starts that know nothing of the optimum
SAME = 1e-6  # relative difference of objectives that still counts as the same optimum


@dataclass(frozen=True)
class Bootstrap:
    """Refits of resampled tables, R of them."""

    theta_Rp: Array  # internal parameters
    seed: int
    clusters: int | None  # how many clusters were resampled; None: rows
    unconverged: float  # share of replicates whose solver did not settle
    at_bound: float  # share with a parameter on a bound
    bound_p: Array  # for each parameter, the share with it on a bound
    checked: int  # replicates solved again from every start of the fit
    missed: int  # of those, how many had a better optimum elsewhere (they keep the better one)


def resample(rows: int, replicates: int, seed: int, labels: npt.NDArray[np.int64] | None = None) -> Array:
    """Counts of every row in every replicate, shape (replicates, rows). `labels` number the clusters from 0."""
    units = rows if labels is None else int(labels.max()) + 1
    counts = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=replicates)
    drawn: Array = (counts if labels is None else counts[:, labels]).astype(float)
    return drawn


def bootstrap(
    problem: Problem,
    optimum: Array,
    starts: Array,
    delta: float,
    replicates: int,
    seed: int,
    labels: npt.NDArray[np.int64] | None = None,
    kept_rows: int = 0,
) -> Bootstrap:
    """Refit `replicates` resamples from `optimum` (p,); check some of them from `starts` (S, p).

    The last `kept_rows` of the problem, those of priors, are in every resample once.
    """
    drawn = resample(len(problem.log_loss) - kept_rows, replicates, seed, labels)
    weights = np.concatenate([drawn, np.ones((replicates, kept_rows))], axis=1) * problem.weights
    theta = np.empty((replicates, len(optimum)))
    settled, objective = np.empty(replicates, dtype=bool), np.empty(replicates)
    for first in range(0, replicates, CHUNK):
        part = slice(first, min(first + CHUNK, replicates))
        batch = replace(problem, weights=weights[part])
        solved = solve(batch, np.repeat(optimum[None], len(batch.weights), axis=0), delta, staircase=False)
        theta[part], settled[part], objective[part] = solved.theta_Sp, solved.settled_S, solved.objective_S
    checked = min(CHECKED, replicates)
    missed = _check(replace(problem, weights=weights[:checked]), starts, delta, theta[:checked], objective[:checked])
    bounds = (theta <= problem.form.lower) | (theta >= problem.form.upper)
    return Bootstrap(
        theta_Rp=theta,
        seed=seed,
        clusters=None if labels is None else int(labels.max()) + 1,
        unconverged=float(1 - settled.mean()),
        at_bound=float(bounds.any(axis=1).mean()),
        bound_p=bounds.mean(axis=0),
        checked=checked,
        missed=missed,
    )


def _check(problem: Problem, starts: Array, delta: float, theta: Array, objective: Array) -> int:
    """Solve these replicates from every start; write better optima into `theta`, and count them."""
    replicates, count = len(theta), len(starts)
    every = replace(problem, weights=np.repeat(problem.weights, count, axis=0))
    again = solve(every, np.tile(starts, (replicates, 1)), delta)
    found, points = again.objective_S.reshape(replicates, count), again.theta_Sp.reshape(replicates, count, -1)
    best = found.argmin(axis=1)
    rows = np.arange(replicates)
    better = found[rows, best] < objective * (1 - SAME)
    theta[better] = points[rows, best][better]
    return int(better.sum())
