"""Minimise sum_i w_i Huber_delta(log Lhat_i - log L_i) under bounds, for many starts or weightings at once.

Damped Newton with the exact Hessian of the Huber objective. At the customary delta of 1e-3 the objective is nearly
L1: its second derivative comes from the few rows within delta, and plain quasi-Newton methods crawl along kinks. Two
things make it quick: every step solves 5 x 5 systems for all starts together, and starts come down a staircase of
deltas, from least squares to the delta asked for, each landing close to the next.

Legend: S starts (or replicates), n rows, p parameters.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from isoflop.laws.forms import Array, Evaluation

STAIR = 4.0  # ratio of neighbouring deltas on the way down
STAIR_STEPS = 6  # iterations spent on each stair but the last
MAX_STEPS = 200
GRADIENT_TOLERANCE = 1e-9  # of sum_i w_i delta: what the gradient would be if every row pulled one way

RELATIVE_DECREASE = 1e-13  # a step that promises less than this part of the objective is rounding
SNAP = 1e-9  # parameters are of order one, so nearer to a bound than this is on it
FIRST_DAMPING = 1e-2
LEAST_DAMPING = 1e-3  # less gains nothing, and takes many rejected steps to come back from at a kink
TINY = 1e-300
RIDGE = 1e-13  # keeps 5 x 5 systems solvable where a parameter moves nothing
STIFFEST = 1e8  # curvature relative to the majorizer's; more is a parameter that moves nothing yet, and singular
SMALLEST_CURVATURE = 1e-16  # a parameter that moves log L by less than 1e-8 moves nothing


class Form(Protocol):
    """What the solver needs of a form (see `isoflop.laws.forms`)."""

    @property
    def size(self) -> int: ...
    @property
    def lower(self) -> tuple[float, ...]: ...
    @property
    def upper(self) -> tuple[float, ...]: ...
    @property
    def curvature_pairs(self) -> tuple[tuple[int, int], ...]: ...
    def evaluate(self, theta_Sp: Array, features: Array) -> Evaluation: ...
    def value(self, theta_Sp: Array, features: Array) -> Array: ...


@dataclass(frozen=True)
class Problem:
    """Rows to fit: features as the form wants them, log losses, and a weight for each row (and each replicate)."""

    form: Form
    features: Array
    log_loss: Array
    weights: Array  # (n,) or (S, n)
    held: npt.NDArray[np.bool_] | None = None  # (S, p): parameters that stay where they start, as profiles need

    def rows(self, index: npt.NDArray[np.intp]) -> "Problem":
        """The problem of a subset of replicates."""
        weights = self.weights if self.weights.ndim == 1 else self.weights[index]
        held = None if self.held is None else self.held[index]
        return Problem(self.form, self.features, self.log_loss, weights, held)


@dataclass(frozen=True)
class Solution:
    """Where S starts ended."""

    theta_Sp: Array
    objective_S: Array
    gradient_norm_S: Array  # projected on the bounds, per relative change of the parameters
    settled_S: npt.NDArray[np.bool_]  # gradient or promised decrease below tolerance
    steps: int


def huber(residual: Array, delta: float) -> Array:
    """Huber's loss: r^2/2 within delta, delta (|r| - delta/2) beyond."""
    clipped = np.clip(residual, -delta, delta)
    loss: Array = clipped * (residual - 0.5 * clipped)
    return loss


def objective(problem: Problem, theta_Sp: Array, delta: float) -> Array:
    """The weighted sum of Huber losses, shape (S,)."""
    residual = np.log(problem.form.value(theta_Sp, problem.features)) - problem.log_loss
    total: Array = (problem.weights * huber(residual, delta)).sum(axis=-1)
    return total


def solve(
    problem: Problem, start_Sp: Array, delta: float, *, staircase: bool = True, max_steps: int = MAX_STEPS
) -> Solution:
    """Minimise from every start. With `staircase`, come down from least squares; without, start at `delta` itself.

    `max_steps` bounds the iterations at `delta`; what has not settled by then says so.
    """
    theta, steps = _snap(problem.form, start_Sp), 0
    for stair in _stairs(problem, theta, delta) if staircase else ():
        theta, _, _, taken = _descend(problem, theta, stair, STAIR_STEPS)
        steps += taken
    theta, gradient, settled, taken = _descend(problem, theta, delta, max_steps)
    return Solution(theta, objective(problem, theta, delta), gradient, settled, steps + taken)


def _stairs(problem: Problem, theta: Array, delta: float) -> list[float]:
    """Deltas from where the best start is all least squares down to just above the delta asked for."""
    residual = np.log(problem.form.value(theta, problem.features)) - problem.log_loss
    stairs, stair = [], float(np.abs(residual).max(axis=1).min())
    while stair > STAIR * delta:
        stairs.append(stair)
        stair /= STAIR
    return stairs


@dataclass
class _Local:
    """The objective and its local models at S points; rows are replaced as points move."""

    value_S: Array
    gradient_Sp: Array
    hessian_Spp: Array
    majorizer_Spp: Array  # of the linearised residuals: iteratively reweighted least squares

    def replace(self, index: npt.NDArray[np.intp], new: "_Local", taken: npt.NDArray[np.bool_]) -> None:
        for mine, theirs in zip(vars(self).values(), vars(new).values(), strict=True):
            mine[index[taken]] = theirs[taken]

    def take(self, index: npt.NDArray[np.intp]) -> "_Local":
        return _Local(*(array[index] for array in vars(self).values()))


def _local(problem: Problem, theta: Array, delta: float) -> _Local:
    at = problem.form.evaluate(theta, problem.features)
    residual = np.log(at.value_Sn) - problem.log_loss
    pull = np.clip(residual, -delta, delta)
    size = np.abs(residual)
    weights = problem.weights
    weighted_pull = weights * pull
    jacobian, transposed = at.jacobian_Spn, at.jacobian_Spn.transpose(0, 2, 1)
    hessian = (jacobian * (weights * (size < delta) - weighted_pull)[:, None]) @ transposed
    sums = (at.curvature_SKn @ weighted_pull[..., None])[..., 0]
    for k, (i, j) in enumerate(problem.form.curvature_pairs):
        hessian[:, i, j] += sums[:, k]
        if i != j:
            hessian[:, j, i] += sums[:, k]
    majorizer = (jacobian * (weights * (delta / np.maximum(size, delta)))[:, None]) @ transposed
    value = (weighted_pull * (residual - 0.5 * pull)).sum(axis=-1)
    gradient = (jacobian @ weighted_pull[..., None])[..., 0]
    return _Local(value, gradient, hessian, majorizer)


_Descent = tuple[Array, Array, npt.NDArray[np.bool_], int]


def _descend(problem: Problem, start: Array, delta: float, max_steps: int) -> _Descent:
    """Damped Newton until every point settles, or `max_steps`. Returns points, gradient norms, settled, steps."""
    form, theta = problem.form, start.copy()
    at = _local(problem, theta, delta)
    norm = _projected_gradient(problem, theta, at)
    tolerance = GRADIENT_TOLERANCE * delta * problem.weights.sum(axis=-1)
    settled, damping = norm <= tolerance, np.full(len(theta), FIRST_DAMPING)
    for taken in range(max_steps):
        active = np.flatnonzero(~settled)
        if not len(active):
            return theta, norm, settled, taken
        here, there_problem = at.take(active), problem.rows(active)
        step, promised = _step(there_problem, theta[active], here, damping[active])
        moved = _snap(form, theta[active] + step)
        there = _local(there_problem, moved, delta)
        gain = (here.value_S - there.value_S) / np.maximum(promised, TINY)
        good = (gain > 1e-4) & (promised > 0)
        theta[active[good]] = moved[good]
        at.replace(active, there, good)
        norm[active] = _projected_gradient(there_problem, theta[active], at.take(active))
        rounding = (promised > 0) & (promised < RELATIVE_DECREASE * here.value_S)
        settled = settled | (norm <= tolerance)
        settled[active] |= rounding
        factor = np.where(good & (gain > 0.75), 0.1, np.where(good & (gain > 0.25), 1.0, 8.0))
        damping[active] = np.maximum(damping[active] * factor, LEAST_DAMPING)
    return theta, norm, settled, max_steps


def _snap(form: Form, theta: Array) -> Array:
    """Within the bounds, and on a bound where nearer to it than `SNAP`."""
    inside = np.clip(theta, form.lower, form.upper)
    inside = np.where(inside - form.lower < SNAP, form.lower, inside)
    snapped: Array = np.where(np.asarray(form.upper) - inside < SNAP, form.upper, inside)
    return snapped


def _stuck(problem: Problem, theta: Array, at: _Local) -> npt.NDArray[np.bool_]:
    """Parameters that cannot move: held, or on a bound that the gradient pushes against."""
    form = problem.form
    outward: npt.NDArray[np.bool_]
    outward = ((theta <= form.lower) & (at.gradient_Sp > 0)) | ((theta >= form.upper) & (at.gradient_Sp < 0))
    return outward if problem.held is None else outward | problem.held


def _projected_gradient(problem: Problem, theta: Array, at: _Local) -> Array:
    """The Euclidean norm of the gradient per unit of log-loss, without the parts that push against a bound."""
    scaled = np.where(_stuck(problem, theta, at), 0.0, at.gradient_Sp * np.maximum(np.abs(theta), 1e-3))
    norm: Array = np.sqrt((scaled**2).sum(axis=1))
    return norm


def _step(problem: Problem, theta: Array, at: _Local, damping: Array) -> tuple[Array, Array]:
    """The damped Newton step within the bounds, and the decrease its (convex) model promises.

    Parameters the step would push through a bound are moved onto it, and the rest solved again.
    """
    form = problem.form
    lower, upper = np.asarray(form.lower), np.asarray(form.upper)
    unit = 1.0 / np.sqrt(np.maximum(np.diagonal(at.majorizer_Spp, axis1=1, axis2=2), SMALLEST_CURVATURE))
    model = _model(at, damping, unit)
    pinned = _stuck(problem, theta, at)
    step = np.zeros_like(theta)
    for _ in range(form.size):
        step = _solve_free(model, at.gradient_Sp, unit, pinned, step)
        outside = ~pinned & ((theta + step < lower) | (theta + step > upper))
        if not outside.any():
            break
        step = np.where(outside, np.clip(theta + step, lower, upper) - theta, np.where(pinned, step, 0.0))
        pinned = pinned | outside
    scaled = step / unit
    curved = (scaled[:, None] @ model @ scaled[..., None])[:, 0, 0]
    return step, -(at.gradient_Sp * step).sum(axis=1) - 0.5 * curved


def _model(at: _Local, damping: Array, unit: Array) -> Array:
    """A convex stand-in for the Hessian, in scaled parameters.

    Eigenvalues are taken relative to the majorizer, whose geometry knows where the kinks are; negative curvature is
    turned over, and damping added: at damping 1 or more no step is longer than one of reweighted least squares.
    """
    outer = unit[:, :, None] * unit[:, None, :]
    factor = np.linalg.cholesky(at.majorizer_Spp * outer + 1e-9 * np.eye(unit.shape[1]))
    inverse = np.linalg.inv(factor)
    values, vectors = np.linalg.eigh(inverse @ (at.hessian_Spp * outer) @ inverse.transpose(0, 2, 1))
    basis = factor @ vectors
    stiffness = np.clip(np.abs(values), 1e-12, STIFFEST) + damping[:, None]
    model: Array = (basis * stiffness[:, None]) @ basis.transpose(0, 2, 1)
    model += RIDGE * np.eye(unit.shape[1])
    return model


def _solve_free(model: Array, gradient: Array, unit: Array, pinned: npt.NDArray[np.bool_], step: Array) -> Array:
    """Minimise the model over the free parameters, the pinned ones moving by `step`."""
    free = (~pinned).astype(float)
    moved = np.where(pinned, step / unit, 0.0)
    right = (gradient * unit + (model @ moved[..., None])[..., 0]) * free
    masked = model * (free[:, :, None] * free[:, None, :]) + pinned[:, :, None] * np.eye(free.shape[1])
    solved = np.linalg.solve(masked, -right[..., None])[..., 0]
    return np.where(pinned, step, solved * unit)
