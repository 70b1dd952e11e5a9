"""Two ladders of runs: the compute multiplier between them, with an interval and a test.

isoflop compare-runs old.csv new.csv --n params --d tokens --loss val_loss
isoflop compare-runs study/runs.csv --a-where family=dense --b-where family=experts --figure families.html
isoflop compare-runs a.parquet b.parquet --flops flops --loss loss --cluster run --at 1e21
isoflop compare-runs old.csv new.csv --n params --d tokens --loss val_loss --metric accuracy --chance 0.25
isoflop compare-runs runs.csv --n params --d tokens --loss val_loss --metric exact_match

The multiplier is how many times the compute of B ladder A needs to reach B's loss: above 1, B is the better one. Runs
of A and B that share N, D and seed are compared in pairs; rows of one --cluster (checkpoints of a run) count as one.
With --metric, an accuracy is fitted through the loss, and what the loss does not explain is tested. One table and no
B: the metric alone.

Exit codes: 0 a difference is established; 1 it is within noise,
or the laws miss the runs; 2 the question was wrong. Of a metric alone: 0 the loss
explains it; 1 a jump remains.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.laws.emergence import Emergence
    from isoflop.laws.multiplier import Comparison, Point
    from isoflop.laws.sides import SideTable
    from isoflop.laws.tables import Columns

SURE = 0.05
COLUMNS = ("n", "d", "flops", "loss", "seed", "cluster")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("a", type=Path, metavar="A", help="table with a row a run; our own needs no columns named")
    parser.add_argument("b", type=Path, metavar="B", nargs="?", help="the other ladder's table (default: A's)")
    for side in "ab":
        parser.add_argument(
            f"--{side}-where",
            action="append",
            default=[],
            metavar="COL=VALUE",
            help=f"the rows that are ladder {side.upper()}; may be repeated",
        )
    meanings = {
        "n": "N, parameters",
        "d": "D, training tokens",
        "flops": "training FLOPs: compute is this column, and with D named N is FLOPs / (6 D)",
        "loss": "the loss, of one unit and text in both tables (bits per byte where tokenizers differ)",
        "seed": "the seed: runs of A and B with the same N, D and seed are pairs",
        "cluster": "what belongs together, such as the checkpoints of one run",
    }
    for name in COLUMNS:
        parser.add_argument(f"--{name}", metavar="COL", help=f"column of {meanings[name]}")
    for name in COLUMNS:
        parser.add_argument(f"--b-{name}", metavar="COL", help=argparse.SUPPRESS)
    parser.add_argument("--at", type=float, metavar="FLOPS", help="budget of the verdict (default: the top both reach)")
    parser.add_argument(
        "--level", type=float, default=0.95, metavar="P", help="of intervals; the test errs in 1 - P (default 0.95)"
    )
    parser.add_argument("--metric", metavar="COL", help="column of an accuracy or exact match, 0 to 1")
    parser.add_argument("--chance", type=float, metavar="X", help="the metric of guessing, held at this")
    parser.add_argument("--names", nargs=2, metavar="NAME", help="what to call A and B")
    parser.add_argument("--figure", type=Path, metavar="FILE", help="draw both ladders: .html, .png, .svg or .pdf")
    parser.add_argument("--json", action="store_true", help="print the JSON document instead of tables")


def run(args: argparse.Namespace) -> int:
    """Compare and print. Returns the exit code: 1 within noise."""
    import msgspec

    alone = args.b is None and not args.b_where
    if alone and args.metric is None:
        raise ValueError("B is missing: name a second table, or --b-where COL=VALUE for other rows of the first")
    _require(args, alone)
    a, b = _tables(args, alone)
    notes = [] if b is None else _comparable(a, b)
    told = None if b is None else _compared(args, a, b)
    metric = None if args.metric is None else _explained(args, a, b)
    names = _names(args)
    if args.figure and told is not None and b is not None:
        _draw(args.figure, told, a, b, names)
    document = {
        "names": {"A": names[0], "B": None if b is None else names[1]},
        "comparison": msgspec.to_builtins(told),
        "emergence": msgspec.to_builtins(metric),
        "tables": {side: _about(one) for side, one in (("A", a), ("B", b)) if one is not None},
        "notes": notes,
    }
    if args.json:
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    else:
        _print(told, metric, (a, b), names, notes)
    if told is not None:
        return int(told.winner is None)
    return int(metric is not None and not metric.explained)


def _require(args: argparse.Namespace, alone: bool) -> None:
    if args.chance is not None and args.metric is None:
        raise ValueError(f"--chance {args.chance:g}: is of --metric COL, and no metric was named")
    if args.chance is not None and not 0 <= args.chance < 1:
        raise ValueError(f"--chance {args.chance:g}: must be at least 0 and below 1, such as 0.25 of four choices")
    if args.figure and alone:
        raise ValueError(f"--figure {args.figure}: draws two ladders, and there is one; name B or leave it out")


def _tables(args: argparse.Namespace, alone: bool) -> "tuple[SideTable, SideTable | None]":
    from isoflop.laws.sides import read_side

    a = read_side(args.a, _named(args, ""), [_where(one, "--a-where") for one in args.a_where])
    if alone:
        return a, None
    return a, read_side(args.b or args.a, _named(args, "b_"), [_where(one, "--b-where") for one in args.b_where])


def _named(args: argparse.Namespace, prefix: str) -> "Columns":
    from isoflop.laws.tables import Columns

    told = {name: getattr(args, prefix + name) or getattr(args, name) for name in COLUMNS}
    return Columns(**told, metric=args.metric)


def _where(text: str, flag: str) -> tuple[str, str]:
    column, separator, value = text.partition("=")
    if not separator or not column:
        raise ValueError(f"{flag} {text}: write COL=VALUE, such as family=dense")
    return column, value


def _comparable(a: "SideTable", b: "SideTable") -> list[str]:
    from isoflop.laws.sides import require_comparable

    return require_comparable(a, b)


def _compared(args: argparse.Namespace, a: "SideTable", b: "SideTable") -> "Comparison":
    from isoflop.laws.multiplier import compare_ladders

    return compare_ladders(a.side, b.side, level=args.level, at=args.at)


def _explained(args: argparse.Namespace, a: "SideTable", b: "SideTable | None") -> "Emergence":
    import numpy as np

    from isoflop.laws.emergence import explain
    from isoflop.laws.multiplier import Side, cluster_labels

    sides = [a] if b is None else [a, b]
    metrics = [side.metric for side in sides if side.metric is not None]
    flops = np.concatenate([6 * side.side.n * side.side.d for side in sides])
    none = np.empty(0)
    labels, _ = cluster_labels(a.side, Side(none, none, none) if b is None else b.side)
    return explain(
        flops,
        np.concatenate([side.side.loss for side in sides]),
        np.concatenate(metrics),
        chance=args.chance,
        clusters=labels,
        is_b=None if b is None else np.repeat([0.0, 1.0], [len(a.side.n), len(b.side.n)]),
    )


def _names(args: argparse.Namespace) -> tuple[str, str]:
    if args.names:
        return args.names[0], args.names[1]
    told = [one.partition("=")[2] for one in (*args.a_where[-1:], *args.b_where[-1:])]
    if len(told) == 2 and told[0] != told[1]:
        return told[0], told[1]
    stems = args.a.stem, (args.b or args.a).stem
    return stems if stems[0] != stems[1] else ("A", "B")


def _draw(path: Path, told: "Comparison", a: "SideTable", b: "SideTable", names: tuple[str, str]) -> None:
    from isoflop.report.ladders import comparison_chart, write_comparison

    chart = comparison_chart(told, (a.side, b.side), names, f"loss ({a.loss})")
    write_comparison(path, chart, verdict(told, names))


def _about(side: "SideTable") -> dict[str, Any]:
    return {
        "convention": side.convention,
        "loss": side.loss,
        "rows": side.rows,
        "used": len(side.side.n),
        "left_out": side.left_out,
        "bytes_per_token": side.bytes_per_token,
    }


def verdict(told: "Comparison", names: tuple[str, str]) -> str:
    """The answer in a sentence."""
    point = told.at
    at = f"at {point.flops:.3g} FLOPs"
    interval = f"{told.level:.0%} interval {_ends(point)}, p = {point.p_value:.2g}"
    if told.winner is None and point.p_value < 1 - told.level:
        return f"No verdict {at}: runs lie {told.residual_rms:.1%} off the laws, too far for {interval} to hold."
    if told.winner is None:
        return f"Within noise {at}: {names[0]} needs {_times(point)} the compute of {names[1]} ({interval})."
    better = names[0] if told.winner == "A" else names[1]
    return f"{better} is better {at}: {names[0]} needs {_times(point)} the compute of {names[1]} ({interval})."


def _times(point: "Point") -> str:
    if point.multiplier is not None:
        return f"{point.multiplier:.3g} times"
    return "more than 1000 times" if point.loss_a > point.loss_b else "less than a thousandth of"


def _ends(point: "Point") -> str:
    low, high = ("open" if end is None else f"{end:.3g}" for end in (point.low, point.high))
    return f"{low} to {high}"


def _print(
    told: "Comparison | None",
    metric: "Emergence | None",
    sides: "tuple[SideTable, SideTable | None]",
    names: tuple[str, str],
    notes: list[str],
) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if told is not None:
        console.print(verdict(told, names), markup=False, soft_wrap=True)
        console.print(_curve_table(told, names))
        for line in (*_evidence(told, names), f"A: {sides[0].convention}; loss is column '{sides[0].loss}'."):
            console.print(line, markup=False, soft_wrap=True)
        notes = [*notes, *told.notes]
    if metric is not None:
        for line in _metric_lines(metric, names):
            console.print(line, markup=False, soft_wrap=True)
    for side, name in zip(sides, names, strict=True):
        if side is not None and side.left_out:
            told_of = ", ".join(f"{count} with {reason}" for reason, count in side.left_out.items())
            console.print(f"{name}: rows left out: {told_of}", markup=False, soft_wrap=True)
    for note in notes:
        console.print(f"note: {note}", style="yellow", markup=False, soft_wrap=True)


def _curve_table(told: "Comparison", names: tuple[str, str]) -> Any:
    from isoflop.cli.tables import new_table

    head = f"{names[0]} needs"
    table = new_table("FLOPs", f"{names[0]} loss", f"{names[1]} loss", head, f"{told.level:.0%} interval", "p")
    for point in told.curve or [told.at]:
        times = "none" if point.multiplier is None else f"x{point.multiplier:.3g}"
        losses = (f"{point.loss_a:.4f}", f"{point.loss_b:.4f}")
        table.add_row(f"{point.flops:.3g}", *losses, times, _ends(point), f"{point.p_value:.2g}")
    return table


def _evidence(told: "Comparison", names: tuple[str, str]) -> list[str]:
    kind = {
        "shared": "One law: floor and exponents are shared, N and D are multiplied",
        "separate": "Two laws: the gap changes with compute by more than a shared law allows",
    }[told.law]
    kind += ", corrected by the runs near each budget, as the laws miss the gap between them" if told.corrected else ""
    changes = "" if told.changes_p_value is None else f" (p of no change {told.changes_p_value:.2g})"
    changes += f", p of one law {told.unlike_p_value:.2g}" if told.unlike_p_value < SURE else ""
    pairs = f", {told.pairs} pairs of runs" if told.pairs else ""
    without = "none" if told.influence.multiplier is None else f"x{told.influence.multiplier:.3g}"
    return [
        f"{kind}{changes}. Runs lie {told.residual_rms:.2%} off it; {told.clusters} clusters{pairs}.",
        f"The chance that {names[1]} is the better one: {told.at.probability_b_better:.1%}.",
        f"Most influence: without {'; '.join(told.influence.runs)}, the multiplier is {without}.",
    ]


def _metric_lines(metric: "Emergence", names: tuple[str, str]) -> list[str]:
    step = metric.step
    beyond = f"a step of {step.size:+.3f} above {step.flops:.3g} FLOPs (p = {step.p_value:.2g})"
    if metric.explained:
        said = (
            f"The metric follows the loss: a sigmoid of it explains {metric.r_squared:.1%}, no jump is left: {beyond}."
        )
    else:
        said = (
            f"The metric does more than follow the loss: beyond its sigmoid ({metric.r_squared:.1%}) there is {beyond}."
        )
    lines = [
        said,
        f"Within the steepest factor of ten of compute come {metric.steepest_metric:.0%} of the metric's rise and "
        f"{metric.steepest_loss:.0%} of the loss's fall; {metric.residual_rms:.3f} off the sigmoid, "
        + ", ".join(f"{name} {value:.4g}" for name, value in metric.sigmoid.items())
        + ".",
    ]
    if metric.between is not None:
        size, chance = metric.between.size, metric.between.p_value
        lines.append(f"At equal loss {names[1]}'s metric is {size:+.3f} beside {names[0]}'s (p = {chance:.2g}).")
    return lines
