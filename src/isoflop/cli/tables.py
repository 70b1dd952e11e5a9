"""Tables on a terminal, and numbers that fit into them."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

Units = tuple[int, tuple[str, ...]]
COUNTS: Units = (1000, ("", "K", "M", "B", "T"))
FLOPS: Units = (1000, ("", "k", "M", "G", "T", "P"))
BYTES: Units = (1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def scaled(value: float, units: Units, digits: int = 4) -> str:
    """So many significant digits, and the unit they are in."""
    step, names = units
    power = 0
    while value >= step and power < len(names) - 1:
        value, power = value / step, power + 1
    return f"{value:.{digits}g} {names[power]}".strip()


def new_table(name: str, *columns: str, last: str = "left") -> "Table":
    """A table of numbers, aligned to the right, whose first column names them and whose last may be words."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(name, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in columns[:-1]:
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column(columns[-1], justify="right" if last == "right" else "left")
    return table
