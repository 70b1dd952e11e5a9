"""Fit L = E + A/N^alpha + B/D^beta, another form or any formula to any table of runs, with its certificate.

isoflop fit runs.csv --n params --d tokens --loss val_loss --predict big.csv
isoflop fit chinchilla.csv --n 'Model Size' --flops 'Training FLOP' --loss loss --json
isoflop fit study/runs.parquet --family dense
isoflop fit isoflops.csv --n params --flops C --loss loss --approach 2
isoflop fit repeats.csv --form repeats --n params --d tokens --column U=unique_tokens --loss loss
isoflop fit runs.csv --formula 'E + A/N^alpha + k*log(lr/lr0)^2' --n params --column lr=lr --loss loss --fix alpha=0.34
"""

import argparse
import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.cli.columns import add_columns, add_level, columns, read, require_level

if TYPE_CHECKING:
    from isoflop.laws.formula import Coefficient


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_columns(parser, "fit")
    parser.add_argument(
        "--predict",
        type=Path,
        metavar="TARGETS",
        help="table of runs to forecast, with the same columns of N and D (or FLOPs)",
    )
    add_level(parser, 0.8)
    parser.add_argument(
        "--delta",
        type=float,
        default=1e-3,
        metavar="X",
        help="where the Huber loss of log L turns linear (default 1e-3)",
    )
    parser.add_argument(
        "--bootstrap",
        type=int,
        default=1000,
        metavar="R",
        help="resamples behind the intervals of parameters (default 1000; 0: none, and no diagnostics)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the resamples (default 0)")
    _add_form_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the JSON document to FILE as well")
    parser.add_argument("--json", action="store_true", help="print the JSON document instead of tables")


def _add_form_arguments(parser: argparse.ArgumentParser) -> None:
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--form", default="chinchilla", metavar="NAME", help="the form to fit (default chinchilla)")
    form.add_argument("--formula", metavar="EXPR", help="a formula of columns and parameters, such as 'E + A/N^alpha'")
    form.add_argument(
        "--approach",
        type=int,
        choices=(1, 2, 3),
        default=3,
        help="of Hoffmann et al.: 1 the envelope of training curves (--cluster names the run), 2 a parabola for each "
        "budget, 3 the law itself (default)",
    )
    parser.add_argument("--axis", choices=("N", "D"), help="what approach 2 finds the best of (default N)")
    parser.add_argument(
        "--column", action="append", default=[], metavar="NAME=COL", help="the table's column for a name in the formula"
    )
    parser.add_argument("--fix", action="append", default=[], metavar="NAME=VALUE", help="hold a parameter")
    parser.add_argument(
        "--prior", action="append", default=[], metavar="NAME=CENTRE:SPREAD", help="what is known of a parameter"
    )
    parser.add_argument(
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=START[,START]@LOW:HIGH",
        help="where a parameter of --formula starts, and its bounds (default: 0 or more)",
    )
    parser.add_argument(
        "--residual", choices=("log", "plain"), help="of log L (default), or of L itself (with --formula)"
    )
    parser.add_argument(
        "--cluster", metavar="COL", help="rows of one label are drawn together, as one run's checkpoints"
    )
    parser.add_argument(
        "--weight", metavar="COL", help="how much a row counts for the law (forecasts count every row alike)"
    )
    parser.add_argument(
        "--other-n",
        action="append",
        default=[],
        metavar="COL",
        help="column of N under another convention, whose answer is compared (our own names of them are found)",
    )
    parser.add_argument(
        "--force", action="store_true", help="give intervals, and exit with 0, even where the law is refused"
    )


def run(args: argparse.Namespace) -> int:
    """Fit, predict, print. Returns the exit code: 1 where the table cannot carry the law."""
    _require(args)
    if args.approach != 3:
        document = _line_document(args)
    elif _is_plain(args):
        document = _law_document(args)
    else:
        document = _formula_document(args)
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    if args.out:
        _write(args.out, text)
    if args.json:
        sys.stdout.write(text)
    else:
        from isoflop.cli.fit_text import print_document

        print_document(document)
    return int(document["certificate"]["status"] == "refused" and not args.force)


def _law_document(args: argparse.Namespace) -> dict[str, Any]:
    from isoflop.laws.fit import fit_document, fit_law
    from isoflop.laws.tables import read_targets

    runs = read(args)
    # Before the fit, so that a mistake in the targets is told at once.
    targets = read_targets(args.predict, runs.columns) if args.predict else None
    try:
        fit = fit_law(
            runs.n,
            runs.d,
            runs.loss,
            delta=args.delta,
            bootstrap=args.bootstrap,
            seed=args.seed,
            convention=runs.convention,
            n_rows=runs.rows,
            excluded=runs.excluded,
            clusters=runs.clusters,
            weights=runs.weights,
            doubts=runs.doubts,
            conventions=runs.conventions,
        )
    except ValueError as mistake:
        raise ValueError(f"{args.runs}: {mistake}") from mistake
    return fit_document(fit, targets, args.level, args.force)


def _formula_document(args: argparse.Namespace) -> dict[str, Any]:
    """Any form but the plain one, by the formula engine."""
    from isoflop.laws.families import form_named
    from isoflop.laws.formula import Prior, user_formula
    from isoflop.laws.general import fit_formula, formula_document
    from isoflop.laws.tables import read_form_runs, read_form_targets, read_table

    table = read_table(args.runs)
    named = _named_columns(args, list(table.columns))
    settings = dict(map(_coefficient, args.parameter))
    if args.formula is None:
        formula = form_named(args.form)
    else:
        formula = user_formula(args.formula, named, settings, args.residual != "plain")
    used = {name: named[name] for name in formula.columns if name in named}
    runs = read_form_runs(args.runs, used, columns(args), args.family)
    targets = read_form_targets(args.predict, used) if args.predict else None
    try:
        fit = fit_formula(
            formula,
            runs.columns,
            runs.loss,
            delta=args.delta,
            bootstrap=args.bootstrap,
            seed=args.seed,
            clusters=runs.clusters,
            weights=runs.weights,
            fixed=dict(_pair(one, "--fix") for one in args.fix),
            priors={name: Prior(*ends) for name, ends in (_range(one, "--prior") for one in args.prior)},
            convention=runs.convention,
            n_rows=runs.rows,
            excluded=runs.excluded,
            doubts=runs.doubts,
        )
    except ValueError as mistake:
        raise ValueError(f"{args.runs}: {mistake}") from mistake
    return formula_document(fit, targets, args.level, args.force)


def _named_columns(args: argparse.Namespace, table: list[str]) -> dict[str, str]:
    """What each name in a formula means: the table's own columns, then N, D and C by their flags, then --column."""
    named = {column: column for column in table}
    named |= {name: column for name, column in (("N", args.n), ("D", args.d), ("C", args.flops)) if column}
    for one in args.column:
        name, separator, column = one.partition("=")
        if not separator or not name:
            raise ValueError(f"--column {one}: write NAME=COL, such as U=unique_tokens")
        named[name] = column
    return named


def _coefficient(text: str) -> "tuple[str, Coefficient]":
    from isoflop.laws.formula import Coefficient

    name, _, told = text.partition("=")
    starts, _, bounds = told.partition("@")
    low, _, high = bounds.partition(":")
    try:
        values = tuple(float(start) for start in starts.split(",") if start)
        return name, Coefficient(name, float(low or 0.0), float(high or "inf"), values)
    except ValueError as error:
        raise ValueError(f"--parameter {text}: write NAME=START@LOW:HIGH, such as alpha=0.3,0.5@0:2") from error


def _pair(text: str, flag: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        told = float(value)
    except ValueError:
        told = math.nan
    if not math.isfinite(told):
        raise ValueError(f"{flag} {text}: write NAME=VALUE, such as alpha=0.34")
    return name, told


def _range(text: str, flag: str) -> tuple[str, tuple[float, float]]:
    name, _, told = text.partition("=")
    centre, _, spread = told.partition(":")
    try:
        return name, (float(centre), float(spread))
    except ValueError as error:
        raise ValueError(f"{flag} {text}: write NAME=CENTRE:SPREAD, such as alpha=0.35:0.05") from error


def _line_document(args: argparse.Namespace) -> dict[str, Any]:
    """Approaches 1 and 2: N* (or D*) as a power of compute."""
    from isoflop.laws.approaches import line_document

    if args.predict:
        raise ValueError("--predict: approaches 1 and 2 give sizes, not losses; leave it out or use --approach 3")
    runs = read(args)
    if args.approach == 1 and runs.clusters is None:
        raise ValueError("--approach 1: needs --cluster COL, the column that says which run a checkpoint is of")
    try:
        return line_document(runs, args.axis or "N", args.level, args.delta)
    except ValueError as mistake:
        raise ValueError(f"{args.runs}: {mistake}") from mistake


def _require(args: argparse.Namespace) -> None:
    require_level(args.level)
    if not 0 < args.delta < float("inf"):
        raise ValueError(f"--delta {args.delta:g}: must be a positive number, such as 1e-3")
    if args.bootstrap < 0:
        raise ValueError(f"--bootstrap {args.bootstrap}: must be 0 (no intervals) or more, such as 1000")
    if args.seed < 0:
        raise ValueError(f"--seed {args.seed}: must be 0 or more")
    if args.out and not args.out.absolute().parent.is_dir():
        raise ValueError(f"--out {args.out}: there is no directory {args.out.absolute().parent}")
    _require_used(args)


def _require_used(args: argparse.Namespace) -> None:
    """ValueError for an option that the route taken would not look at: nothing asked for is passed over."""
    line = args.approach != 3
    plain = not line and _is_plain(args)
    unused = [
        ("--axis", args.axis is not None and not line, "is of --approach 1 or 2"),
        ("--parameter", args.parameter and args.formula is None, "is of --formula"),
        ("--residual", args.residual is not None and args.formula is None, "is of --formula"),
        ("--column", args.column and (line or plain), "is of --formula, or of a --form with columns beside N and D"),
        ("--fix", args.fix and line, "is of approach 3"),
        ("--prior", args.prior and line, "is of approach 3"),
        ("--other-n", args.other_n and not plain, "is of the form chinchilla with nothing fixed"),
    ]
    for flag, given, told in unused:
        if given:
            raise ValueError(f"{flag}: {told}; leave it out here")


def _is_plain(args: argparse.Namespace) -> bool:
    """Whether the law is L = E + A/N^alpha + B/D^beta with all of it free, which has an engine of its own."""
    return args.form == "chinchilla" and args.formula is None and not (args.fix or args.prior)


def _write(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
