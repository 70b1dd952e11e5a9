"""A law with a prior, and a discrepancy for what the law's form cannot say.

log L = log f(N, D) + g(log C, log D/N) + h(N) + k(log C) + noise

f is an `isoflop.laws.anchored.Anchored`, with beliefs about its parameters (`isoflop.laws.priors`); g is a smooth
Gaussian process over compute and tokens per parameter; h an offset that runs of one N share, as they are mostly of one
architecture; k one that runs of one level of compute share, as they are often of one schedule. This is the calibration
of a model with discrepancy of Kennedy & O'Hagan 2001. Given the sizes of g, h and k, f is fitted by penalised
generalised least squares with heavy-tailed noise, and all uncertainty is Gaussian (Laplace); the sizes are
averaged over by their evidence.

Legend: n rows, m targets, p parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import numpy.typing as npt
from scipy.linalg import cholesky, solve_triangular
from scipy.special import stdtrit

from isoflop.laws.anchored import Anchored
from isoflop.laws.forms import Array
from isoflop.laws.priors import PUBLIC, Belief, Prior

DEGREES = 6.0  # of the Student distribution that turns standard deviations into intervals
ROBUST = 4.0  # degrees of freedom of the noise of a run
ROUNDS = 3  # of weighing rows by how far they lie off
STEPS = 15  # of Gauss-Newton in a round
LONGEST_STEP = 1.5
SETTLED = 1e-3  # gain in twice the log posterior under which it is at its top
ANCHOR_SD = 0.2  # of the anchor's log loss: vague
UNKNOWN_SD = 1.0  # of it before any run: in no unit
MOST_ROWS = 400  # the work grows as the cube; beyond it every k-th row in order of compute is used
SHORT = 12  # rows under which the prior speaks louder than the table
SAME_N = 1e-4  # decades within which two N are one
LEVEL_LENGTH = 0.1  # decades of compute over which runs share the offset of a level


@dataclass(frozen=True)
class Sizes:
    """How large the discrepancy and the shared offsets are, in units of the noise."""

    discrepancy: float
    length: float  # decades of compute over which the discrepancy changes
    offset: float  # of runs of one N
    level: float  # of runs of one compute

    @property
    def variance(self) -> float:
        """Of all three, in units of noise^2."""
        return self.discrepancy**2 + self.offset**2 + self.level**2


@dataclass(frozen=True)
class Member:
    """The law fitted under one assumption about the sizes."""

    theta_p: Array
    covariance_pp: Array
    noise: float  # standard deviation of log loss
    factor_nn: Array  # Cholesky, of the covariance of the residuals in units of noise^2
    residual_n: Array  # whitened by it
    jacobian_np: Array  # whitened by it
    sizes: Sizes
    evidence: float  # log marginal likelihood, by Laplace


@dataclass(frozen=True)
class Posterior:
    """What runs and prior together say: a weighted average of members."""

    form: Anchored
    prior: Prior
    places: Array  # log10 C, log10 D/N and log10 N of the fitted rows, (3, n)
    members: tuple[Member, ...]
    weights: Array  # of the members
    notes: tuple[str, ...]

    def moments(self, n: Array, d: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the log loss of new runs, each of shape (m,)."""
        features, places = self.form.features(n, d), _places(n, d)
        told = [self._told(member, features, places) for member in self.members]
        means, variances = (np.stack(column) for column in zip(*told, strict=True))
        mean = self.weights @ means
        return mean, np.sqrt(self.weights @ (variances + (means - mean) ** 2))

    def mean(self, n: Array, d: Array, least: float = 0.0) -> Array:
        """Mean log loss of runs of sizes never trained, (m,), without a standard deviation and so much faster. Members
        of less than `least` of the weight are left out."""
        features, places = self.form.features(n, d), _places(n, d)
        places[2] = np.nan
        total, heard = np.zeros(len(n)), 0.0
        for weight, member in zip(self.weights.tolist(), self.members, strict=True):
            if weight >= least:
                pull = solve_triangular(member.factor_nn, member.residual_n, lower=True, trans="T")
                value, _ = self.form.evaluate(member.theta_p, features)
                total += weight * (value + pull @ _kernel(self.places, places, member.sizes, self.prior))
                heard += weight
        average: Array = total / heard
        return average

    def joint(self, n: Array, d: Array, bare: npt.NDArray[np.bool_] | None = None) -> tuple[Array, Array, float]:
        """What new runs share: mean (m,) and covariance (m, m) of their log losses but for each one's own noise, and
        the variance of that. Where `bare` (m,) is true the offset that runs of one N share is left out."""
        features, places = self.form.features(n, d), _places(n, d)
        if bare is not None:
            places[2, bare] = np.nan  # equal to no size, nor to itself
        means, covariances = np.zeros((len(self.members), len(n))), np.zeros((len(n), len(n)))
        for k, member in enumerate(self.members):
            means[k], moved, known = self._moved(member, features, places)
            own = _kernel(places, places, member.sizes, self.prior) - known.T @ known
            covariances += self.weights[k] * (moved @ member.covariance_pp @ moved.T + member.noise**2 * own)
        off = means - self.weights @ means
        noise = float(self.weights @ np.array([member.noise**2 for member in self.members]))
        return self.weights @ means, covariances + (self.weights * off.T) @ off, noise

    def _told(self, member: Member, features: Array, places: Array) -> tuple[Array, Array]:
        mean, moved, known = self._moved(member, features, places)
        spread = np.einsum("mp,pq,mq->m", moved, member.covariance_pp, moved)
        own = 1 + member.sizes.variance - (known**2).sum(axis=0)
        return mean, spread + member.noise**2 * own

    def _moved(self, member: Member, features: Array, places: Array) -> tuple[Array, Array, Array]:
        """Mean (m,), its derivative by the parameters (m, p), and the whitened covariance with fitted rows (n, m)."""
        value, jacobian = self.form.evaluate(member.theta_p, features)
        shared = _kernel(self.places, places, member.sizes, self.prior)
        known = solve_triangular(member.factor_nn, shared, lower=True)
        return value + known.T @ member.residual_n, jacobian - known.T @ member.jacobian_np, known


def posterior(n: Array, d: Array, loss: Array, prior: Prior = PUBLIC) -> Posterior:
    """Fit runs of N parameters, D tokens and a loss (any unit; entries positive, one a run; their order is no matter).

    Even two runs give a forecast, by the prior; `notes` say when it is the prior that speaks. Raises ValueError for
    entries that are not positive and finite.
    """
    require_runs(n, d, loss)
    notes = tuple(_notes(n, d))
    order = np.lexsort((loss, n, d, n * d))[:: -len(n) // MOST_ROWS]  # from the dearest, every k-th
    n, d, loss = n[order], d[order], loss[order]
    best = int(loss.argmin())
    form = Anchored(float(np.log(n[best])), float(np.log(d[best])))
    features, places, log_loss = form.features(n, d), _places(n, d), np.log(loss)
    beliefs = _beliefs(float(log_loss[best]), prior)
    members = tuple(_member(form, features, places, log_loss, size, prior, beliefs) for size in _sizes(prior))
    evidence = np.array([member.evidence for member in members])
    weights = np.exp(evidence - evidence.max())
    return Posterior(form, prior, places, members, weights / weights.sum(), notes)


def unseen(n: float, d: float, prior: Prior = PUBLIC) -> Posterior:
    """What the prior alone says, its law anchored at a run of N parameters and D tokens. The loss has no unit yet."""
    form, none = Anchored(float(np.log(n)), float(np.log(d))), np.zeros(0)
    mean, sd = _beliefs(0.0, prior)
    sd[0] = UNKNOWN_SD
    sizes = _sizes(prior)
    members = tuple(
        Member(mean, np.diag(sd**2), prior.noise, np.zeros((0, 0)), none, np.zeros((0, len(mean))), size, 0.0)
        for size in sizes
    )
    weights = np.full(len(sizes), 1 / len(sizes))
    return Posterior(form, prior, np.zeros((3, 0)), members, weights, ("no runs: all is from public tables",))


def _sizes(prior: Prior) -> list[Sizes]:
    """Every combination that is averaged over."""
    return [Sizes(*each) for each in product(prior.discrepancies, prior.lengths, prior.offsets, prior.levels)]


def quantile(level: float) -> float:
    """Half the width of a central interval of `level`, in standard deviations before the prior's stretch."""
    return float(stdtrit(DEGREES, (1 + level) / 2))


def require_runs(n: Array, d: Array, loss: Array) -> None:
    """ValueError for columns of different lengths, none, or entries that are not positive and finite."""
    if n.ndim != 1 or not n.shape == d.shape == loss.shape:
        raise ValueError(f"n, d and loss must be of one length; they have shapes {n.shape}, {d.shape} and {loss.shape}")
    if not len(n):
        raise ValueError("no runs: at least one is needed")
    for name, column in (("n", n), ("d", d), ("loss", loss)):
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            raise ValueError(f"{name}, entry {bad[0] + 1}: {column[bad[0]]} is not a positive, finite number")


def _notes(n: Array, d: Array) -> list[str]:
    """Where the prior speaks, and not the table."""
    told, points = [], len(np.unique(np.stack([n, d]), axis=1).T)
    if points < SHORT:
        told.append(f"few different runs ({points}): exponents and floor are mostly those of public tables")
    alike = [name for name, column in (("N", n), ("D", d)) if np.ptp(np.log10(column)) < SAME_N]
    told += [f"every run has the same {name}: its exponent is that of public tables" for name in alike]
    decades = np.ptp(np.log10(n * d))
    if decades < 0.5 and not alike:
        told.append(f"{decades:.2f} decades of compute: how loss falls with it is taken from public tables")
    return told


def _places(n: Array, d: Array) -> Array:
    return np.stack([np.log10(6 * n * d), np.log10(d / n), np.log10(n)])


def _kernel(one: Array, two: Array, sizes: Sizes, prior: Prior) -> Array:
    """Covariance of discrepancy and offsets between places, in units of noise^2, shape (n, m)."""
    compute, ratio, size = one[:, :, None] - two[:, None]
    smooth = np.exp(-((compute / sizes.length) ** 2 + (ratio / prior.ratio_length) ** 2) / 2)
    level = np.exp(-((compute / LEVEL_LENGTH) ** 2) / 2)
    covariance: Array = sizes.discrepancy**2 * smooth + sizes.level**2 * level
    covariance += sizes.offset**2 * (np.abs(size) < SAME_N)
    return covariance


def _beliefs(log_loss: float, prior: Prior) -> tuple[Array, Array]:
    """Means and standard deviations of the parameters."""
    believed: Sequence[Belief] = (
        Belief(log_loss, ANCHOR_SD),
        prior.floor,
        prior.split,
        prior.alpha,
        prior.beta,
        prior.gamma,
    )
    return np.array([b.mean for b in believed]), np.array([b.sd for b in believed])


def _member(
    form: Anchored,
    features: Array,
    places: Array,
    log_loss: Array,
    sizes: Sizes,
    prior: Prior,
    beliefs: tuple[Array, Array],
) -> Member:
    """Fit under given sizes; rows far off are weighed down, as their noise is taken for heavy-tailed (Student)."""
    shared, rows = _kernel(places, places, sizes, prior), len(log_loss)
    theta, noisy, variance = beliefs[0], np.ones(rows), prior.noise**2
    for _ in range(ROUNDS):
        factor = cholesky(shared + np.diag(noisy), lower=True)
        theta, variance = _descend(form, features, log_loss, factor, theta, variance, prior, beliefs)
        value, jacobian = form.evaluate(theta, features)
        white, residual = _whiten(factor, jacobian), _whiten(factor, log_loss - value)
        off = noisy * solve_triangular(factor, residual, lower=True, trans="T")
        noisy = (ROBUST + off**2 / variance) / (ROBUST + 1)
    precision = white.T @ white / variance + np.diag(beliefs[1] ** -2)
    distance = ((theta - beliefs[0]) / beliefs[1]) ** 2
    evidence = -(residual @ residual / variance + rows * np.log(variance) + distance.sum()) / 2
    evidence -= np.log(np.diag(factor)).sum() + np.linalg.slogdet(precision)[1] / 2
    covariance = np.asarray(np.linalg.inv(precision), dtype=float)
    return Member(theta, covariance, float(np.sqrt(variance)), factor, residual, white, sizes, float(evidence))


def _whiten(factor: Array, column: Array) -> Array:
    whitened: Array = solve_triangular(factor, column, lower=True, check_finite=False)
    return whitened


def _descend(
    form: Anchored,
    features: Array,
    log_loss: Array,
    factor: Array,
    theta: Array,
    variance: float,
    prior: Prior,
    beliefs: tuple[Array, Array],
) -> tuple[Array, float]:
    """Damped Gauss-Newton on the log posterior, the variance of the noise estimated between the steps."""
    mean, sd = beliefs
    guess, count, damping = prior.noise_rows * prior.noise**2, len(log_loss) + prior.noise_rows, 1e-2

    def at(theta: Array) -> tuple[Array, Array]:
        value, jacobian = form.evaluate(theta, features)
        return _whiten(factor, log_loss - value), jacobian

    def cost(theta: Array, residual: Array) -> float:
        return float(residual @ residual / variance + (((theta - mean) / sd) ** 2).sum())

    residual, jacobian = at(theta)
    for _ in range(STEPS):
        variance = float((residual @ residual + guess) / count)
        white = _whiten(factor, jacobian)
        hessian = white.T @ white / variance + np.diag(sd**-2)
        downhill = white.T @ residual / variance - (theta - mean) / sd**2
        damped = hessian + damping * np.diag(np.diag(hessian))
        moved = theta + np.clip(np.linalg.solve(damped, downhill), -LONGEST_STEP, LONGEST_STEP)
        residual_there, jacobian_there = at(moved)
        gain = cost(theta, residual) - cost(moved, residual_there)
        if gain <= 0:
            damping *= 10
            continue
        theta, residual, jacobian, damping = moved, residual_there, jacobian_there, max(damping / 10, 1e-6)
        if gain < SETTLED:
            break
    return theta, float((residual @ residual + guess) / count)
