"""A figure that says where it comes from, and between which bounds it should lie."""

from typing import Literal

import msgspec

Source = Literal["exact", "measured", "fitted", "datasheet", "assumed"]
LEVEL = 0.8  # the probability that an interval holds


class Quantity(msgspec.Struct, frozen=True):
    """`value`, and an interval that should hold it with probability `level` (None where nothing says how sure the
    bounds are). `source` is the weakest of what it was made from."""

    value: float
    low: float
    high: float
    level: float | None
    source: Source

    def times(self, factor: float) -> "Quantity":
        """The same in another unit, or of so many."""
        return Quantity(self.value * factor, self.low * factor, self.high * factor, self.level, self.source)

    def inverse(self, numerator: float = 1.0) -> "Quantity":
        """`numerator` over it."""
        return Quantity(numerator / self.value, numerator / self.high, numerator / self.low, self.level, self.source)


def exact(value: float) -> Quantity:
    """A figure without an error."""
    return Quantity(value, value, value, None, "exact")


_ORDER: tuple[Source, ...] = ("exact", "measured", "datasheet", "fitted", "assumed")


def weakest(*sources: Source) -> Source:
    """The one that decides how far the whole may be trusted."""
    return max(sources, key=_ORDER.index)
