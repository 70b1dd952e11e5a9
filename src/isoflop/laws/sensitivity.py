"""What the answer owes to choices: the Huber delta, the form, the convention of N. And whether residuals have a shape.

Every alternative is the same table fitted another way. Where they disagree by more than the intervals allow, the choice
decides and not the data.
"""

from collections.abc import Mapping

import msgspec
import numpy as np
from scipy.special import fdtrc

from isoflop.laws.forms import Array, PowerSum
from isoflop.laws.formula import Coefficient, Formula, FormulaForm
from isoflop.laws.influence import log_ratio
from isoflop.laws.solver import Problem, solve

DELTAS = (1e-4, 1e-2, 10.0)  # beside the one fitted with; the last is least squares
BEYOND = 10.0  # times the largest fitted compute, at which forecasts are compared
EXPONENTS = (0.1, 0.2, 0.4, 0.8)
DIFFER = 1.5  # ratio between answers that is worth a word
SHAPE = 1e-3  # p-value below which residuals have a shape
DEAREST = 0.2  # of the rows, by compute
STEPS = 120

OTHER_FORMS = (
    Formula(
        "E + A/N^gamma + B/D^gamma",
        "E + A/N^gamma + B/D^gamma",
        ("N", "D"),
        (Coefficient("E"), Coefficient("A"), Coefficient("B"), Coefficient("gamma", 0.0, 10.0, EXPONENTS)),
    ),
    Formula(
        "((A/N^alpha)^(1/beta) + (B/D^beta)^(1/beta))^beta",
        "((A/N^alpha)^(1/beta) + (B/D^beta)^(1/beta))^beta",
        ("N", "D"),
        (
            Coefficient("A", unit="N^alpha", starts=(0.6, 0.9)),
            Coefficient("B", unit="D^beta", starts=(0.6, 0.9)),
            Coefficient("alpha", 1e-3, 10.0, (0.05, 0.1, 0.3)),
            Coefficient("beta", 1e-3, 10.0, (0.05, 0.1, 0.3)),
        ),
    ),
    Formula(
        "E + A/N^alpha + B/D^beta + F/(N^alpha D^beta)",
        "E + A/N^alpha + B/D^beta + F/(N^alpha*D^beta)",
        ("N", "D"),
        (
            *(Coefficient(name) for name in "EABF"),
            Coefficient("alpha", 0.0, 10.0, EXPONENTS),
            Coefficient("beta", 0.0, 10.0, EXPONENTS),
        ),
    ),
)


class Alternative(msgspec.Struct, frozen=True, kw_only=True):
    """The table fitted another way; the forecast is at `BEYOND` times the largest compute, at the median D/N."""

    what: str  # delta, form or convention
    choice: str
    objective: float  # at its own delta
    optimal_ratio: float | None  # D/N at the largest fitted compute, N in the alternative's own convention
    optimal_d: float | None = None  # D there: what conventions are compared by, as it does not hang on what N counts
    loss_beyond: float
    parameters: dict[str, float]


class ResidualStructure(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the residuals log L - log Lhat are noise.

    `rank_correlation` is Spearman's, of residuals with log N, log D, compute and D/N; `spread_with_compute` that of
    their sizes with compute. `curvature_p` tests a quadratic in log N and log D against none (F-test on residuals
    clipped at three robust spreads). `dearest_bias` is the mean over the dearest fifth.
    """

    rank_correlation: dict[str, float]
    spread_with_compute: float
    curvature_p: float | None
    dearest_bias: float
    autocorrelation: float  # of residuals ordered by compute, at lag one


def alternatives(
    form: PowerSum,
    theta: Array,
    problem: Problem,
    rows: tuple[Array, Array, Array],
    delta: float,
    conventions: Mapping[str, Array] | None = None,
) -> list[Alternative]:
    """Other deltas from the optimum found, other forms from starts of their own, other columns (n,) in N's place."""
    n, d, loss = rows
    top = float((6 * n * d).max())
    ratio = float(np.median(d / n))
    told = [_delta(form, theta, problem, other, top, ratio) for other in DELTAS if not 0.5 < other / delta < 2]
    enough = [other for other in OTHER_FORMS if len(np.unique(np.stack([n, d]), axis=1).T) > len(other.coefficients)]
    told += [_form(other, n, d, loss, problem.weights, delta, top, ratio) for other in enough]
    for name, other in (conventions or {}).items():
        told.append(_convention(name, other, d, loss, problem.weights, delta))
    return told


def _delta(form: PowerSum, theta: Array, problem: Problem, delta: float, top: float, ratio: float) -> Alternative:
    solved = solve(problem, theta[None], delta, staircase=False, max_steps=STEPS)
    choice = "least squares" if delta >= 1 else f"{delta:g}"
    return _power_sum("delta", choice, form, solved.theta_Sp[0], float(solved.objective_S[0]), top, ratio)


def _convention(name: str, n: Array, d: Array, loss: Array, weights: Array, delta: float) -> Alternative:
    form = PowerSum.scaled(n, d, loss)
    problem = Problem(form, form.features(n, d), np.log(loss) - form.log_loss0, weights)
    solved = solve(problem, form.starts(problem.features, problem.log_loss, np.array(EXPONENTS)), delta)
    best = int(solved.objective_S.argmin())
    top, ratio = float((6 * n * d).max()), float(np.median(d / n))
    objective = float(solved.objective_S[best])
    told = _power_sum("convention", name, form, solved.theta_Sp[best], objective, top, ratio)
    return msgspec.structs.replace(told, optimal_d=best_tokens(top, told.optimal_ratio))


def best_tokens(flops: float, ratio: float | None) -> float | None:
    """D of a budget 6 N D spent at a D/N."""
    return None if ratio is None else float(np.sqrt(flops / 6 * ratio))


def _power_sum(
    what: str, choice: str, form: PowerSum, theta: Array, objective: float, top: float, ratio: float
) -> Alternative:
    n, d = _beyond(top, ratio)
    optimum = float(log_ratio(form, theta[None], top)[0])
    loss = form.value(theta[None], form.features(n, d))[0, 0] * np.exp(form.log_loss0)
    return Alternative(
        what=what,
        choice=choice,
        objective=objective,
        optimal_ratio=None if np.isnan(optimum) else float(np.exp(optimum)),
        loss_beyond=float(loss),
        parameters=dict(zip(form.parameters, form.to_published(theta).tolist(), strict=True)),
    )


def _form(
    formula: Formula, n: Array, d: Array, loss: Array, weights: Array, delta: float, top: float, ratio: float
) -> Alternative:
    columns = {"N": n, "D": d}
    form = FormulaForm.scaled(formula, columns, loss)
    problem = Problem(form, form.features(columns), form.target(loss), weights)
    solved = solve(problem, form.starts(problem.features, problem.log_loss), delta, max_steps=STEPS)
    theta = solved.theta_Sp[int(solved.objective_S.argmin())]
    beyond = dict(zip("ND", _beyond(top, ratio), strict=True))
    return Alternative(
        what="form",
        choice=formula.name,
        objective=float(solved.objective_S.min()),
        optimal_ratio=_ratio_of_least_loss(form, theta, top),
        loss_beyond=float(form.prediction(theta[None], beyond)[0, 0]),
        parameters=dict(zip(form.parameters, form.to_published(theta).tolist(), strict=True)),
    )


def _beyond(top: float, ratio: float) -> tuple[Array, Array]:
    n = np.sqrt(BEYOND * top / 6 / ratio)
    return np.array([n]), np.array([n * ratio])


def _ratio_of_least_loss(form: FormulaForm, theta: Array, flops: float) -> float | None:
    """D/N of least loss at `flops`, by a grid and a parabola; None where it lies at the end of ten decades."""
    log_ratio_grid = np.linspace(-5, 5, 1001) * np.log(10) + np.log(20)
    n = np.sqrt(flops / 6 * np.exp(-log_ratio_grid))
    loss = form.prediction(theta[None], {"N": n, "D": flops / 6 / n})[0]
    k = int(loss.argmin())
    if k in (0, len(loss) - 1):
        return None
    left, middle, right = loss[k - 1 : k + 2]
    bend = left - 2 * middle + right
    offset = 0.5 * (left - right) / bend if bend > 0 else 0.0
    return float(np.exp(log_ratio_grid[k] + offset * (log_ratio_grid[1] - log_ratio_grid[0])))


def sensitivity_warnings(answer: float | None, told: list[Alternative], top: float) -> list[str]:
    """Choices that move the optimal D/N at the largest compute `top`, one sentence for each kind: the furthest."""
    warnings = _convention_warnings(best_tokens(top, answer), told)
    for what in ("delta", "form"):
        kind = [one for one in told if one.what == what and one.optimal_ratio]
        if answer is None or not kind:
            continue
        far = max(kind, key=lambda one: abs(np.log((one.optimal_ratio or answer) / answer)))
        assert far.optimal_ratio is not None
        if not 1 / DIFFER < far.optimal_ratio / answer < DIFFER:
            warnings.append(
                f"the answer depends on the {what}: {far.choice} gives an optimal D/N of {far.optimal_ratio:.3g} at "
                f"the largest compute, this fit {answer:.3g}"
            )
    return warnings


def _convention_warnings(answer: float | None, told: list[Alternative]) -> list[str]:
    kind = [(one.choice, one.optimal_d) for one in told if one.optimal_d is not None]
    if answer is None or not kind:
        return []
    choice, tokens = max(kind, key=lambda one: abs(np.log(one[1] / answer)))
    if 1 / DIFFER < tokens / answer < DIFFER:
        return []
    return [
        f"the answer depends on the convention: with N = {choice} the largest compute is best spent on {tokens:.3g} "
        f"tokens, in this fit on {answer:.3g}"
    ]


def residual_structure(n: Array, d: Array, residuals: Array) -> ResidualStructure:
    """See the class. All columns (n,)."""
    compute = np.log(n * d)
    axes = {"n": np.log(n), "d": np.log(d), "compute": compute, "tokens_per_parameter": np.log(d / n)}
    order = np.argsort(compute, kind="stable")
    dearest = residuals[order[-max(1, round(DEAREST * len(n))) :]]
    clipped = _clip(residuals)[order]
    spread = float((clipped**2).sum())
    return ResidualStructure(
        rank_correlation={name: rank_correlation(axis, residuals) for name, axis in axes.items()},
        spread_with_compute=rank_correlation(compute, np.abs(residuals)),
        curvature_p=_curvature(np.log(n), np.log(d), _clip(residuals)),
        dearest_bias=float(dearest.mean()),
        autocorrelation=float((clipped[1:] * clipped[:-1]).sum() / spread) if spread else 0.0,
    )


def _clip(residuals: Array) -> Array:
    spread = 1.4826 * float(np.median(np.abs(residuals)))
    clipped: Array = np.clip(residuals, -3 * spread, 3 * spread)
    return clipped


def _ranks(values: Array) -> Array:
    """Ranks, equal values sharing their mean rank (scipy's function would cost a plan half a second of import)."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends: Array = np.cumsum(counts).astype(float)
    return (ends - (counts - 1) / 2)[group]


def rank_correlation(left: Array, right: Array) -> float:
    if np.ptp(left) == 0 or np.ptp(right) == 0:
        return 0.0
    return float(np.corrcoef(_ranks(left), _ranks(right))[0, 1])


def _curvature(log_n: Array, log_d: Array, residuals: Array) -> float | None:
    """The p-value of a quadratic surface; None where there are too few rows, or no residuals to speak of."""
    x, y = ((axis - axis.mean()) / max(float(axis.std()), 1e-12) for axis in (log_n, log_d))
    basis = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    residuals = residuals - residuals.mean()  # skewed noise moves the mean, and is no misfit
    spare, total = len(x) - 6, float((residuals**2).sum())
    if spare < 3 or total < 1e-18 * len(x):
        return None
    left = residuals - basis @ np.linalg.lstsq(basis, residuals, rcond=None)[0]
    rest = float((left**2).sum())
    # The law's own parameters have taken most of what a quadratic could: what it still finds is misfit.
    return float(fdtrc(5, spare, max(total - rest, 0.0) / 5 / max(rest / spare, 1e-300)))


def structure_warnings(found: ResidualStructure) -> list[str]:
    """Whether the residuals say that the form is wrong."""
    if found.curvature_p is None or found.curvature_p > SHAPE:
        return []
    side = "above" if found.dearest_bias > 0 else "below"
    return [
        f"residuals are no noise (a quadratic in log N and log D explains them, p = {found.curvature_p:.1g}): the form "
        f"bends away from the table; its dearest fifth lies {abs(found.dearest_bias):.2%} {side}"
    ]
