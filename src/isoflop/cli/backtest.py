"""Forecast the dearer runs of a table from its cheaper ones: error, its side, and how often intervals held.

isoflop backtest runs.csv --n params --d tokens --loss val_loss
isoflop backtest study/runs.parquet --family dense --json
"""

import argparse
import sys
from typing import TYPE_CHECKING, Any

from isoflop.cli.columns import add_columns, add_level, read, require_level

if TYPE_CHECKING:
    from isoflop.laws.backtest import Backtest, Errors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_columns(parser, "use")
    add_level(parser, 0.9)
    parser.add_argument("--json", action="store_true", help="print the JSON document instead of tables")


def run(args: argparse.Namespace) -> int:
    """Hold out, forecast, print. Returns the exit code."""
    import msgspec

    from isoflop.laws.backtest import backtest

    require_level(args.level)
    runs = read(args)
    try:
        told = backtest(runs.n, runs.d, runs.loss, args.level)
    except ValueError as mistake:
        raise ValueError(f"{args.runs}: {mistake}") from mistake
    told = msgspec.structs.replace(told, notes=[*told.notes, *runs.doubts])
    if args.json:
        document = {**msgspec.to_builtins(told), "convention": runs.convention, "excluded": runs.excluded}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    else:
        _print(told, runs.convention, runs.excluded)
    return 0


def _print(told: "Backtest", convention: str, excluded: dict[str, int]) -> None:
    from rich.console import Console

    console = Console()
    console.print(_table("by compute over the largest fitted", ("times",), _band_rows(told)))
    console.print(_table("by hold-out", ("fitted", "to FLOPs"), _fold_rows(told)))
    pooled = told.pooled
    console.print(
        f"{told.level:.0%} intervals held {pooled.coverage:.0%} of the {pooled.forecasts} forecasts of "
        f"{len(told.folds)} hold-outs, each hold-out counted once. Errors are forecast over measured, less 1; 'plain' "
        f"are those of the plain Chinchilla fit. {convention}.",
        highlight=False,
    )
    for reason, count in excluded.items():
        console.print(f"left out: {count} {reason}", highlight=False)
    for note in told.notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False)


def _band_rows(told: "Backtest") -> list[tuple[tuple[str, ...], "Errors"]]:
    return [
        ((f"{band.above:g} to {band.up_to:g}" if band.up_to else f"over {band.above:g}",), band.errors)
        for band in told.bands
    ]


def _fold_rows(told: "Backtest") -> list[tuple[tuple[str, ...], "Errors"]]:
    rows = [((f"{f.fitted}", f"{f.fitted_compute:.2g}"), f.errors) for f in told.folds]
    return [*rows, (("all", ""), told.pooled)]


def _table(title: str, first: tuple[str, ...], rows: list[tuple[tuple[str, ...], "Errors"]]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for name in (*first, "runs", "bias", "error", "held", "width", "plain bias", "error"):
        table.add_column(name, justify="right")
    for names, errors in rows:
        plain = ("none", "none")
        if errors.plain_bias is not None:
            plain = (f"{errors.plain_bias:+.2%}", f"{errors.plain_absolute_error:.2%}")
        ours = (f"{errors.bias:+.2%}", f"{errors.absolute_error:.2%}", f"{errors.coverage:.0%}", f"{errors.width:.1%}")
        table.add_row(*names, str(errors.forecasts), *ours, *plain)
    return table
