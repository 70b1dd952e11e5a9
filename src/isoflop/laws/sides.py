"""Read the two tables that `isoflop compare-runs` sets side by side, and refuse those that cannot be.

Losses can be compared where they are of one unit, one tokenizer and one text. What a table says of that is held against
the other's: columns that name a tokenizer, a vocabulary, a validation set or a unit; and, where a table has bits per
byte beside its loss, the bytes a token, which differ as soon as the tokenizer or the text does.
"""

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from isoflop.laws.forms import Array
from isoflop.laws.multiplier import Side
from isoflop.laws.tables import RUN_TABLE_MARKS, Columns, Table, read_table

OURS = {"d": "tokens", "flops": "flops_exact", "loss": "loss_valid", "seed": "seed", "cluster": "trunk"}
BITS_PER_BYTE = ("bits_per_byte", "bpb")
TOKENIZERS = ("tokenizer", "vocab_size")  # bits per byte make these comparable
TEXTS = ("validation_set", "valid_set", "eval_set", "loss_unit")  # nothing does
SAME_BYTES = 5e-3  # relative difference of bytes a token that rounding explains
AT_LEAST = 2  # distinct values


@dataclass(frozen=True)
class SideTable:
    """One ladder as read, with what its table says of its unit."""

    side: Side
    metric: Array | None
    loss: str  # its column
    convention: str
    rows: int  # in the file
    left_out: dict[str, int]
    labels: dict[str, tuple[str, ...]]  # of TOKENIZERS and TEXTS: the values of the rows used
    bytes_per_token: float | None


def read_side(path: Path, named: Columns, where: Sequence[tuple[str, str]] = ()) -> SideTable:
    """The rows of a table for which every column of `where` has the value told, done and fitted ones alone.

    Columns default to those of our run table where the file is one. Compute is the FLOP column where there is one, and
    then N is FLOPs / (6 D), so that C = 6 N D holds exactly; FLOPs alone place runs by compute. ValueError where a
    column is missing or holds no positive number, and where no row is left.
    """
    table = read_table(path)
    if set(table.columns) >= RUN_TABLE_MARKS:
        named = _defaults(named)
    if named.loss is None:
        raise ValueError(f"{path}: --loss COL is needed; the table has {_listing(table)}")
    kept, left_out = _kept(table, where)
    n, d, convention = _sizes(table, named, kept)
    loss = _numbers(table, named.loss, kept)
    labels = {
        name: tuple(sorted({str(table.columns[name][row]) for row in kept}))
        for name in (*TOKENIZERS, *TEXTS)
        if name in table.columns
    }
    side = Side(
        n,
        d,
        loss,
        None if named.cluster is None else [str(_cells(table, named.cluster)[row]) for row in kept],
        None if named.seed is None else _numbers(table, named.seed, kept, positive=False),
    )
    metric = None if named.metric is None else _numbers(table, named.metric, kept, positive=False)
    found = _bytes_per_token(table, named.loss, kept, loss)
    return SideTable(side, metric, named.loss, convention, table.rows, left_out, labels, found)


def require_comparable(a: SideTable, b: SideTable) -> list[str]:
    """ValueError where the losses are of different units, tokenizers or texts; notes where that cannot be told."""
    bits = [_is_bits_per_byte(side.loss) for side in (a, b)]
    if bits[0] != bits[1]:
        raise ValueError(f"A's loss is column '{a.loss}' and B's is '{b.loss}': one unit is needed for both")
    for name in TEXTS:
        if name in a.labels and name in b.labels and set(a.labels[name]) != set(b.labels[name]):
            raise ValueError(
                f"column '{name}' is {_values(a, name)} for A and {_values(b, name)} for B: losses of "
                "different texts or units cannot be compared; evaluate both on one"
            )
    if all(bits):
        return []
    advice = "compare bits per byte: --loss bits_per_byte"
    for name in TOKENIZERS:
        every = {value for side in (a, b) for value in side.labels.get(name, ())}
        if len(every) >= AT_LEAST:
            raise ValueError(
                f"column '{name}' holds {', '.join(sorted(every))}: losses a token of other tokenizers "
                f"cannot be compared; {advice}"
            )
    known = a.bytes_per_token, b.bytes_per_token
    if known[0] is None or known[1] is None:
        return ["nothing in the tables tells whether both losses are of one tokenizer and text: that is assumed"]
    if abs(math.log(known[0] / known[1])) > SAME_BYTES:
        raise ValueError(
            f"A's loss is of {known[0]:.3f} bytes a token and B's of {known[1]:.3f}: tokenizers or texts "
            f"differ; {advice}, if the text is one"
        )
    return []


def _defaults(named: Columns) -> Columns:
    told: dict[str, Any] = {name: getattr(named, name) or column for name, column in OURS.items()}
    if named.n is not None and named.flops is None:
        told["flops"] = None  # asked for C = 6 N D of that N
    return replace(named, **told)


def _kept(table: Table, where: Sequence[tuple[str, str]]) -> tuple[list[int], dict[str, int]]:
    wanted: Mapping[str, str] = dict(where)
    if "status" in table.columns:
        wanted = {"status": "done", **wanted}
    if set(table.columns) >= RUN_TABLE_MARKS:
        wanted = {"role": "fit", **wanted}
    kept, left_out = list(range(table.rows)), dict[str, int]()
    for column, value in wanted.items():
        cells = _cells(table, column)
        known = sorted({str(cells[row]) for row in kept})
        matching = [row for row in kept if str(cells[row]) == value]
        if not matching:
            raise ValueError(f"{table.path}: no row has {column} = {value}; there are {', '.join(known[:12])}")
        if len(matching) < len(kept):
            left_out[f"{column} other than {value}"] = len(kept) - len(matching)
        kept = matching
    return kept, left_out


def _sizes(table: Table, named: Columns, rows: Sequence[int]) -> tuple[Array, Array, str]:
    """N and D with 6 N D the compute, and in words what they are."""
    n, d, flops = (None if name is None else _numbers(table, name, rows) for name in (named.n, named.d, named.flops))
    if flops is not None and d is not None:
        return flops / (6 * d), d, f"compute is column '{named.flops}', D is '{named.d}', N is compute / (6 D)"
    if flops is not None and n is not None:
        return n, flops / (6 * n), f"compute is column '{named.flops}', N is '{named.n}', D is compute / (6 N)"
    if flops is not None:
        root = np.sqrt(flops / 6)
        return root, root.copy(), f"compute is column '{named.flops}' and places a run alone"
    if n is not None and d is not None:
        return n, d, f"N is column '{named.n}', D is '{named.d}', compute is 6 N D"
    raise ValueError(f"{table.path}: --n COL and --d COL are needed, or --flops COL; the table has {_listing(table)}")


def _bytes_per_token(table: Table, loss: str, rows: Sequence[int], nats: Array) -> float | None:
    """Of the validation text, where a column of bits per byte stands beside a loss in nats a token."""
    name = next((name for name in BITS_PER_BYTE if name in table.columns and name != loss), None)
    if name is None or any(table.columns[name][row] in (None, "") for row in rows):
        return None
    ratios = nats / (_numbers(table, name, rows) * math.log(2))
    if np.ptp(np.log(ratios)) > SAME_BYTES:
        raise ValueError(
            f"{table.path}: rows are of {ratios.min():.3f} to {ratios.max():.3f} bytes a token: several "
            "tokenizers or texts; use --loss bits_per_byte, or choose rows"
        )
    return float(np.median(ratios))


def _is_bits_per_byte(column: str) -> bool:
    return any(name in column.lower() for name in BITS_PER_BYTE)


def _values(side: SideTable, name: str) -> str:
    return ", ".join(side.labels[name])


def _cells(table: Table, name: str) -> list[object]:
    if name not in table.columns:
        near = difflib.get_close_matches(name, table.columns, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"{table.path}: no column '{name}'; {hint}the table has {_listing(table)}")
    return table.columns[name]


def _numbers(table: Table, name: str, rows: Sequence[int], positive: bool = True) -> Array:
    cells = _cells(table, name)
    values = []
    for row in rows:
        try:
            value = float(cells[row])  # type: ignore[arg-type]
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value) or (positive and value <= 0):
            kind = "positive, finite" if positive else "finite"
            shown = "nothing" if cells[row] in (None, "") else repr(cells[row])
            raise ValueError(f"{table.path}: row {row + 1}, column '{name}': {shown} is not a {kind} number")
        values.append(value)
    return np.array(values)


def _listing(table: Table) -> str:
    return "columns " + ", ".join(f"'{name}'" for name in table.columns)
