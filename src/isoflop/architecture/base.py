"""What every description shares: frozen fields, refusal of unknown keys, and errors that teach."""

import math
from decimal import Decimal

import msgspec


class Description(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type"):
    """A frozen record of named fields. Subclasses that belong to a sum type give a `tag`."""


LARGEST = 2**53  # whole numbers beyond are no sizes, and do not fit a float
MOST_LAYERS = 10_000


def require_positive(**values: float) -> None:
    """Raise ValueError naming the first value that is not above zero, or not finite, or larger than any size."""
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} = {in_short(value)} must be above 0")
        if value == math.inf:
            raise ValueError(f"{name} = {value} must be finite")
        if isinstance(value, int) and value > LARGEST:
            raise ValueError(f"{name} = {in_short(value)} must be at most 2^53")


def in_short(value: float) -> str:
    """A number as text; a whole one of any length in a few digits."""
    long = isinstance(value, int) and abs(value) > LARGEST
    return f"about {Decimal(value):.3e}" if long else str(value)


def require_multiple(name: str, value: int, of_name: str, of: int) -> None:
    """Raise ValueError when `of` does not divide `value`, naming both values and the nearest valid one."""
    if value % of:
        lower, upper = value - value % of, value - value % of + of
        nearest = upper if lower == 0 or upper - value < value - lower else lower
        raise ValueError(
            f"{name} = {value} is not a multiple of {of_name} = {of}; the nearest valid {name} is {nearest}"
        )
