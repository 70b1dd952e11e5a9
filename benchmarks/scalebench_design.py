"""A sequential design within a budget: buy what should tell most of the expensive region, learn from it, buy again.

The law with its beliefs and a smooth discrepancy (a Gaussian process over the logarithms of the features) are joint
over pool and region, linear about the law as fitted so far, so `isoflop.decide.choose` can say what a set of runs would
leave of the region's variance. Of the region only the features are used.

Legend: n rows, p parameters, c candidates, g goals.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

from isoflop.decide.choose import choose
from isoflop.decide.outlook import Outlook
from scalebench_laws import Task

ROUNDS = 6  # in which the budget is spent
OFFERED = 300  # candidates at most that a round looks at, and half of the affordable ones at most, drawn by the seed
FEW = 30  # candidates that are all looked at
GOALS = 60  # rows of the region at most whose variance counts in a round
AT_ONCE = 60  # runs at most that a round buys
GUESS_ROWS = 10  # how many rows the guess of the scatter is worth
OUTLIERS = 4.0  # times the median residual, beyond which it does not count as scatter
STEP = 1e-4  # of a parameter, for derivatives
STEEPEST = 1e3  # derivative by a parameter, where a form leaves the range of numbers


@dataclass(frozen=True)
class Learnt:
    """A law fitted to the runs bought, and the scatter about it."""

    theta_p: np.ndarray
    scatter: float


class Region:
    """A task's law over the pool and the region of one group, as far as features go."""

    def __init__(self, task: Task, pool, region):
        self.task, self.x = task, np.concatenate([pool, region])
        self.law = next(law for law in task.laws if law.name == task.chosen)
        self.mean, self.sd = np.array(self.law.beliefs).T
        self.places = np.log(self.x) / np.maximum(np.log(pool).std(axis=0), 1e-9)

    def value(self, theta_p, rows):
        """The target, or its logarithm, (n,)."""
        with np.errstate(over="ignore", invalid="ignore"):
            value = self.law.value(theta_p, self.x[rows])
        return np.log(np.maximum(value, 1e-9)) if self.task.log else value

    def jacobian(self, theta_p, rows):
        """Its derivative by the parameters, in units of what is believed of each, (n, p)."""
        steps = STEP * np.eye(len(theta_p))
        columns = [(self.value(theta_p + h, rows) - self.value(theta_p - h, rows)) / (2 * STEP) for h in steps]
        return np.nan_to_num(np.clip(np.stack(columns, axis=1), -STEEPEST, STEEPEST)) * self.sd

    def stray(self, one, two, scatter):
        """Covariance of the discrepancy between rows."""
        apart = ((self.places[one][:, None] - self.places[two][None]) ** 2).sum(axis=-1)
        return (self.task.discrepancy * scatter) ** 2 * np.exp(-apart / 2)

    def learn(self, rows, told, before: Learnt) -> Learnt:
        """Fit the law to the rows bought, then judge the scatter; twice, where there are enough."""
        learnt = before
        for _ in range(2 if len(rows) >= 6 else min(1, len(rows))):
            theta_p = self._fit(rows, told, learnt)
            learnt = Learnt(theta_p, self._scatter(rows, told, theta_p, learnt.scatter))
        return learnt

    def _fit(self, rows, told, start: Learnt):
        def residuals(theta_p):
            off = (self.value(theta_p, rows) - told) / start.scatter
            return np.concatenate([np.nan_to_num(off, nan=1e3, posinf=1e3), (theta_p - self.mean) / self.sd])

        return least_squares(residuals, start.theta_p, loss="soft_l1", x_scale=self.sd, max_nfev=60).x

    def _scatter(self, rows, told, theta_p, scatter):
        off = told - self.value(theta_p, rows)
        most = OUTLIERS * np.median(np.abs(off)) + 1e-9
        squares = (np.clip(off, -most, most) ** 2).sum()
        told_of = np.linalg.svd(self.jacobian(theta_p, rows) / scatter, compute_uv=False) ** 2
        free = max(len(rows) - (told_of / (1 + told_of)).sum(), len(rows) / 3)
        guess = GUESS_ROWS * self.task.noise**2
        return float(np.sqrt((guess + squares * len(rows) / free) / (GUESS_ROWS + len(rows))))

    def outlook(self, learnt: Learnt, bought, offered, goals, cost_c) -> Outlook:
        """What the offered rows would tell of the goals beside those bought."""
        rows = np.concatenate([bought, offered, goals]).astype(int)
        slopes, n, c = self.jacobian(learnt.theta_p, rows), len(bought), len(offered)
        joint = slopes @ slopes.T + self.stray(rows, rows, learnt.scatter)
        known = joint[:n, :n] + learnt.scatter**2 * np.eye(n)
        joint = joint[n:, n:] - joint[n:, :n] @ np.linalg.solve(known, joint[:n, n:])
        return Outlook(
            cost_c=cost_c,
            noise_c=np.full(c, learnt.scatter**2),
            covariance_cc=joint[:c, :c],
            cross_cg=joint[:c, c:],
            variance_g=np.maximum(np.diag(joint)[c:], 0),
            floor_g=np.zeros(len(goals)),
        )

    def predict(self, learnt: Learnt, bought, told, rows):
        """The target at rows, with the discrepancy that the rows bought show."""
        value = self.value(learnt.theta_p, rows)
        if len(bought):
            known = self.stray(bought, bought, learnt.scatter) + learnt.scatter**2 * np.eye(len(bought))
            off = told - self.value(learnt.theta_p, bought)
            value = value + self.stray(rows, bought, learnt.scatter) @ np.linalg.solve(known, off)
        return np.exp(value) if self.task.log else value


def forecast(task: Task, pool, results, region, share: float, seed: int):
    """What the region's rows should reach, from runs of the pool that cost `share` of it at most; and those runs.

    `results` are looked at only where a run has been bought.
    """
    here, rng = Region(task, pool, region), np.random.default_rng(seed)
    cost, told = task.cost(pool), np.log(results) if task.log else results
    budget, bought = share * cost.sum(), []
    learnt = Learnt(here.mean, task.noise)
    for left in range(ROUNDS, 0, -1):
        bought += _round(here, learnt, cost, bought, budget - cost[bought].sum(), left, rng)
        learnt = here.learn(bought, told[bought], learnt)
    assert cost[bought].sum() <= budget * (1 + 1e-9)
    return here.predict(learnt, bought, told[bought], np.arange(len(pool), len(here.x))), bought


def _round(here: Region, learnt: Learnt, cost, bought, budget, left, rng) -> list[int]:
    """The first of the runs that the whole of what is left should buy: so many as spend this round's share of it."""
    offered = np.setdiff1d(np.flatnonzero(cost <= budget), bought)
    if not len(offered):
        return []
    most = min(OFFERED, max(FEW, len(offered) // 2))
    if len(offered) > most:
        offered = np.sort(rng.choice(offered, most, replace=False))
    goals = np.arange(len(cost), len(here.x))
    if len(goals) > GOALS:
        goals = rng.choice(goals, GOALS, replace=False)
    chosen = choose(here.outlook(learnt, bought, offered, goals, cost[offered]), budget, AT_ONCE, least_gain=0.0)
    spent = np.cumsum(cost[offered[chosen]])
    count = len(chosen) if left == 1 else int(np.searchsorted(spent, budget / left)) + 1
    return offered[chosen[:count]].tolist()
