"""Plan a ladder of runs, train it, fit the scaling law, forecast held-out runs before training them, and report.

Stopped or killed at any point, the same command goes on where it was."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from isoflop.ladder.study import Study, load_study

GOES_ON = "every finished run is kept, and the same command goes on from there"
EXIT_STOPPED = 130  # as shells report a program that Ctrl-C ended


if TYPE_CHECKING:
    from isoflop.ladder.run import Display


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE.toml", help="the study; see examples/")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where it is kept (default: studies/NAME)")
    parser.add_argument("--seed", type=int, metavar="S", help="train with this seed instead of the file's")
    parser.add_argument("--dry-run", action="store_true", help="print the plan and train nothing")
    parser.add_argument("--figures", metavar="DIR", type=Path, help="also write the figures as PNG and SVG")
    parser.add_argument("--json", action="store_true", help="print the result (or the plan) as JSON")


def run(args: argparse.Namespace) -> int:
    study = load_study(args.file)
    if args.seed is not None:
        study = msgspec.structs.replace(study, training=msgspec.structs.replace(study.training, seeds=(args.seed,)))
    folder = args.out or Path("studies") / args.file.stem
    if args.dry_run:
        return _dry_run(study, folder, args.json)
    try:
        return _run(study, folder, args)
    except KeyboardInterrupt:
        print(f"isoflop study: stopped; {GOES_ON}", file=sys.stderr)
        return EXIT_STOPPED
    except OSError as failure:
        raise OSError(f"{_in_words(failure)}; {GOES_ON}") from failure


def _in_words(failure: OSError) -> str:
    if failure.filename:
        return f"{failure.filename}: {failure.strerror}"
    return failure.strerror or str(failure)


def _dry_run(study: Study, folder: Path, as_json: bool) -> int:
    import tempfile

    from isoflop.cli.study_text import Quiet, plan_json, print_plan
    from isoflop.data.prepare import is_prepared
    from isoflop.ladder.run import check_study, plan_study, prepare_data

    check_study(study, folder)
    with tempfile.TemporaryDirectory() as scratch:
        home = folder if is_prepared(study.data, folder / "data") else Path(scratch)
        dataset = prepare_data(study, home, Quiet())
        plan = plan_study(study, dataset)
    if as_json:
        print(plan_json(study, plan, dataset))
    else:
        print_plan(study, plan, dataset)
    return 0


def _run(study: Study, folder: Path, args: argparse.Namespace) -> int:
    from isoflop.cli.study_text import Quiet, outcome_json, print_outcome
    from isoflop.ladder.progress import make_display
    from isoflop.ladder.run import run_study

    display = Quiet() if args.json else make_display()
    outcome = run_study(study, folder, display)
    answers = _report(folder, args.figures, display)
    if args.json:
        print(outcome_json(outcome, answers, folder))
    else:
        print_outcome(outcome, answers, folder)
    whole = not outcome.failures and all(row.status == "done" for row in outcome.rows)
    return 0 if whole and all(not isinstance(law, str) for law in outcome.laws.values()) else 1


def _report(folder: Path, figures: Path | None, display: "Display") -> list[str]:
    """Write the report, and the figures if asked; returns which family wins, where there are several."""
    from isoflop import report

    try:
        report.write(folder)
    except ValueError as error:  # plotly is an extra: without it a study still ends well
        display.stage(f"no report: {error}")
    if figures:
        report.export_figures(folder, figures)
    return report.verdicts(folder)
