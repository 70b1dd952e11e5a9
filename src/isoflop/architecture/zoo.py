"""What publishers say of their models, to be held against exact counts; and the names under which models are known.

zoo.toml has a table for every preset in published/, and for models that have none: those the language cannot express
(`refused` says why) and closed ones of which sizes are only rumoured (`rumour`), which are never facts here.
"""

from decimal import Decimal
from functools import cache
from pathlib import Path

from isoflop.architecture.base import Description
from isoflop.architecture.files import from_dict, read_toml

UNITS = {"": 1, "M": 10**6, "B": 10**9, "T": 10**12}


class Figure(Description, frozen=True):
    """A number of parameters as its publisher writes it, such as 8.03B: the value, and one unit of its last digit."""

    text: str
    value: float
    unit: float

    def agrees(self, count: int) -> bool:
        """Whether the figure is this count, rounded up or down at its last digit."""
        return abs(count - self.value) < self.unit


class Entry(Description, frozen=True):
    """One model. `total`, `active`: the publisher's figures, as written; `source`: where. `why`: what explains a figure
    that is not the configuration's own count. `kind` is given where there is no architecture to tell it."""

    source: str
    total: str | None = None
    active: str | None = None
    why: str = ""
    note: str = ""
    aliases: tuple[str, ...] = ()
    kind: str = ""
    refused: str = ""
    rumour: bool = False


class _Zoo(Description, frozen=True):
    models: dict[str, Entry]


@cache
def entries() -> dict[str, Entry]:
    """Every entry by its name."""
    path = Path(__file__).with_name("zoo.toml")
    return from_dict({"models": read_toml(path)}, _Zoo, str(path)).models


def canonical(name: str) -> str | None:
    """The zoo's own name of a model, whatever the letter case or the alias; None where the zoo does not know it."""
    name = name.lower()
    if name in entries():
        return name
    return next((own for own, entry in entries().items() if name in entry.aliases), None)


def refusal(name: str, entry: Entry) -> ValueError | None:
    """Why a known model has no decoder, as an error of one line; None where it has one."""
    if entry.rumour:
        return ValueError(
            f"'{name}' is closed: its size is a rumour ({entry.source}) and its architecture is not published"
        )
    if entry.refused:
        return ValueError(f"'{name}' cannot be expressed: {entry.refused}")
    return None


def figure(text: str) -> Figure:
    """A publisher's figure as a number: digits, at most one point, and M, B or T."""
    digits, unit = (text[:-1], UNITS[text[-1]]) if text[-1] in UNITS else (text, 1)
    decimals = len(digits.partition(".")[2])
    return Figure(text=text, value=float(Decimal(digits) * unit), unit=unit / 10**decimals)
