"""Any formula as a form for the solver: exact first and second derivatives, well-scaled parameters, starts.

A formula is written in the parameters people publish (A, alpha, ...), which are badly scaled: A may be 5 or 5e9.
Inside, a parameter that the formula is linear in is replaced by the size of its term at the smallest row (as in
`isoflop.laws.forms`), found by symbolic differentiation; one with a `unit` by its multiple of that unit there.

Legend: S parameter vectors, n rows, p parameters.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from isoflop.laws import expression as ex
from isoflop.laws.expression import Evaluator, Expression
from isoflop.laws.forms import SMALLEST, Array, Evaluation
from isoflop.laws.parse import parse

MOST_STARTS = 48
LEAST_AMPLITUDE = 0.02  # a term of size zero has no gradient in its exponent
ANY_START = (0.1, 0.3, 1.0)  # for a parameter of a user's formula of which nothing is said
STEEPEST = 1e10  # derivatives of a log-loss by parameters of order one; more is an overflow on its way
PRIOR_REACH = 0.05  # a prior's row stays within delta, so that Huber's loss is a parabola there


@dataclass(frozen=True)
class Coefficient:
    """A parameter of a formula: its bounds, where to start, and what it means.

    `starts` are published values, but multiples of `unit` where there is one. `unit` is a formula of columns and other
    parameters, read at the smallest row. A parameter that the formula is linear in needs neither.
    """

    name: str
    lower: float = 0.0
    upper: float = np.inf
    starts: tuple[float, ...] = ()
    unit: str | None = None
    meaning: str = ""


@dataclass(frozen=True)
class Formula:
    """A law as a formula over the columns of a table.

    `log`: residuals are of the logarithm of the target (losses above zero); otherwise of the target itself.
    `derived`: other quantities people publish, as formulas of the parameters.
    """

    name: str
    text: str
    columns: tuple[str, ...]
    coefficients: tuple[Coefficient, ...]
    log: bool = True
    derived: tuple[tuple[str, str], ...] = ()
    source: str = ""

    @property
    def expression(self) -> Expression:
        return parse(self.text, self.columns)

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(coefficient.name for coefficient in self.coefficients)

    def value(self, parameters: Mapping[str, float], columns: Mapping[str, Array]) -> Array:
        """The formula at published parameters and columns."""
        constants = {name: np.array(float(value)) for name, value in parameters.items()}
        with np.errstate(all="ignore"):
            value = Evaluator({k: np.asarray(v, float) for k, v in columns.items()}, constants)(self.expression)
        return np.broadcast_to(value, np.broadcast_shapes(*(np.shape(c) for c in columns.values()))).astype(float)

    def fixed(self, values: Mapping[str, float]) -> "Formula":
        """The formula with these parameters held at published values."""
        for name in values:
            if name not in self.parameters:
                raise ValueError(f"--fix {name}: the form's parameters are {', '.join(self.parameters)}")
        words = {name: f"({value!r})" for name, value in values.items()}
        kept = tuple(
            replace(one, unit=None if one.unit is None else _reworded(one.unit, words))
            for one in self.coefficients
            if one.name not in values
        )
        if not kept:
            raise ValueError("--fix: every parameter is fixed, and nothing is left to fit")
        derived = tuple((name, _reworded(text, words)) for name, text in self.derived)
        return replace(self, text=_reworded(self.text, words), coefficients=kept, derived=derived)


def _reworded(text: str, words: Mapping[str, str]) -> str:
    import re

    for name, value in words.items():
        text = re.sub(rf"\b{re.escape(name)}\b", value, text)
    return text


def user_formula(
    text: str, columns: Collection[str], settings: Mapping[str, Coefficient] | None = None, log: bool = True
) -> Formula:
    """A formula somebody typed. Names that are columns are columns; all others are parameters, at least 0 by default.

    Raises ValueError for a formula without parameters or columns, and for settings of what is no parameter.
    """
    read, settings = parse(text, columns), dict(settings or {})
    parameters, used = ex.names(read)
    if not parameters:
        raise ValueError(f"formula '{text}': no parameter to fit; every name in it is a column")
    if not used:
        have = ", ".join(columns)
        raise ValueError(f"formula '{text}': no column of the table in it; the table has {have}")
    for name in settings:
        if name not in parameters:
            raise ValueError(f"--parameter {name}: not in the formula, whose parameters are {', '.join(parameters)}")
    chosen = tuple(settings.get(name, Coefficient(name)) for name in parameters)
    return Formula("user formula", text, tuple(used), chosen, log)


@dataclass(frozen=True)
class Prior:
    """A parameter known beforehand: normal about `centre` with standard deviation `spread`."""

    centre: float
    spread: float


@dataclass(frozen=True, eq=False)
class FormulaForm:
    """A formula in the units of a table: what the solver works with. Internal parameters are of order one."""

    formula: Formula
    body: Expression  # Lhat / L0, or exp(Lhat) where residuals are of the target itself
    first: tuple[Expression, ...]
    second: tuple[Expression, ...]
    curvature_pairs: tuple[tuple[int, int], ...]
    published: tuple[Expression, ...]  # the published parameters, of the internal ones
    linear: tuple[int, ...]
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    log_loss0: float
    priors: tuple[tuple[int, float], ...] = ()  # (parameter, centre), a row each at the end of the table
    prior_scale: float = 0.0

    @property
    def size(self) -> int:
        return len(self.first)

    @property
    def name(self) -> str:
        return self.formula.name

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.formula.parameters

    @classmethod
    def scaled(cls, formula: Formula, columns: Mapping[str, Array], loss: Array) -> "FormulaForm":
        """The form in the units of these rows."""
        body, names = formula.expression, formula.parameters
        log_loss0 = float(np.log(loss).mean()) if formula.log else 0.0
        smallest = {name: ex.constant(_reference(columns[name])) for name in formula.columns}
        linear = _linear(body, formula)
        published = tuple(_published(formula, k, linear, smallest, log_loss0) for k in range(len(names)))
        body = ex.substitute(body, dict(zip(names, published, strict=True)))
        body = ex.multiply(body, ex.constant(float(np.exp(-log_loss0)))) if formula.log else ex.exp(body)
        first = tuple(ex.derivative(body, name) for name in names)
        pairs = [(i, j) for i in range(len(names)) for j in range(i, len(names))]
        mixed = {(i, j): ex.derivative(first[i], names[j]) for i, j in pairs}
        kept = [pair for pair in pairs if mixed[pair] is not ex.constant(0.0)]
        return cls(
            formula=formula,
            body=body,
            first=first,
            second=tuple(mixed[pair] for pair in kept),
            curvature_pairs=tuple(kept),
            published=published,
            linear=tuple(k for k in linear if formula.coefficients[k].lower >= 0),
            lower=tuple(one.lower for one in formula.coefficients),
            upper=tuple(one.upper for one in formula.coefficients),
            log_loss0=log_loss0,
        )

    def with_priors(self, priors: Mapping[str, Prior], delta: float) -> "FormulaForm":
        """The form with a row for every prior at the end of its table; see `prior_weights`."""
        held = tuple((self.parameters.index(name), prior.centre) for name, prior in priors.items())
        missing = [(k, k) for k, _ in held if (k, k) not in self.curvature_pairs]
        second = self.second + (ex.constant(0.0),) * len(missing)
        pairs = self.curvature_pairs + tuple(missing)
        return replace(self, priors=held, second=second, curvature_pairs=pairs, prior_scale=PRIOR_REACH * delta)

    def features(self, columns: Mapping[str, Array]) -> Array:
        """The used columns, and a copy of the first row for every prior: shape (columns, n)."""
        table = np.stack([np.asarray(columns[name], float) for name in self.formula.columns])
        return np.concatenate([table, np.repeat(table[:, :1], len(self.priors), axis=1)], axis=1)

    def target(self, loss: Array) -> Array:
        """What `log(value)` is fitted to: log(L / L0), or L itself; 0 for a prior."""
        rows = np.log(loss) - self.log_loss0 if self.formula.log else np.asarray(loss, float)
        return np.concatenate([rows, np.zeros(len(self.priors))])

    def value(self, theta_Sp: Array, features: Array) -> Array:
        """Lhat / L0 (or exp Lhat), shape (S, n)."""
        with np.errstate(all="ignore"):
            value = self._broadcast(self._evaluator(theta_Sp, features)(self.body), theta_Sp, features)
        return self._of_priors(_alive(value), theta_Sp)

    def evaluate(self, theta_Sp: Array, features: Array) -> Evaluation:
        """Values with exact first and second derivatives."""
        with np.errstate(all="ignore"):
            at = self._evaluator(theta_Sp, features)
            value = _alive(self._broadcast(at(self.body), theta_Sp, features))
            jacobian = np.stack([self._broadcast(at(one), theta_Sp, features) / value for one in self.first], axis=1)
            second = [self._broadcast(at(one), theta_Sp, features) / value for one in self.second]
        curvature = np.stack(second, axis=1) if second else np.zeros((len(theta_Sp), 0, features.shape[1]))
        steep = np.abs(jacobian).max(axis=1) + np.abs(curvature).max(axis=1, initial=0.0)
        lost = ~(steep < STEEPEST) | (value <= SMALLEST)
        if lost.any():  # the formula means nothing there: a huge residual without a slope, which no step is taken to
            jacobian, curvature = (np.where(lost[:, None], 0.0, array) for array in (jacobian, curvature))
        for row, (k, _) in enumerate(self.priors, start=features.shape[1] - len(self.priors)):
            jacobian[:, :, row], curvature[:, :, row] = 0.0, 0.0
            jacobian[:, k, row] = self.prior_scale
            curvature[:, self.curvature_pairs.index((k, k)), row] = self.prior_scale**2
        return Evaluation(self._of_priors(value, theta_Sp), jacobian, curvature)

    def _of_priors(self, value: Array, theta_Sp: Array) -> Array:
        first = value.shape[1] - len(self.priors)
        for row, (k, centre) in enumerate(self.priors, start=first):
            value[:, row] = np.exp(self.prior_scale * (theta_Sp[:, k] - centre))
        return value

    def _evaluator(self, theta_Sp: Array, features: Array) -> Evaluator:
        columns = dict(zip(self.formula.columns, features, strict=True))
        return Evaluator(columns, dict(zip(self.parameters, theta_Sp.T[:, :, None], strict=True)))

    @staticmethod
    def _broadcast(value: Array, theta_Sp: Array, features: Array) -> Array:
        return np.broadcast_to(value, (len(theta_Sp), features.shape[1]))

    def to_published(self, internal: Array) -> Array:
        """From internal to published parameters; last axis p."""
        flat = internal.reshape(-1, self.size)
        at = Evaluator({}, dict(zip(self.parameters, flat.T[:, :, None], strict=True)))
        with np.errstate(all="ignore"):
            columns = [np.broadcast_to(at(one), (len(flat), 1)) for one in self.published]
        return np.concatenate(columns, axis=1).reshape(internal.shape)

    def prediction(self, theta_Sp: Array, columns: Mapping[str, Array]) -> Array:
        """The target's predicted value itself, shape (S, n)."""
        plain = replace(self, priors=())
        value = plain.value(theta_Sp, plain.features(columns))
        return value * np.exp(self.log_loss0) if self.formula.log else np.log(value)

    def starts(self, features: Array, target: Array) -> Array:
        """A grid over the parameters that are not linear, the linear ones by non-negative least squares."""
        grids = [_grid(one) for one in self.formula.coefficients]
        grids = [(1.0,) if k in self.linear else grid for k, grid in enumerate(grids)]
        points = np.array(list(product(*grids)))
        if len(points) > MOST_STARTS:
            points = points[np.random.default_rng(0).permutation(len(points))[:MOST_STARTS]]
        rows = features.shape[1] - len(self.priors)
        return np.stack([self._amplitudes(point, features[:, :rows], target[:rows]) for point in points])

    def _amplitudes(self, start_p: Array, features: Array, target: Array) -> Array:
        """Fill in the linear parameters of one start (variable projection; Golub & Pereyra 1973)."""
        chosen = list(self.linear)
        if not chosen:
            return start_p
        from scipy.optimize import nnls  # slow to import, and only a fit needs it

        plain, zero = replace(self, priors=()), start_p.copy()
        zero[chosen] = 0.0
        points = np.repeat(zero[None], len(chosen) + 1, axis=0)
        points[np.arange(len(chosen)), chosen] = 1.0
        with np.errstate(all="ignore"):
            at = plain._evaluator(points, features)
            value = np.array(plain._broadcast(at(plain.body), points, features))
            if self.formula.log:
                basis, wanted = (value[:-1] - value[-1]) / np.exp(target), 1 - value[-1] / np.exp(target)
            else:
                logs = np.log(np.maximum(value, SMALLEST))
                basis, wanted = logs[:-1] - logs[-1], target - logs[-1]
        filled = start_p.copy()
        if np.isfinite(basis).all() and np.isfinite(wanted).all():
            filled[chosen] = np.maximum(nnls(basis.T, wanted)[0], LEAST_AMPLITUDE)
        return np.clip(filled, self.lower, self.upper)


def _alive(value: Array) -> Array:
    return np.where(np.isfinite(value) & (value > SMALLEST), value, SMALLEST)


def _reference(values: Array) -> float:
    values = np.asarray(values, float)
    return float(values.min()) if (values > 0).all() else float(np.abs(values).mean()) or 1.0


def _grid(one: Coefficient) -> tuple[float, ...]:
    if one.starts:
        return one.starts
    if np.isfinite(one.upper) and np.isfinite(one.lower):
        return tuple(one.lower + share * (one.upper - one.lower) for share in (0.15, 0.5, 0.85))
    return tuple(one.lower + value for value in ANY_START) if np.isfinite(one.lower) else (-0.3, 0.3)


def _linear(body: Expression, formula: Formula) -> list[int]:
    """Parameters the formula is linear in, all together, those with a unit left out."""
    zero, chosen = ex.constant(0.0), list[int]()
    for k, one in enumerate(formula.coefficients):
        slope = ex.derivative(body, one.name)
        others = [formula.parameters[other] for other in (*chosen, k)]
        if one.unit is None and all(ex.derivative(slope, other) is zero for other in others):
            chosen.append(k)
    return chosen


def _published(
    formula: Formula, k: int, linear: list[int], smallest: Mapping[str, Expression], log_loss0: float
) -> Expression:
    """The published parameter as an expression of internal ones, which bear the same names."""
    one = formula.coefficients[k]
    internal, size = ex.parameter(one.name), ex.constant(float(np.exp(log_loss0)))
    if one.unit is not None:
        unit = ex.substitute(parse(one.unit, formula.columns), smallest)
        return ex.multiply(ex.multiply(internal, size), unit)
    bounded = np.isfinite(one.upper) or (one.lower not in (0.0, -np.inf))
    if k not in linear or bounded:
        return internal
    slope = ex.substitute(ex.derivative(formula.expression, one.name), smallest)
    return ex.multiply(internal, ex.divide(size, slope)) if _sound(slope, formula, linear) else internal


def _sound(slope: Expression, formula: Formula, linear: list[int]) -> bool:
    """Whether a term's slope at the smallest row can be a unit: positive at every start, of no linear parameter."""
    names = [one.name for k, one in enumerate(formula.coefficients) if k not in linear and one.unit is None]
    if not set(ex.names(slope)[0]) <= set(names):
        return False
    grids = [_grid(one) for one in formula.coefficients if one.name in names]
    points = np.array(list(product(*grids)))  # without names one empty point, and the slope a constant
    with np.errstate(all="ignore"):
        value = np.asarray(Evaluator({}, dict(zip(names, points.T[:, :, None], strict=True)))(slope))
    return bool((np.isfinite(value) & (value > 0)).all())
