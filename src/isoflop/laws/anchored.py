"""A law whose parameters are free of units, so that beliefs about them carry over from table to table.

Legend: n rows, p parameters.
"""

from dataclasses import dataclass

import numpy as np

from isoflop.laws.forms import Array

LARGEST_LOG = 50.0  # of the reducible loss over the anchor's: beyond it a step of the solver is refused anyway


@dataclass(frozen=True)
class Anchored:
    """L = L0 (e + (1 - e) R), R a mean of power gamma of s (N/N0)^-alpha and (1 - s) (D/D0)^-beta, scaled to 1 at the
    anchor (N0, D0).

    With gamma = 1 this is L = E + A/N^alpha + B/D^beta (Hoffmann et al. 2022, eq. 2); with e = 0, gamma = beta and
    alpha = alpha_N gamma / beta it is the joint law of Kaplan et al. 2020, eq. 1.5. Parameters are
    (log L0, logit e, logit s, log alpha, log beta, log gamma).
    """

    log_n0: float
    log_d0: float

    def features(self, n: Array, d: Array) -> Array:
        """log N and log D counted from the anchor, shape (2, n)."""
        return np.stack([np.log(n) - self.log_n0, np.log(d) - self.log_d0])

    def evaluate(self, theta_p: Array, features: Array) -> tuple[Array, Array]:
        """log L, shape (n,), and its derivatives by the parameters, (n, 6)."""
        log_l0, floor, split, *logs = theta_p
        e = 1 / (1 + np.exp(-floor))
        alpha, beta, gamma = np.exp(logs)
        here = np.array([[-np.logaddexp(0, -split)], [-np.logaddexp(0, split)]])
        slope = -np.array([[alpha], [beta]]) * features
        terms = here + slope
        joined, joined0 = np.logaddexp(*(terms / gamma)), np.logaddexp(*(here / gamma))
        weight, weight0 = np.exp(terms / gamma - joined), np.exp(here / gamma - joined0)
        reducible = np.exp(np.minimum(gamma * (joined - joined0), LARGEST_LOG))
        value = e + (1 - e) * reducible
        share = (1 - e) * reducible / value
        mixed, mixed0 = (weight * terms).sum(axis=0), (weight0 * here).sum(axis=0)
        by_gamma = gamma * (joined - joined0) - mixed + mixed0
        by_term = [weight[0] - weight0[0], slope[0] * weight[0], slope[1] * weight[1], by_gamma]
        by_floor = e * (1 - e) * (1 - reducible) / value
        jacobian = np.column_stack([np.ones(len(value)), by_floor, *(share * column for column in by_term)])
        return log_l0 + np.log(value), jacobian
