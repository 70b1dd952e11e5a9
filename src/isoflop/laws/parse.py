"""Read a formula such as `E + A/N^alpha + B/D^beta` into an expression: a grammar of arithmetic, nothing is executed.

Python's parser splits the text; of what it knows, numbers, names, + - * / ^ and a few functions are taken and anything
else is refused by name. A name is a column where the table has it, otherwise a parameter. Columns whose names are no
identifiers are written in backquotes: `Model Size`.
"""

import ast
import math
import re
from collections.abc import Callable, Iterable, Mapping

from isoflop.laws import expression as ex
from isoflop.laws.expression import Expression

LONGEST = 2000  # characters: a formula, not a program
DEEPEST = 60  # nested operations
ONE: Expression = ex.constant(1.0)
ONE_ARGUMENT: Mapping[str, Callable[[Expression], Expression]] = {
    "exp": ex.exp,
    "log": ex.log,
    "log10": lambda x: ex.divide(ex.log(x), ex.constant(2.302585092994046)),
    "log2": lambda x: ex.divide(ex.log(x), ex.constant(0.6931471805599453)),
    "sqrt": lambda x: ex.power(x, ex.constant(0.5)),
    "sigmoid": ex.sigmoid,
    "tanh": lambda x: ex.subtract(ex.multiply(ex.constant(2.0), ex.sigmoid(ex.multiply(ex.constant(2.0), x))), ONE),
}
TWO_ARGUMENTS: Mapping[str, Callable[[Expression, Expression], Expression]] = {
    "max": ex.maximum,
    "min": ex.minimum,
}
OPERATORS: Mapping[type[ast.operator], Callable[[Expression, Expression], Expression]] = {
    ast.Add: ex.add,
    ast.Sub: ex.subtract,
    ast.Mult: ex.multiply,
    ast.Div: ex.divide,
    ast.Pow: ex.power,
}
FUNCTIONS = ", ".join([*ONE_ARGUMENT, *TWO_ARGUMENTS])


def parse(text: str, columns: Iterable[str]) -> Expression:
    """The expression of a formula; names in `columns` are columns, all others parameters.

    Raises ValueError, with what and where, for anything but arithmetic.
    """
    if len(text) > LONGEST:
        raise ValueError(f"formula: {len(text)} characters are too long; at most {LONGEST}")
    plain, quoted = _unquote(text.strip(), set(columns))
    try:
        tree = ast.parse(plain, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f" near character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise ValueError(f"formula '{text}': cannot be read{where}; an example: E + A/N^alpha + B/D^beta") from error
    return _Reader(text, set(columns), quoted).read(tree.body, 0)


def _unquote(text: str, columns: set[str]) -> tuple[str, dict[str, str]]:
    """Columns in backquotes become identifiers; `^` becomes Python's power, which binds as it does on paper."""
    quoted: dict[str, str] = {}

    def named(found: re.Match[str]) -> str:
        name = found.group(1)
        if name not in columns:
            raise ValueError(f"formula: no column `{name}`; the table has {', '.join(sorted(columns))}")
        return quoted.setdefault(name, f"quoted_{len(quoted)}_")

    plain = re.sub(r"`([^`]*)`", named, text)
    return plain.replace("^", "**"), {placeholder: name for name, placeholder in quoted.items()}


class _Reader:
    """One formula being read."""

    def __init__(self, text: str, columns: set[str], quoted: Mapping[str, str]) -> None:
        self.text, self.columns, self.quoted = text, columns, quoted

    def read(self, node: ast.expr, depth: int) -> Expression:
        if depth > DEEPEST:
            raise ValueError(f"formula: nested deeper than {DEEPEST} operations")
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return self._finite(ex.constant(float(repr(value))))  # float() itself fails on huge integers
            case ast.Name(id=name) if not name.startswith("__"):
                return self._name(name)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return ex.negate(self.read(operand, depth + 1))
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return self.read(operand, depth + 1)
            case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
                return self._finite(OPERATORS[type(operator)](self.read(left, depth + 1), self.read(right, depth + 1)))
            case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]):
                return self._call(name, [self.read(argument, depth + 1) for argument in arguments])
        raise ValueError(
            f"formula '{self.text}': '{ast.unparse(node)[:60]}' is no arithmetic; use numbers, names, + - * / ^ and "
            f"the functions {FUNCTIONS}"
        )

    def _finite(self, told: Expression) -> Expression:
        if isinstance(told, ex.Constant) and not math.isfinite(told.value):
            raise ValueError(f"formula '{self.text}': a number in it is too large, or none at all")
        return told

    def _name(self, name: str) -> Expression:
        if name in self.quoted:
            return ex.column(self.quoted[name])
        if name in self.columns:
            return ex.column(name)
        if name in ONE_ARGUMENT or name in TWO_ARGUMENTS:
            raise ValueError(f"formula '{self.text}': {name} is a function, and needs arguments: {name}(...)")
        return ex.parameter(name)

    def _call(self, name: str, arguments: list[Expression]) -> Expression:
        match arguments:
            case [one] if name in ONE_ARGUMENT:
                return ONE_ARGUMENT[name](one)
            case [left, right] if name in TWO_ARGUMENTS:
                return TWO_ARGUMENTS[name](left, right)
        known = name in ONE_ARGUMENT or name in TWO_ARGUMENTS
        told = f"{name} does not take {len(arguments)} arguments" if known else f"no function '{name}'"
        raise ValueError(f"formula '{self.text}': {told}; there are {FUNCTIONS}")
