"""What runs would teach about a goal, before any of them is trained.

All is Gaussian and linear about what is believed now, so the variance that a run leaves does not depend on its result
(Chaloner & Verdinelli 1995, section 2). Legend: c candidates, g goals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from isoflop.laws.forms import Array


@dataclass(frozen=True)
class Outlook:
    """Runs that could be bought, and how their results would go with the goals."""

    cost_c: Array  # in one unit, positive
    noise_c: Array  # variance of a result about what is shared with other runs, positive
    covariance_cc: Array  # of what is shared
    cross_cg: Array  # covariance of candidates and goals
    variance_g: Array  # of the goals, now
    floor_g: Array  # the part of it that no run can take away, such as the goal's own noise

    def __post_init__(self) -> None:
        candidates, goals = self.cross_cg.shape
        assert self.covariance_cc.shape == (candidates, candidates)
        assert self.cost_c.shape == self.noise_c.shape == (candidates,)
        assert self.variance_g.shape == self.floor_g.shape == (goals,)
        assert (self.cost_c > 0).all() and (self.noise_c > 0).all()

    def after(self, chosen: Sequence[int]) -> Array:
        """Variance of each goal, (g,), once these candidates have been trained; whatever their order."""
        picked = list(chosen)
        if not picked:
            return self.variance_g
        known = self.covariance_cc[np.ix_(picked, picked)] + np.diag(self.noise_c[picked])
        cross = self.cross_cg[picked]
        told: Array = self.variance_g - np.einsum("cg,cg->g", cross, np.linalg.solve(known, cross))
        return np.maximum(told, self.floor_g)


class Knowledge:
    """An outlook as candidates are added to it one at a time."""

    def __init__(self, outlook: Outlook, chosen: Sequence[int] = ()) -> None:
        self.outlook = outlook
        self.covariance_cc = outlook.covariance_cc.copy()
        self.cross_cg = outlook.cross_cg.copy()
        self.taken: list[int] = []
        for candidate in chosen:
            self.add(candidate)

    def gains(self) -> Array:
        """By how much each candidate (c,) would lower the goals' summed variance, next; 0 for one that is taken."""
        own = np.maximum(np.diag(self.covariance_cc), 0) + self.outlook.noise_c
        gain: Array = (self.cross_cg**2).sum(axis=1) / own
        gain[self.taken] = 0
        return gain

    def add(self, candidate: int) -> None:
        """Count a candidate as trained."""
        sd = np.sqrt(max(self.covariance_cc[candidate, candidate], 0) + self.outlook.noise_c[candidate])
        column, goals = self.covariance_cc[:, candidate] / sd, self.cross_cg[candidate] / sd
        self.cross_cg -= np.outer(column, goals)
        self.covariance_cc -= np.outer(column, column)
        self.taken.append(candidate)
