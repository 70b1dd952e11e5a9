"""Profile intervals: how far a quantity can be pushed before the best fit that is left becomes too bad.

With Huber's loss rho and psi its derivative, 2 (min objective with the quantity held - min objective) / lambda tends to
chi-squared with one degree of freedom for independent errors, where lambda = E[psi^2] / E[psi'] (the likelihood-ratio
test of M-estimates, Heritier & Ronchetti 1994). Least squares has lambda = sigma^2, the usual profile likelihood; for
errors that are not alike lambda is the parameter's own, by its sandwich variance over the naive one.
Nothing is linearised: a long tail shows, and an end that is never reached is open.

Legend: K ends sought at once, p parameters.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

from isoflop.laws.forms import Array, PowerSum
from isoflop.laws.formula import Coefficient, Formula, FormulaForm
from isoflop.laws.solver import Problem, objective, solve

LEVEL = 0.9
ROUNDS = 14  # of secant steps on the square root of the excess, which is nearly straight
CLOSE = 0.02  # of the excess asked for: an end to a hundredth of its width
FAR = 8.0  # longest stretch of a step
STEPS = 40
TINY = 1e-300
RELATIVE_ROUNDING = 1e-9
EXPONENTS = (0.0, 10.0)


class Profile(msgspec.Struct, frozen=True):
    """An interval by profile; an end is None where the data set none (or the parameter's bound does)."""

    low: float | None
    high: float | None
    level: float


@dataclass(frozen=True)
class Held:
    """One quantity as a parameter of its form: which one, and how its value is told."""

    name: str
    problem: Problem
    theta: Array  # the optimum in this form's parameters
    index: int
    logarithm: bool  # the parameter is the quantity's logarithm


def slope_of_pull(residuals: Array, delta: float, parameters: int) -> float:
    """E[psi'] of residuals (n,): the share within delta, over a wider window where delta is far below the noise.

    As many rows as there are parameters lie near the law because it went through them, and count for nothing.
    """
    spare = max(len(residuals) - parameters, 1)
    spread = 1.4826 * float(np.median(np.abs(residuals)) * np.sqrt(len(residuals) / spare))
    window = max(delta, 1.06 * spread * len(residuals) ** -0.2)
    near = max(int((np.abs(residuals) < window).sum()) - parameters, 1)
    return float(near / spare * delta / window)


def dispersion(held: "Held", delta: float, labels: npt.NDArray[np.int64] | None = None) -> tuple[float, float]:
    """lambda for one parameter, and its standard error at the optimum, by the sandwich H^-1 J H^-1.

    J sums the outer products of the scores, of whole clusters where `labels` name them, so that runs whose errors are
    wilder where they matter more, and checkpoints of one run, widen the interval as they do a bootstrap. A parameter
    on a bound is left out of the account, but for the held one.
    """
    form, theta = held.problem.form, held.theta
    at = form.evaluate(theta[None], held.problem.features)
    residuals = np.log(at.value_Sn[0]) - held.problem.log_loss
    inside = (theta > form.lower) & (theta < form.upper)
    free = [k for k in range(form.size) if k == held.index or inside[k]]
    jacobian = at.jacobian_Spn[0][free]
    pull, size = np.clip(residuals, -delta, delta), len(free)
    scores = (jacobian * (held.problem.weights * pull)).T
    if labels is not None:
        scores = np.stack([np.bincount(labels, column) for column in scores.T], axis=1)
    units = len(scores)
    slope = slope_of_pull(residuals, delta, size)
    bread = slope * (jacobian * held.problem.weights) @ jacobian.T
    inverse, k = np.linalg.pinv(bread, hermitian=True), free.index(held.index)
    spare = max(units - size, 1)
    variance = float((inverse @ (scores.T @ scores) @ inverse)[k, k]) * units / spare
    if labels is None:  # few rows of much leverage have small residuals: alike errors are the least to assume
        variance = max(variance, float((pull**2).mean() / slope * inverse[k, k]) * units / spare)
    return variance / max(float(inverse[k, k]), TINY), float(np.sqrt(max(variance, 0.0)))


def profiles(
    form: PowerSum,
    theta: Array,
    rows: Problem,
    n: Array,
    d: Array,
    flops: float,
    delta: float,
    labels: npt.NDArray[np.int64] | None = None,
) -> dict[str, Profile]:
    """Intervals of E, A, B, alpha, beta, and of D/N and N at the optimum of `flops`.

    Empty where a term is at its bound (the law has then no optimum, and its amplitude no exponent), and where no row
    is left over to judge by.
    """
    if len(n) <= form.size or (theta[1:] <= 0).any() or (theta[3:] >= form.upper[3]).any():
        return {}
    held = [Held(name, rows, theta, k, False) for name, k in (("E", 0), ("alpha", 3), ("beta", 4))]
    held += [*_amplitudes(form, theta, rows, n, d), _ratio(form, theta, rows, n, d, flops)]
    found = {one.name: profile(one, delta, labels) for one in held}
    ratio = found["tokens_per_parameter"]
    low, high = (None if end is None else float(np.sqrt(flops / 6 / end)) for end in (ratio.high, ratio.low))
    found["n_optimal"] = Profile(low, high, ratio.level)
    size, E = float(np.exp(form.log_loss0)), found["E"]
    low, high = (None if end is None else end * size for end in (E.low, E.high))
    found["E"] = Profile(low, high, E.level)
    order = ("E", "A", "B", "alpha", "beta", "tokens_per_parameter", "n_optimal")
    return {name: found[name] for name in order}


def _amplitudes(form: PowerSum, theta: Array, rows: Problem, n: Array, d: Array) -> list[Held]:
    """A and B themselves, as logarithms: inside they are hidden in the size of their terms."""
    E, A, B, alpha, beta = form.to_published(theta)
    exponents = (Coefficient("alpha", *EXPONENTS), Coefficient("beta", *EXPONENTS))
    text = "E + exp(A) / N^alpha + exp(B) / D^beta"
    free = [Coefficient(name, -np.inf) for name in "AB"]
    formula = Formula("amplitudes", text, ("N", "D"), (Coefficient("E"), *free, *exponents))
    point = {"E": E, "A": np.log(A), "B": np.log(B), "alpha": alpha, "beta": beta}
    return [_held(name, formula, point, name, rows, n, d, form.log_loss0) for name in "AB"]


def _ratio(form: PowerSum, theta: Array, rows: Problem, n: Array, d: Array, flops: float) -> Held:
    """The logarithm t of D*/N* as a parameter in B's place.

    At the optimum alpha A / N*^alpha = beta B / D*^beta with N* = sqrt(C/6) exp(-t/2), D* = sqrt(C/6) exp(t/2).
    """
    E, A, B, alpha, beta = form.to_published(theta)
    half = 0.5 * float(np.log(flops / 6))
    log_g = (np.log(alpha * A) - np.log(beta * B)) / (alpha + beta)
    log_n = log_g + beta / (alpha + beta) * 2 * half
    text = f"E + A*exp(-alpha*log(N)) + A*(alpha/beta)*exp(-alpha*({half!r} - t/2) + beta*({half!r} + t/2 - log(D)))"
    coefficients = (
        Coefficient("E"),
        Coefficient("A", unit="N^alpha"),
        Coefficient("t", -np.inf),
        Coefficient("alpha", 1e-3, EXPONENTS[1]),
        Coefficient("beta", 1e-3, EXPONENTS[1]),
    )
    point = {"E": E, "A": A, "t": 2 * (half - log_n), "alpha": alpha, "beta": beta}
    formula = Formula("ratio", text, ("N", "D"), coefficients)
    return _held("tokens_per_parameter", formula, point, "t", rows, n, d, form.log_loss0)


def _held(
    name: str,
    formula: Formula,
    point: Mapping[str, float],
    of: str,
    rows: Problem,
    n: Array,
    d: Array,
    log_loss0: float,
) -> Held:
    columns = {"N": n, "D": d}
    form = FormulaForm.scaled(formula, columns, np.full(len(n), np.exp(log_loss0)))
    theta = _internal(form, np.array([point[one] for one in form.parameters], float))
    problem = Problem(form, form.features(columns), rows.log_loss, rows.weights)
    return Held(name, problem, theta, form.parameters.index(of), True)


def _internal(form: FormulaForm, published: Array) -> Array:
    """Internal parameters of published ones: each published one is a multiple of its own internal one."""
    ones = published.copy()
    scaled = [k for k, one in enumerate(form.published) if form.parameters[k] != getattr(one, "name", None)]
    ones[scaled] = 1.0
    theta: Array = published / np.where(np.isin(np.arange(len(ones)), scaled), form.to_published(ones), 1.0)
    return theta


def profile(held: Held, delta: float, labels: npt.NDArray[np.int64] | None) -> Profile:
    """Both ends, each from a guess by the standard error at the optimum."""
    spread, error = dispersion(held, delta, labels)
    units = len(held.problem.log_loss) if labels is None else int(labels.max()) + 1
    quantile = float(stdtrit(max(units - len(held.theta), 1), 0.5 + LEVEL / 2) ** 2)
    allowed, best = 0.5 * spread * quantile, float(objective(held.problem, held.theta[None], delta)[0])
    if allowed <= RELATIVE_ROUNDING * max(best, TINY):  # a law without noise: nothing can be pushed at all
        here = float(held.theta[held.index])
        ends: list[float | None] = [here, here]
    else:
        reach = float(np.clip(error * np.sqrt(quantile), 1e-6, 10.0))
        ends = [_end(held, sign * reach, best, allowed, delta) for sign in (-1.0, 1.0)]
    if held.logarithm:
        ends = [None if end is None else float(np.exp(end)) for end in ends]
    return Profile(ends[0], ends[1], LEVEL)


def _end(held: Held, step: float, best: float, allowed: float, delta: float) -> float | None:
    """The value at which the profile's excess over `best` is `allowed`, in the direction of `step`."""
    form, k = held.problem.form, held.index
    bound = (form.lower if step < 0 else form.upper)[k]
    inside, outside = (held.theta, 0.0), None
    for _ in range(ROUNDS):
        value = held.theta[k] + step
        at_bound = (value - bound) * np.sign(step) >= 0
        tried = inside[0].copy()
        tried[k] = bound if at_bound else value
        tried, excess = _excess(held, tried, best, delta)
        if abs(excess / allowed - 1) < CLOSE:
            return float(tried[k])
        if excess < allowed:
            if at_bound or abs(step) > 1e3:
                return None
            inside = tried, excess
        else:
            outside = float(tried[k]) - float(held.theta[k]), excess
        step = _next(float(inside[0][k] - held.theta[k]), inside[1], outside, allowed, step)
    return float(held.theta[k] + step)


def _next(near: float, below: float, far: tuple[float, float] | None, allowed: float, step: float) -> float:
    """Where the square root of the excess, straight between two points, reaches what is allowed."""
    if far is None:
        return step * float(np.clip(np.sqrt(allowed / max(below, 1e-300)), 1.2, FAR))
    low, high, wanted = (float(np.sqrt(max(value, 0.0))) for value in (below, far[1], allowed))
    share = float(np.clip((wanted - low) / max(high - low, 1e-300), 0.05, 0.95))
    return near + share * (far[0] - near)


def _excess(held: Held, start: Array, best: float, delta: float) -> tuple[Array, float]:
    mask = np.zeros((1, len(start)), dtype=bool)
    mask[0, held.index] = True
    solved = solve(replace(held.problem, held=mask), start[None], delta, staircase=False, max_steps=STEPS)
    return solved.theta_Sp[0], float(solved.objective_S[0]) - best
