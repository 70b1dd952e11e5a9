"""Two ladders fitted at once: one law moved by a multiplier of N and of D, or a law for each.

Parameters are free of units and unbounded, with weak beliefs that keep a short ladder's fit finite. Every function is
batched over weightings of the rows, so that leaving out each cluster in turn costs one solve.

Legend: S weightings, n rows, p parameters. Own parameters of a law, in this order: log of the loss at the anchor, logit
of the irreducible share of it, logit of the N term's share of the rest, log alpha, log beta.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from isoflop.laws.forms import Array
from isoflop.laws.optimum import Law

OWN = 5
SHARED = 7  # own parameters, then log of the multiplier of compute, and log of that of N less that of D
SEPARATE = 10  # own parameters of A, then of B
BELIEFS = np.array([[0.0, 10.0], [0.0, 1.0], [0.0, 1.5], [-1.1, 0.6], [-1.1, 0.6]])  # mean and sd of own parameters
MULTIPLIER_SD = 10.0  # of its logarithm: vague
SPLIT_SD = 0.7  # of log (multiplier of N) - log (multiplier of D): a change helps both about alike
NOISE, NOISE_ROWS = 0.003, 2.0  # what the scatter of log loss is taken for, and how many rows that is worth
ROUNDS = 5  # of weights and noise
NEAR = 0.04  # of log loss above the best at a compute: there a row counts half
ANY_RATIO = (-40.0, 40.0)  # of log D/N
STEPS = 60
ENOUGH = 1e-12  # relative decrease under which a fit has settled

Kind = Literal["shared", "separate"]


@dataclass(frozen=True)
class Ladders:
    """Rows of both ladders, those of A first."""

    log_n: Array
    log_d: Array
    log_loss: Array
    is_b: Array  # 0 or 1
    log_n0: float
    log_d0: float

    @classmethod
    def joined(cls, a: tuple[Array, Array, Array], b: tuple[Array, Array, Array]) -> "Ladders":
        """Of (N, D, loss) of A and of B; the anchor lies in the middle of all rows."""
        n, d, loss = (np.log(np.concatenate(pair)) for pair in zip(a, b, strict=True))
        is_b = np.repeat([0.0, 1.0], [len(a[0]), len(b[0])])
        return cls(n, d, loss, is_b, float(np.median(n)), float(np.median(d)))


def beliefs(rows: Ladders, kind: Kind) -> tuple[Array, Array]:
    """Means and standard deviations of the parameters, each (p,)."""
    own = BELIEFS.copy()
    own[0, 0] = np.median(rows.log_loss)
    moved = np.array([[0.0, MULTIPLIER_SD], [0.0, SPLIT_SD]])
    told = np.concatenate([own, moved if kind == "shared" else own])
    return told[:, 0], told[:, 1]


def log_value(theta_Sp: Array, x_Sn: Array, y_Sn: Array) -> tuple[Array, Array]:
    """log L at log N and log D from the anchor, (S, n), and its derivatives by own parameters, x and y, (S, 7, n)."""
    level, floor, split, log_alpha, log_beta = theta_Sp.T[:, :, None]
    e, s = _logistic(floor), _logistic(split)
    alpha, beta = np.exp(log_alpha), np.exp(log_beta)
    of_n, of_d = np.exp(-alpha * x_Sn), np.exp(-beta * y_Sn)
    reducible = s * of_n + (1 - s) * of_d
    value = e + (1 - e) * reducible
    n_part, d_part = (1 - e) * s * of_n / value, (1 - e) * (1 - s) * of_d / value
    jacobian = np.stack(
        [
            np.ones_like(value),
            e * (1 - e) * (1 - reducible) / value,
            (1 - e) * s * (1 - s) * (of_n - of_d) / value,
            -alpha * x_Sn * n_part,
            -beta * y_Sn * d_part,
            -alpha * n_part,
            -beta * d_part,
        ],
        axis=1,
    )
    return level + np.log(value), jacobian


def evaluate(rows: Ladders, theta_Sp: Array, kind: Kind) -> tuple[Array, Array]:
    """Predicted log losses of the rows, (S, n), and their derivatives by the parameters, (S, p, n)."""
    x, y, b = rows.log_n - rows.log_n0, rows.log_d - rows.log_d0, rows.is_b
    if kind == "shared":
        # Half the move for B and half, the other way, for A: which of them is called A must not matter to the beliefs.
        both, less, side = theta_Sp[:, OWN, None] / 2, theta_Sp[:, OWN + 1, None] / 2, b - 0.5
        value, full = log_value(theta_Sp[:, :OWN], x + side * (both + less), y + side * (both - less))
        moves = [side * (full[:, 5] + full[:, 6]) / 2, side * (full[:, 5] - full[:, 6]) / 2]
        return value, np.concatenate([full[:, :OWN], np.stack(moves, axis=1)], axis=1)
    of_a, full_a = log_value(theta_Sp[:, :OWN], x[None], y[None])
    of_b, full_b = log_value(theta_Sp[:, OWN:], x[None], y[None])
    jacobian = np.concatenate([full_a[:, :OWN] * (1 - b), full_b[:, :OWN] * b], axis=1)
    return np.where(b > 0, of_b, of_a), jacobian


def fit(rows: Ladders, kind: Kind) -> tuple[Array, Array, float]:
    """The best parameters (p,), the weights of the rows (n,) and the standard deviation of log loss at weight 1."""
    mean, _ = beliefs(rows, kind)
    theta, weights, noise = mean[None], np.ones(len(rows.log_loss)), NOISE
    if kind == "separate":
        shared, weights, noise = fit(rows, "shared")
        theta = own_of_both(shared[None])
    for _ in range(ROUNDS):
        theta = refit(rows, kind, theta, weights[None], noise)
        residual = rows.log_loss - evaluate(rows, theta, kind)[0][0]
        spare = max(len(residual) - len(mean), 1) * float(weights.mean())
        noise = float(np.sqrt((weights @ residual**2 + NOISE_ROWS * NOISE**2) / (spare + NOISE_ROWS)))
        weights = nearness(rows, own_of_both(theta) if kind == "shared" else theta)
    return theta[0], weights, noise


def nearness(rows: Ladders, both_1p: Array) -> Array:
    """How much each row counts, (n,): less the farther its N lies off the best one at its compute, by the law itself.

    No law of two terms holds from a hundredth to a thousand tokens a parameter; what is asked is how it does near the
    best. The distance is that of predicted losses, not of measured ones, so that luck does not choose rows.
    """
    flops = np.log(6) + rows.log_n + rows.log_d
    x, y = rows.log_n - rows.log_n0, rows.log_d - rows.log_d0
    of_a, of_b = (
        log_value(own, x[None], y[None])[0][0] - best_log_loss(rows, own, flops, ANY_RATIO)[0]
        for own in (both_1p[:, :OWN], both_1p[:, OWN:])
    )
    weights: Array = 1 / (1 + (np.where(rows.is_b > 0, of_b, of_a) / NEAR) ** 2)
    return weights


def refit(rows: Ladders, kind: Kind, start_Sp: Array, weights_Sn: Array, noise: float) -> Array:
    """Damped Gauss-Newton under every weighting; `noise` sets how much the beliefs count beside the rows."""
    mean, sd = beliefs(rows, kind)
    precision = sd**-2
    theta, damping = start_Sp.copy(), np.full(len(start_Sp), 1e-3)

    def cost(theta_Sp: Array, residual: Array) -> Array:
        off: Array = (weights_Sn * residual**2).sum(axis=1) / noise**2
        total: Array = off + ((theta_Sp - mean) ** 2 * precision).sum(axis=1)
        return total

    value, jacobian = evaluate(rows, theta, kind)
    residual = rows.log_loss - value
    before = cost(theta, residual)
    for _ in range(STEPS):
        weighted = jacobian * weights_Sn[:, None] / noise**2
        hessian = weighted @ jacobian.transpose(0, 2, 1) + np.diag(precision)
        downhill = (weighted @ residual[..., None])[..., 0] - (theta - mean) * precision
        diagonal = np.einsum("spp->sp", hessian)
        damped = hessian + (damping[:, None] * diagonal)[:, :, None] * np.eye(len(mean))
        moved = theta + np.clip(np.linalg.solve(damped, downhill[..., None])[..., 0], -1.5, 1.5)
        value_there, jacobian_there = evaluate(rows, moved, kind)
        residual_there = rows.log_loss - value_there
        after = cost(moved, residual_there)
        good = after < before
        settled = np.abs(before - after) <= ENOUGH * before
        theta[good], jacobian[good], residual[good] = moved[good], jacobian_there[good], residual_there[good]
        before = np.where(good, after, before)
        damping = np.clip(np.where(good, damping / 10, damping * 10), 1e-9, 1e9)
        if settled.all():
            break
    return theta


def own_of_both(shared_Sp: Array) -> Array:
    """The two laws, (S, 10), that shared parameters (S, 7) mean."""
    return np.concatenate([_moved(shared_Sp, -0.5), _moved(shared_Sp, 0.5)], axis=1)


def _moved(shared_Sp: Array, side: float) -> Array:
    """Own parameters of the law whose N and D are multiplied by so much of the whole move."""
    level, floor, split, log_alpha, log_beta, both, less = shared_Sp.T
    e, s = _logistic(floor), _logistic(split)
    of_n = (1 - e) * s * np.exp(-np.exp(log_alpha) * side * (both + less) / 2)
    of_d = (1 - e) * (1 - s) * np.exp(-np.exp(log_beta) * side * (both - less) / 2)
    told = [level + np.log(e + of_n + of_d), np.log(e / (of_n + of_d)), np.log(of_n / of_d), log_alpha, log_beta]
    return np.stack(told, axis=1)


def best_log_loss(rows: Ladders, own_Sp: Array, log_flops: Array, log_ratios: tuple[float, float]) -> Array:
    """The lowest log loss at budgets (m,) with C = 6 N D and log D/N within `log_ratios`, shape (S, m).

    The unconstrained optimum is in closed form (Hoffmann et al. 2022, eq. 4), and the loss has a single minimum along
    a budget, so the constrained one is the nearest allowed point.
    """
    _, _, split, log_alpha, log_beta = own_Sp.T[:, :, None]
    alpha, beta = np.exp(log_alpha), np.exp(log_beta)
    product = log_flops - np.log(6)
    from_anchor = product - rows.log_n0 - rows.log_d0
    x = (log_alpha - log_beta + split + beta * from_anchor) / (alpha + beta)
    low, high = ((product - ratio) / 2 - rows.log_n0 for ratio in (log_ratios[1], log_ratios[0]))
    x = np.clip(x, low, high)
    return log_value(own_Sp, x, from_anchor - x)[0]


def published(rows: Ladders, own: Array) -> Law:
    """One law in the units of the table."""
    level, floor, split, log_alpha, log_beta = (float(value) for value in own)
    e, s = 1 / (1 + np.exp(-floor)), 1 / (1 + np.exp(-split))
    alpha, beta, scale = np.exp(log_alpha), np.exp(log_beta), np.exp(level) * (1 - e)
    A, B = scale * s * np.exp(alpha * rows.log_n0), scale * (1 - s) * np.exp(beta * rows.log_d0)
    return Law(E=float(np.exp(level) * e), A=float(A), B=float(B), alpha=float(alpha), beta=float(beta))


def _logistic(x: Array) -> Array:
    told: Array = 1 / (1 + np.exp(-x))
    return told
