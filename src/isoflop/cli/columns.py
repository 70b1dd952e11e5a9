"""Which columns of anybody's table of runs mean what: the options that verbs about runs share, and the table read."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from isoflop.laws.tables import Columns, Runs


def add_columns(parser: argparse.ArgumentParser, use: str, optional: bool = False) -> None:
    """RUNS (which may be left out if `optional`), and the options that say which of its columns and rows to `use`."""
    parser.add_argument(
        "runs",
        type=Path,
        metavar="RUNS",
        nargs="?" if optional else None,
        help="table with a row a run; our own run table needs no columns named",
    )
    parser.add_argument("--n", metavar="COL", help="column of N, parameters")
    parser.add_argument("--d", metavar="COL", help="column of D, training tokens")
    parser.add_argument("--loss", metavar="COL", help="column of the loss, nats a token (any unit, but one)")
    parser.add_argument(
        "--flops",
        metavar="COL",
        help="column of training FLOPs: gives D (or N) as FLOPs / (6 N) where only one is named, and is held against "
        "them where both are",
    )
    parser.add_argument(
        "--family",
        metavar="NAME",
        help=f"of our own run table: the family to {use} (needed where there are several)",
    )


def add_level(parser: argparse.ArgumentParser, default: float) -> None:
    """How often an interval should hold."""
    parser.add_argument(
        "--level",
        type=float,
        default=default,
        metavar="P",
        help=f"probability that an interval should hold (default {default:g})",
    )


def require_level(level: float) -> None:
    """ValueError for a level outside (0, 1)."""
    if not 0 < level < 1:
        raise ValueError(f"--level {level:g}: must lie strictly between 0 and 1, such as 0.8")


def columns(args: argparse.Namespace) -> "Columns":
    """The columns named; those that a verb has no option for are not."""
    from isoflop.laws.tables import Columns

    cluster, weight = (getattr(args, name, None) for name in ("cluster", "weight"))
    others = tuple(getattr(args, "other_n", ()))
    return Columns(args.n, args.d, args.flops, args.loss, cluster, weight, others=others)


def read(args: argparse.Namespace) -> "Runs":
    """The rows to use. ValueError for a table that cannot be read or lacks a column."""
    from isoflop.laws.tables import read_runs

    return read_runs(args.runs, columns(args), args.family)
