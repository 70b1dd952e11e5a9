"""Expressions over columns and parameters: exact symbolic derivatives, evaluated for many parameter vectors at once.

Nodes are interned: equal expressions are one object, so a derivative shares what it has in common with its function,
and an evaluation computes every distinct part once. Derivatives are taken by the textbook's rules and are exact.

Legend: S parameter vectors, n rows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

EXPONENT_LIMIT = 700.0  # exp of more overflows; a law that needs it is rejected by its residuals anyway


@dataclass(frozen=True, eq=False)
class Constant:
    value: float


@dataclass(frozen=True, eq=False)
class Column:
    name: str


@dataclass(frozen=True, eq=False)
class Parameter:
    name: str


@dataclass(frozen=True, eq=False)
class Sum:
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, eq=False)
class Product:
    left: "Expression"
    right: "Expression"


@dataclass(frozen=True, eq=False)
class Power:
    """A constant exponent; any other is exp(exponent log base)."""

    base: "Expression"
    exponent: float


@dataclass(frozen=True, eq=False)
class Exp:
    argument: "Expression"


@dataclass(frozen=True, eq=False)
class Log:
    argument: "Expression"


@dataclass(frozen=True, eq=False)
class Sigmoid:
    argument: "Expression"


@dataclass(frozen=True, eq=False)
class Step:
    """1 where the argument is above 0, else 0: what maximum and minimum are made of."""

    argument: "Expression"


Expression = Constant | Column | Parameter | Sum | Product | Power | Exp | Log | Sigmoid | Step


@cache
def constant(value: float) -> Expression:
    return Constant(value)


@cache
def column(name: str) -> Expression:
    return Column(name)


@cache
def parameter(name: str) -> Expression:
    return Parameter(name)


@cache
def add(left: Expression, right: Expression) -> Expression:
    match left, right:
        case Constant(a), Constant(b):
            return constant(a + b)
        case Constant(0.0), _:
            return right
        case _, Constant(0.0):
            return left
    return Sum(left, right)


@cache
def multiply(left: Expression, right: Expression) -> Expression:
    match left, right:
        case Constant(a), Constant(b):
            return constant(a * b)
        case (Constant(0.0), _) | (_, Constant(0.0)):
            return constant(0.0)
        case Constant(1.0), _:
            return right
        case _, Constant(1.0):
            return left
        case _, Constant(_):
            return multiply(right, left)
        case Constant(a), Product(Constant(b), rest):
            return multiply(constant(a * b), rest)
    return Product(left, right)


@cache
def power(base: Expression, exponent: Expression) -> Expression:
    """base ** exponent; the base must be positive where the exponent is no whole number."""
    match base, exponent:
        case Constant(b), Constant(e) if b >= 0 or e.is_integer():
            with np.errstate(all="ignore"):  # too large a power, or 0^-1, is infinite here, an error in Python
                return constant(float(np.float64(b) ** e))
        case _, Constant(0.0):
            return constant(1.0)
        case _, Constant(1.0):
            return base
        case Power(inner, first), Constant(second) if not first.is_integer() or second.is_integer():
            return power(inner, constant(first * second))
        case _, Constant(e):
            return Power(base, e)
    return exp(multiply(exponent, log(base)))


@cache
def exp(argument: Expression) -> Expression:
    match argument:
        case Constant(value):
            return constant(math.exp(min(value, EXPONENT_LIMIT)))
    return Exp(argument)


@cache
def log(argument: Expression) -> Expression:
    match argument:
        case Constant(value) if value > 0:
            return constant(math.log(value))
        case Exp(inner):
            return inner
        case Power(base, exponent) if exponent % 2:  # an even power of a negative base has a logarithm of its own
            return multiply(constant(exponent), log(base))
    return Log(argument)


@cache
def sigmoid(argument: Expression) -> Expression:
    return Sigmoid(argument)


@cache
def step(argument: Expression) -> Expression:
    match argument:
        case Constant(value):
            return constant(float(value > 0))
    return Step(argument)


def negate(argument: Expression) -> Expression:
    return multiply(constant(-1.0), argument)


def subtract(left: Expression, right: Expression) -> Expression:
    return add(left, negate(right))


def divide(left: Expression, right: Expression) -> Expression:
    return multiply(left, power(right, constant(-1.0)))


def maximum(left: Expression, right: Expression) -> Expression:
    """The larger of the two; its derivative is that of the larger."""
    return add(right, multiply(subtract(left, right), step(subtract(left, right))))


def minimum(left: Expression, right: Expression) -> Expression:
    """The smaller of the two."""
    return add(right, multiply(subtract(left, right), step(subtract(right, left))))


@cache
def derivative(of: Expression, by: str) -> Expression:
    """The exact derivative with respect to the parameter `by`."""
    match of:
        case Parameter(name):
            return constant(1.0 if name == by else 0.0)
        case Constant() | Column() | Step():
            return constant(0.0)
        case Sum(left, right):
            return add(derivative(left, by), derivative(right, by))
        case Product(left, right):
            return add(multiply(derivative(left, by), right), multiply(left, derivative(right, by)))
        case Power(base, e):
            inner = multiply(constant(e), power(base, constant(e - 1)))
            return multiply(inner, derivative(base, by))
        case Exp(argument):
            return multiply(of, derivative(argument, by))
        case Log(argument):
            return divide(derivative(argument, by), argument)
        case Sigmoid(argument):
            return multiply(multiply(of, subtract(constant(1.0), of)), derivative(argument, by))


def substitute(within: Expression, replaced: Mapping[str, Expression]) -> Expression:
    """The expression with parameters and columns of these names replaced."""
    known: dict[Expression, Expression] = {}

    def of(node: Expression) -> Expression:
        if node not in known:
            known[node] = rebuilt(node)
        return known[node]

    def rebuilt(node: Expression) -> Expression:
        match node:
            case Parameter(name) | Column(name):
                return replaced.get(name, node)
            case Constant():
                return node
            case Sum(left, right):
                return add(of(left), of(right))
            case Product(left, right):
                return multiply(of(left), of(right))
            case Power(base, exponent):
                return power(of(base), constant(exponent))
            case Exp(argument):
                return exp(of(argument))
            case Log(argument):
                return log(of(argument))
            case Sigmoid(argument):
                return sigmoid(of(argument))
            case Step(argument):
                return step(of(argument))

    return of(within)


def names(of: Expression) -> tuple[list[str], list[str]]:
    """The names of the parameters and of the columns, in the order they are met from the left."""
    parameters: dict[str, None] = {}
    columns: dict[str, None] = {}
    seen: set[Expression] = set()

    def visit(node: Expression) -> None:
        if node in seen:
            return
        seen.add(node)
        match node:
            case Parameter(name):
                parameters[name] = None
            case Column(name):
                columns[name] = None
            case Sum(left, right) | Product(left, right):
                visit(left)
                visit(right)
            case Power(inner, _) | Exp(inner) | Log(inner) | Sigmoid(inner) | Step(inner):
                visit(inner)

    visit(of)
    return list(parameters), list(columns)


class Evaluator:
    """Values of expressions at given columns (n,) and parameters (S, 1); shared parts are computed once."""

    def __init__(self, columns: Mapping[str, Array], parameters: Mapping[str, Array]) -> None:
        self._columns, self._parameters = columns, parameters
        self._known: dict[Expression, Array] = {}

    def __call__(self, node: Expression) -> Array:
        """The value, of a shape that broadcasts to (S, n)."""
        found = self._known.get(node)
        if found is None:
            found = self._known[node] = self._compute(node)
        return found

    def _compute(self, node: Expression) -> Array:
        match node:
            case Constant(value):
                return np.array(value)
            case Column(name):
                return self._columns[name]
            case Parameter(name):
                return self._parameters[name]
            case Sum(left, right):
                return np.asarray(self(left) + self(right))
            case Product(left, right):
                return np.asarray(self(left) * self(right))
            case Power(base, exponent):
                return np.asarray(self(base) ** exponent)
            case Exp(argument):
                return np.asarray(np.exp(np.minimum(self(argument), EXPONENT_LIMIT)))
            case Log(argument):
                return np.asarray(np.log(self(argument)))
            case Sigmoid(argument):
                return np.asarray(0.5 * (1 + np.tanh(0.5 * self(argument))))
            case Step(argument):
                return np.asarray((self(argument) > 0).astype(float))
