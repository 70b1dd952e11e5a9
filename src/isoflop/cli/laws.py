"""Published scaling laws: their constants, what they were fitted to, how far each was checked; and what they say.

isoflop laws                                       all of them
isoflop laws besiroglu-2024                        one of them, in full
isoflop laws besiroglu-2024 --flops 5.76e23        the best N and D of a budget, and the loss there
isoflop laws hoffmann-2022 --n 7e9 --d 2e12        the loss of one run
isoflop laws krajewski-2024 --n 64e9 --d 3e10 --set G=8

--n, --d and --flops are the law's columns N, D and C; --set gives any other.
"""

import argparse
import re
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from isoflop.laws.presets import Best, Preset


class Answer(msgspec.Struct, frozen=True):
    """The JSON document of one law: it, its value at the columns given, and its best N and D at --flops."""

    law: "Preset"
    columns: dict[str, float]
    value: float | None
    best: "Best | None"
    warnings: list[str]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("name", nargs="?", metavar="NAME", help="a published law; without it, all are listed")
    parser.add_argument("--n", type=float, metavar="N", help="parameters, as the law counts them")
    parser.add_argument("--d", type=float, metavar="D", help="training tokens")
    parser.add_argument("--flops", type=float, metavar="C", help="training FLOPs: the law's C, or the budget to share")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="another column of the law")
    parser.add_argument("--json", action="store_true", help="print the JSON document instead of tables")


def run(args: argparse.Namespace) -> int:
    """List or evaluate, and print. Returns the exit code."""
    from isoflop.laws.presets import PRESETS, preset_named

    given = _columns(args)
    if args.name is None:
        if given or args.flops is not None:
            raise ValueError("values are for one law: name it, such as isoflop laws besiroglu-2024 --flops 1e21")
        _list(PRESETS, args.json)
        return 0
    answer = evaluate(preset_named(args.name), given, args.flops)
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    else:
        _print(answer)
    return 0


def evaluate(law: "Preset", given: dict[str, float], flops: float | None) -> Answer:
    """The law at the columns given, and its best N and D where `flops` is a budget and not one of its columns.

    ValueError for columns it does not have, for some but not all of them, and for a budget of a law that has no best.
    """
    if flops is not None and "C" in law.columns:
        given = {**given, "C": flops}
    unknown = [name for name in given if name not in law.columns]
    if unknown:
        raise ValueError(f"{law.name}: has no column {unknown[0]}; it is of {', '.join(law.columns)}")
    best = None
    if flops is not None and "C" not in law.columns:
        if {"N", "D"} & set(given):
            raise ValueError("--flops finds the best N and D; leave out --n and --d, or --flops")
        best = law.best(flops, **given)
        given = {**given, "N": best.n, "D": best.d}
    value = float(law.value(**given)) if given else None
    return Answer(law, given, value, best, law.outside(**given))


def _columns(args: argparse.Namespace) -> dict[str, float]:
    told = {name: value for name, value in (("N", args.n), ("D", args.d)) if value is not None}
    for one in args.set:
        name, _, value = one.partition("=")
        try:
            told[name] = float(value)
        except ValueError as error:
            raise ValueError(f"--set {one}: write NAME=VALUE, such as G=8") from error
    bad = [name for name, value in told.items() if not 0 < value < float("inf")]
    if bad:
        raise ValueError(f"{bad[0]} of {told[bad[0]]:g}: must be a positive, finite number")
    return told


def _list(laws: "tuple[Preset, ...]", as_json: bool) -> None:
    from rich.console import Console

    from isoflop.cli.tables import new_table

    if as_json:
        print(msgspec.json.format(msgspec.json.encode(laws), indent=2).decode())
        return
    table = new_table("law", "status", "of", "source")
    table.columns[0].justify, table.columns[0].min_width = "left", max(len(law.name) for law in laws)
    for law in laws:
        table.add_row(law.name, law.status, ", ".join(law.columns), _cited(law.source))
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "isoflop laws NAME tells the rest; status: reproduced here, read in the primary source, or secondary."
    )


def _cited(source: str) -> str:
    """Who and when: a source up to its year."""
    found = re.match(r".*?\d{4}", source)
    return found.group() if found else source


def _print(answer: Answer) -> None:
    from rich.console import Console

    law, console = answer.law, Console(highlight=False)
    ranges = (f"{name} {low:.3g} to {high:.3g}" for name, (low, high) in law.fitted.items())
    lines = {
        law.name: law.formula,
        "constants": ", ".join(f"{name} {value:.10g}" for name, value in law.parameters.items()),
        "gives": law.units,
        "convention": law.convention,
        "fitted": "; ".join(ranges) or "not published here",
        "source": f"{law.source} ({law.status})",
        "note": law.note,
    }
    for name, text in lines.items():
        if text:
            console.print(f"{name}: {text}", markup=False, soft_wrap=True)
    if answer.value is not None:
        at = ", ".join(f"{name} {value:.4g}" for name, value in answer.columns.items())
        best = (
            ""
            if answer.best is None
            else f"best at {answer.best.flops:.4g} FLOPs, D/N {answer.best.d / answer.best.n:.3g}: "
        )
        console.print(f"\n{best}{at}: {answer.value:.6g}", markup=False, soft_wrap=True)
    for warning in answer.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
