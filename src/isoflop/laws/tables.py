"""Read anybody's table of runs: CSV, .csv.gz or Parquet, columns mapped by name, every mistake told in one line."""

import csv
import difflib
import gzip
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from isoflop.laws.forms import Array
from isoflop.laws.soundness import flops_doubts

RUN_TABLE = {"n": "n_params_matmul", "d": "tokens", "loss": "loss_valid"}  # the columns that a study's laws use
N_MEANING = {
    "n_params": ", every parameter",
    "n_params_matmul": ", matmul parameters (active, with the output table)",
    "n_params_non_embedding": ", without the input and output tables",
}
TRUNK = "trunk"  # runs that branch from one are no more independent than checkpoints of one run
RUN_TABLE_MARKS = {*RUN_TABLE.values(), "status", "role"}
STATUSES = {"done", "diverged", "failed"}


@dataclass(frozen=True)
class Table:
    """A table as read: cells are strings (CSV) or what Parquet holds."""

    path: Path
    columns: dict[str, list[object]]
    rows: int


@dataclass(frozen=True)
class Columns:
    """Which columns hold N, D, FLOPs and the loss, and what else is known of a row; None where not named."""

    n: str | None = None
    d: str | None = None
    flops: str | None = None
    loss: str | None = None
    cluster: str | None = None  # labels of what belongs together, such as the checkpoints of one run
    weight: str | None = None  # how much a row counts
    seed: str | None = None
    metric: str | None = None  # what is measured beside the loss, such as an accuracy
    others: tuple[str, ...] = ()  # N under other conventions, beside those of our run table


@dataclass(frozen=True)
class Runs:
    """The rows to fit."""

    n: Array
    d: Array
    loss: Array
    columns: Columns
    convention: str
    rows: int  # in the file
    excluded: dict[str, int]  # why a row was left out -> how many
    flops: Array  # of the FLOP column where one is named, otherwise 6 N D
    clusters: list[str] | None = None
    weights: Array | None = None
    conventions: dict[str, Array] = field(default_factory=dict)  # other columns of N
    doubts: tuple[str, ...] = ()  # why the columns may not mean what they say


@dataclass(frozen=True)
class FormRuns:
    """The rows to fit a formula to: its columns by the formula's names."""

    columns: dict[str, Array]
    loss: Array
    convention: str
    rows: int
    excluded: dict[str, int]
    clusters: list[str] | None
    weights: Array | None
    doubts: tuple[str, ...] = ()


def read_table(path: Path) -> Table:
    """Read a CSV, gzipped CSV or Parquet file. Raises ValueError if it is missing, unreadable or has no rows."""
    if not path.exists():
        raise ValueError(f"{path}: no such file; give a CSV, .csv.gz or Parquet table")
    if path.is_dir():
        raise ValueError(
            f"{path}: is a directory; give a CSV, .csv.gz or Parquet table, such as {path / 'runs.parquet'}"
        )
    try:
        columns = _read_parquet(path) if _is_parquet(path) else _read_csv(path)
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: cannot be read as CSV, .csv.gz or Parquet: {_one_line(error)}") from error
    rows = len(next(iter(columns.values()), []))
    if not rows:
        raise ValueError(f"{path}: has no rows; a table needs a header line and at least one row")
    return Table(path, columns, rows)


def read_runs(path: Path, columns: Columns, family: str | None = None) -> Runs:
    """The rows of a table to fit a law to.

    Unnamed columns default to those of our run table when the file is one. Rows with a status other than done, and in
    our run table with a role other than fit, are left out and counted: the rows that a study fits its law to. There the
    runs of one trunk are one cluster. Of a run table of several families `family` says which; ValueError where it does
    not, or names none of them.
    """
    table, columns, kept, excluded = _rows(path, columns, family)
    assert columns.loss is not None
    n, d = _sizes(table, columns, kept)
    loss = _positive(table, columns.loss, kept)
    flops = 6 * n * d if columns.flops is None else _positive(table, columns.flops, kept)
    return Runs(
        n=n,
        d=d,
        loss=loss,
        columns=columns,
        convention=_convention(columns, _is_ours(table)),
        rows=table.rows,
        excluded=excluded,
        flops=flops,
        clusters=_clusters(table, columns.cluster, kept),
        weights=None if columns.weight is None else _positive(table, columns.weight, kept),
        conventions={name: _positive(table, name, kept) for name in _others(table, columns)},
        doubts=_doubts(table, columns, kept),
    )


def _rows(
    path: Path, columns: Columns, family: str | None, sizes: bool = True
) -> tuple[Table, Columns, list[int], dict[str, int]]:
    """The table, its columns with our run table's defaults (N and D among them where `sizes`), the rows to use, and how
    many were left out for what reason."""
    table = read_table(path)
    ours = _is_ours(table)
    if ours:
        columns = _defaults(table, columns, sizes)
    if columns.loss is None:
        raise ValueError(f"{path}: --loss COL is needed; the table has {_listing(table)}")
    kept, excluded = _kept(table, ours, _family(table, ours, family))
    if not kept:
        left_out = ", ".join(f"{count} {reason}" for reason, count in excluded.items())
        raise ValueError(f"{path}: no rows to use; left out: {left_out}")
    return table, columns, kept, excluded


def _is_ours(table: Table) -> bool:
    return set(table.columns) >= RUN_TABLE_MARKS


def _others(table: Table, columns: Columns) -> list[str]:
    """N under other conventions: by the names that our run table gives them, and the columns named."""
    known = [name for name in N_MEANING if name in table.columns]
    return [name for name in dict.fromkeys([*known, *columns.others]) if name != columns.n]


def _doubts(table: Table, columns: Columns, rows: Sequence[int]) -> tuple[str, ...]:
    """Whether a FLOP column contradicts N and D, where all three are named."""
    if columns.flops is None or columns.n is None or columns.d is None:
        return ()
    n, d, flops = (_positive(table, name, rows) for name in (columns.n, columns.d, columns.flops))
    return flops_doubts(n, d, flops, columns.flops)


def read_form_runs(path: Path, named: Mapping[str, str], columns: Columns, family: str | None = None) -> FormRuns:
    """The rows of a table to fit a formula to; `named` gives the table's column for each of the formula's.

    Columns of the formula that are not named are looked for under their own names. Zeros and negative numbers are
    numbers here; the formula says what it cannot take.
    """
    table, columns, kept, excluded = _rows(path, columns, family, sizes=False)
    assert columns.loss is not None
    told = "; ".join(f"{name} is column '{column}'" for name, column in named.items())
    return FormRuns(
        columns={name: _finite(table, column, kept) for name, column in named.items()},
        loss=_finite(table, columns.loss, kept),
        convention=told,
        rows=table.rows,
        excluded=excluded,
        clusters=_clusters(table, columns.cluster, kept),
        weights=None if columns.weight is None else _positive(table, columns.weight, kept),
        doubts=_doubts(table, columns, kept),
    )


def read_form_targets(path: Path, named: Mapping[str, str]) -> dict[str, Array]:
    """The columns of a formula for the rows to predict."""
    table = read_table(path)
    return {name: _finite(table, column, range(table.rows)) for name, column in named.items()}


def _clusters(table: Table, name: str | None, rows: Sequence[int]) -> list[str] | None:
    return None if name is None else [str(_cells(table, name)[row]) for row in rows]


def read_targets(path: Path, columns: Columns) -> tuple[Array, Array]:
    """N and D of the rows to predict, from the same columns as the runs."""
    table = read_table(path)
    if columns.flops in table.columns and columns.n and columns.d:  # either size may be left to follow from FLOPs
        present = {"n": columns.n in table.columns, "d": columns.d in table.columns}
        if present["n"] != present["d"]:
            columns = Columns(columns.n if present["n"] else None, columns.d if present["d"] else None, columns.flops)
    return _sizes(table, columns, range(table.rows))


def _sizes(table: Table, columns: Columns, rows: Sequence[int]) -> tuple[Array, Array]:
    """N and D, one of them from FLOPs = 6 N D where only the other is named."""
    if columns.n is None and columns.d is None:
        told = "--flops alone cannot tell N from D; add" if columns.flops else "needed:"
        raise ValueError(f"{table.path}: {told} --n COL or --d COL; the table has {_listing(table)}")
    if columns.flops is None and (columns.n is None or columns.d is None):
        missing = "--n" if columns.n is None else "--d"
        raise ValueError(f"{table.path}: {missing} COL (or --flops COL) is needed; the table has {_listing(table)}")
    n = None if columns.n is None else _positive(table, columns.n, rows)
    d = None if columns.d is None else _positive(table, columns.d, rows)
    if n is not None and d is not None:
        return n, d
    assert columns.flops is not None
    product = _positive(table, columns.flops, rows) / 6
    if n is not None:
        return n, product / n
    assert d is not None
    return product / d, d


def _positive(table: Table, name: str, rows: Sequence[int]) -> Array:
    """The named column as positive floats."""
    cells = _cells(table, name)
    return np.array([_number(cells[row], table, name, row) for row in rows], dtype=float)


def _finite(table: Table, name: str, rows: Sequence[int]) -> Array:
    """The named column as finite floats."""
    cells = _cells(table, name)
    return np.array([_number(cells[row], table, name, row, positive=False) for row in rows], dtype=float)


def _cells(table: Table, name: str) -> list[object]:
    if name not in table.columns:
        near = difflib.get_close_matches(name, table.columns, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"{table.path}: no column '{name}'; {hint}the table has {_listing(table)}")
    return table.columns[name]


def _number(cell: object, table: Table, name: str, row: int, positive: bool = True) -> float:
    try:
        value = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        value = math.nan
    if math.isfinite(value) and (value > 0 or not positive):
        return value
    shown = "nothing" if cell is None or cell == "" else repr(cell)
    kind = "positive, finite" if positive else "finite"
    raise ValueError(f"{table.path}: row {row + 1}, column '{name}': {shown} is not a {kind} number")


def _family(table: Table, ours: bool, family: str | None) -> str | None:
    """The family to fit, of our run table; None where its rows are all of one (or nothing says of which)."""
    if family is not None and not (ours and "family" in table.columns):
        raise ValueError(f"{table.path}: --family is for Isoflop's own run table; leave out the other rows instead")
    names = list(dict.fromkeys(map(str, table.columns.get("family", [])))) if ours else []
    known = ", ".join(f"'{name}'" for name in names)
    if family is not None and family not in names:
        raise ValueError(f"{table.path}: no family '{family}'; the table has {known}")
    if family is None and len(names) > 1:
        raise ValueError(f"{table.path}: holds {len(names)} families, {known}, and a law is of one; add --family NAME")
    return family


def _kept(table: Table, ours: bool, family: str | None) -> tuple[list[int], dict[str, int]]:
    """The rows to use, and how many were left out for what reason."""
    status = table.columns.get("status")
    if status is None or not set(status) <= STATUSES:
        return list(range(table.rows)), {}
    reasons = [None if state == "done" else f"status {state}" for state in status]
    if ours:
        roles = table.columns["role"]
        reasons = [
            reason or (None if role == "fit" else f"role {role}") for reason, role in zip(reasons, roles, strict=True)
        ]
    if family is not None:
        families = map(str, table.columns["family"])
        reasons = [reason if one == family else f"family {one}" for reason, one in zip(reasons, families, strict=True)]
    excluded: dict[str, int] = {}
    for reason in filter(None, reasons):
        excluded[reason] = excluded.get(reason, 0) + 1
    return [row for row, reason in enumerate(reasons) if reason is None], excluded


def _defaults(table: Table, columns: Columns, sizes: bool) -> Columns:
    """Our own run table's columns, where none are named."""
    named = replace(columns, loss=columns.loss or RUN_TABLE["loss"])
    if columns.cluster is None and TRUNK in table.columns:
        named = replace(named, cluster=TRUNK)
    if sizes and columns.flops is None:
        named = replace(named, n=columns.n or RUN_TABLE["n"], d=columns.d or RUN_TABLE["d"])
    return named


def _convention(columns: Columns, ours: bool) -> str:
    n = f"N is column '{columns.n}'" if columns.n else f"N = '{columns.flops}' / (6 D)"
    d = f"D is column '{columns.d}'" if columns.d else f"D = '{columns.flops}' / (6 N)"
    meaning = N_MEANING.get(columns.n or "", "") if ours else ""
    return f"{n}{meaning}; {d}; compute is 6 N D"


def _is_parquet(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PAR1"


def _read_parquet(path: Path) -> dict[str, list[object]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        _require_distinct(path, pq.read_schema(path).names)
        columns: dict[str, list[object]] = pq.read_table(path).to_pydict()
    except pa.ArrowException as error:
        raise OSError(_one_line(error)) from error
    return columns


def _read_csv(path: Path) -> dict[str, list[object]]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    with (gzip.open if zipped else open)(path, "rt", encoding="utf-8-sig", newline="") as text:
        lines = [line for line in csv.reader(text, strict=True) if line]
    if not lines:
        return {}
    header, *rows = [[cell.strip() for cell in line] for line in lines]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header):
            raise csv.Error(f"row {number} has {len(row)} cells, the header has {len(header)}")
    _require_distinct(path, header)
    return {name: [row[k] for row in rows] for k, name in enumerate(header)}


def _require_distinct(path: Path, header: Sequence[str]) -> None:
    """Two columns of one name: which is meant cannot be known. Columns without a name cannot be asked for."""
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        names = ", ".join(f"'{name}'" for name in twice)
        raise ValueError(f"{path}: the header has {names} more than once; give every column its own name")


def _listing(table: Table) -> str:
    return "columns " + ", ".join(f"'{name}'" for name in table.columns)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
