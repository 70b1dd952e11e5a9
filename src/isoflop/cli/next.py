"""Which runs to train next: those that most shrink the interval of a forecast, or of the best size, for a budget.

isoflop next runs.csv --n params --d tokens --loss val_loss --budget 1e20 --target 1e22
isoflop next study/runs.parquet --budget 1e15 --target 7e9,1.4e11 --runs-at-most 4 --json
isoflop next runs.csv --n params --d tokens --loss val_loss --budget 1e20 --target 1e22 --goal optimal-n
isoflop next --prior-only --budget 1e19 --target 1e21
isoflop next runs.csv --n params --d tokens --loss val_loss --budget 1e20 --target 1e22 --candidates possible.csv

A run counts 6 N D FLOPs. What each should do to the interval is computed before any is trained; train the first ones,
and ask again with what they showed.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.cli.columns import add_columns, add_level, read, require_level

if TYPE_CHECKING:
    from isoflop.decide.candidates import Candidates
    from isoflop.decide.experiment import Goal, Proposal
    from isoflop.laws.discrepancy import Posterior
    from isoflop.laws.tables import Runs

WIDE = 0.2  # log units from which an interval is told as a factor
LEAST, MOST = 1e-6, 1e40  # FLOPs that are taken for a budget or a target
AT_TWENTY = 120.0  # FLOPs of a run over N^2, at 20 tokens a parameter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_columns(parser, "use", optional=True)
    parser.add_argument(
        "--prior-only",
        action="store_true",
        help="design a ladder before any run (so without RUNS)",
    )
    parser.add_argument("--budget", required=True, type=float, metavar="FLOPS", help="for all of the new runs together")
    parser.add_argument(
        "--target",
        required=True,
        metavar="FLOPS|N,D",
        help="what is to be forecast: a compute (its compute-optimal run), or parameters and tokens",
    )
    parser.add_argument(
        "--goal",
        choices=("loss", "optimal-n"),
        default="loss",
        help="whose interval should shrink: the target's loss (default), or the best N at its compute",
    )
    _add_candidate_arguments(parser)
    parser.add_argument("--runs-at-most", type=int, metavar="K", dest="most", help="how many runs to propose")
    add_level(parser, 0.9)
    parser.add_argument(
        "--force", action="store_true", help="go on even where the table looks mistaken (duplicates, mixed units)"
    )
    parser.add_argument("--json", action="store_true", help="print the JSON document instead of a table")


def _add_candidate_arguments(parser: argparse.ArgumentParser) -> None:
    offered = parser.add_argument_group("what could be trained (a grid of N and D, unless --candidates lists it)")
    offered.add_argument(
        "--candidates", type=Path, metavar="TABLE", help="runs that could be trained: the columns of N and D"
    )
    offered.add_argument("--cost", metavar="COL", help="their column of cost in FLOPs (default: 6 N D)")
    offered.add_argument("--n-range", metavar="LOW:HIGH", help="sizes of the grid (default: from the smallest run)")
    offered.add_argument(
        "--tokens-per-param", metavar="LOW:HIGH", help="D / N of the grid (default: as most runs had, or 5:160)"
    )


def run(args: argparse.Namespace) -> int:
    """Propose and print. Returns the exit code: 1 where the budget buys nothing that would help."""
    import msgspec

    _require(args)
    proposal, convention = _propose(args)
    if args.json:
        document = {**msgspec.to_builtins(proposal), "convention": convention, "candidates_flops": "6ND"}
        if args.cost:
            document["candidates_flops"] = f"column '{args.cost}'"
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    elif proposal.runs:
        _print(proposal, convention)
    if proposal.runs:
        return 0
    print(f"isoflop next: {_nothing(proposal)}", file=sys.stderr)
    return 1


def _require(args: argparse.Namespace) -> None:
    require_level(args.level)
    if not LEAST <= args.budget <= MOST:
        raise ValueError(f"--budget {args.budget:g}: must be a positive number of FLOPs, such as 1e20")
    if args.most is not None and args.most < 1:
        raise ValueError(f"--runs-at-most {args.most}: must be 1 or more")
    if args.runs is not None and args.prior_only:
        raise ValueError(f"--prior-only uses no runs, and {args.runs} was given; leave one of them out")
    if args.candidates and (args.n_range or args.tokens_per_param):
        raise ValueError("--n-range and --tokens-per-param shape the grid, which --candidates replaces; give either")
    if args.cost and not args.candidates:
        raise ValueError("--cost names a column of --candidates TABLE, and no table was given")


def _propose(args: argparse.Namespace) -> "tuple[Proposal, str]":
    import msgspec

    from isoflop.decide.experiment import propose
    from isoflop.laws.discrepancy import posterior

    runs = _runs(args)
    flops, point = _target(args.target)
    done = float((runs.n * runs.d).max() * 6) if runs else 0.0
    if flops <= done:
        raise ValueError(
            f"--target {args.target}: {flops:.3g} FLOPs is not beyond the runs, the dearest of {done:.3g} (6 N D)"
        )
    candidates = _candidates(args, runs, flops)
    told = posterior(runs.n, runs.d, runs.loss) if runs else _prior(candidates)
    convention = runs.convention if runs else "no runs; compute is 6 N D"
    goal = _goal(args.goal, told, flops, point)
    proposal = propose(told, candidates, goal, args.budget, args.level, args.most)
    notes = [*proposal.notes, *(_mistakes(runs) if runs else ())]
    if proposal.spent >= flops:
        notes.append(f"together these runs cost more than the target itself, of {flops:.3g} FLOPs: train that instead")
    return msgspec.structs.replace(proposal, notes=notes), convention


def _runs(args: argparse.Namespace) -> "Runs | None":
    if args.runs is None:
        return None
    runs = read(args)
    if not len(runs.n):
        raise ValueError(f"{args.runs}: none of its {runs.rows} rows is a finished run; --prior-only needs none")
    wrong = _mistakes(runs)
    if wrong and not args.force:
        raise ValueError(f"{args.runs}: {'; '.join(wrong)}; mend the table, or --force goes on with it")
    return runs


def _mistakes(runs: "Runs") -> list[str]:
    from isoflop.laws.soundness import mistakes

    return [*mistakes(runs.n, runs.d, runs.loss), *runs.doubts]


def _prior(candidates: "Candidates") -> "Posterior":
    """Nothing but the prior, anchored at 20 tokens a parameter of the dearest candidate's compute."""
    from isoflop.laws.discrepancy import unseen

    size = math.sqrt(float((6 * candidates.n_c * candidates.d_c).max()) / AT_TWENTY)
    return unseen(size, 20 * size)


def _candidates(args: argparse.Namespace, runs: "Runs | None", target: float) -> "Candidates":
    import numpy as np

    from isoflop.decide.candidates import MOST_OF_TARGET, grid, read_candidates
    from isoflop.laws.tables import Columns

    if args.candidates:
        named = runs.columns if runs else Columns(args.n, args.d)
        return read_candidates(args.candidates, Columns(named.n, named.d, args.flops), args.cost)
    n, d = (runs.n, runs.d) if runs else (np.zeros(0), np.zeros(0))
    most = min(args.budget, MOST_OF_TARGET * target)
    return grid(most, n, d, _range("--n-range", args.n_range), _range("--tokens-per-param", args.tokens_per_param))


def _goal(kind: str, told: "Posterior", flops: float, point: tuple[float, float] | None) -> "Goal":
    from isoflop.decide.experiment import LossAt, OptimalN, best_size

    if kind == "optimal-n":
        return OptimalN(flops)
    return LossAt(*(point or best_size(told, flops)[:2]))


def _target(text: str) -> tuple[float, tuple[float, float] | None]:
    """FLOPs of the target, and its N and D where they are given."""
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < LEAST or not math.prod(numbers) <= MOST:
        raise ValueError(f"--target {text}: must be FLOPs such as 1e22, or parameters and tokens such as 7e9,1.4e11")
    return (numbers[0], None) if len(numbers) == 1 else (6 * numbers[0] * numbers[1], (numbers[0], numbers[1]))


def _range(flag: str, text: str | None) -> tuple[float, float] | None:
    if text is None:
        return None
    try:
        low, high = (float(part) for part in text.split(":"))
    except ValueError:
        low, high = 1.0, 0.0
    if not 0 < low <= high < math.inf:
        raise ValueError(f"{flag} {text}: must be LOW:HIGH, two positive numbers in order, such as 5:160")
    return low, high


def _nothing(proposal: "Proposal") -> str:
    """Why no run is proposed."""
    if proposal.cheapest > proposal.budget:
        return (
            f"a budget of {proposal.budget:.3g} FLOPs buys none of the runs; the smallest that would help costs "
            f"{proposal.cheapest:.3g}"
        )
    return (
        f"no affordable run would narrow the interval, now {_spread(proposal.before)}; every candidate together would "
        f"leave {_spread(proposal.least)}"
    )


def _spread(half_width: float) -> str:
    """How far an interval reaches: in per cent, or as a factor up and down where it is wide."""
    return f"±{half_width:.2%}" if half_width < WIDE else f"×/÷ {math.exp(half_width):.3g}"


def _print(proposal: "Proposal", convention: str) -> None:
    from rich.console import Console
    from rich.table import Table

    what = "loss" if proposal.goal == "loss" else "best N"
    table = Table(title=f"runs to train next, the most telling per FLOP first ({what})", title_justify="left")
    for name in ("N", "D", "FLOPs", "D/N", "interval then", "takes off"):
        table.add_column(name, justify="right")
    for run in proposal.runs:
        shown = _spread(run.half_width), f"{run.took / proposal.before:.1%}"
        table.add_row(f"{run.n:.4g}", f"{run.d:.4g}", f"{run.flops:.3g}", f"{run.d / run.n:.3g}", *shown)
    console = Console()
    console.print(table)
    middle = "" if proposal.middle is None else f" {proposal.middle:.5g}"
    console.print(
        f"{what}{middle} at N = {proposal.n:.4g}, D = {proposal.d:.4g}: {proposal.level:.0%} interval "
        f"{_spread(proposal.before)} now, {_spread(proposal.after)} expected after {len(proposal.runs)} runs of "
        f"{proposal.spent:.3g} FLOPs (budget {proposal.budget:.3g}); {_spread(proposal.least)} with every candidate. "
        f"{convention}.",
        highlight=False,
    )
    for note in proposal.notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False)
