"""One line of a certificate."""

from typing import Literal

import msgspec

Verdict = Literal["holds", "fails"]


class Line(msgspec.Struct, frozen=True):
    """A closed form beside what was counted, which must be equal; or, for a twin's numbers, a bound beside what was
    found (`relation`)."""

    check: str
    at: str
    part: str
    unit: str
    closed_form: float
    counted: float
    relation: Literal["equal", "at most"]
    verdict: Verdict


def equal(check: str, closed_form: float, counted: float, unit: str, at: str = "", part: str = "all") -> Line:
    """A line that holds if both are exactly equal."""
    verdict: Verdict = "holds" if closed_form == counted else "fails"
    return Line(check, at, part, unit, closed_form, counted, "equal", verdict)


def at_most(check: str, bound: float, found: float, unit: str, at: str) -> Line:
    """A line that holds up to a bound."""
    return Line(check, at, "all", unit, bound, found, "at most", "holds" if found <= bound else "fails")
