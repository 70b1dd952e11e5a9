"""A trained model with weights of few bits: what it takes, and what it costs on held-out text.

isoflop quantize studies/quickstart small --method gptq --format int4 --group 32
isoflop quantize CKPT OUT --method awq --method rtn --format int3 --asymmetric --trained-tokens 3e6
isoflop quantize CKPT OUT --method gptq --bits-per-weight 3.5
isoflop quantize CKPT OUT --method qat --steps 200 --format int2 --asymmetric

OUT is a checkpoint that isoflop.load reads, with quantization_report.json beside it; it appears whole or not at all.
Several methods are compared on the same text, and the first is written. GPTQ and AWQ are calibrated on training text;
losses are of other, held-out documents. --bits-per-weight gives each layer integers of 2 to 8 bits by how much its
rounding costs. Router, embeddings, convolutions and recurrences stay in full precision.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from isoflop.cli.remaking import (
    EXIT_NO,
    Trained,
    add_model,
    add_text,
    add_training,
    command,
    fine_tuning,
    open_trained,
    remade,
    require_at_least,
    require_methods,
    require_positive,
)

if TYPE_CHECKING:
    from isoflop.model.quantized import Format
    from isoflop.quantize.report import Report
    from isoflop.quantize.work import Quantized, Question, Way

FORMATS = ("int8", "int6", "int5", "int4", "int3", "int2", "nf4", "fp8")
METHODS = ("rtn", "gptq", "awq", "qat")
CONTEXT = 512
EVAL_TOKENS = 2**17
REPORT = "quantization_report.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_model(parser)
    parser.add_argument("--method", action="append", metavar="M", help=f"{', '.join(METHODS)} (default gptq)")
    parser.add_argument("--format", default="int4", metavar="F", help=f"{', '.join(FORMATS)} (default int4)")
    parser.add_argument("--group", type=int, default=32, metavar="G", help="weights a scale; 0: a row (default 32)")
    parser.add_argument("--asymmetric", action="store_true", help="a zero of its own for each group of integers")
    parser.add_argument("--bits-per-weight", type=float, metavar="B", help="mixed integers under this budget")
    add_text(parser, EVAL_TOKENS)
    parser.add_argument("--calibration-tokens", type=int, default=2**16, metavar="N", help="training text (65536)")
    parser.add_argument("--context", type=int, metavar="T", help=f"tokens of a window (default {CONTEXT} at most)")
    parser.add_argument("--trained-tokens", type=float, metavar="D", help="of the model's training, for the law")
    add_training(parser, "quantization-aware training")
    parser.add_argument("--json", action="store_true", help=f"print {REPORT} instead of a table")


def run(args: argparse.Namespace) -> int:
    """Quantize, measure, write, print. Returns the exit code."""
    methods = cast("tuple[Way, ...]", require_methods(args.method or ["gptq"], METHODS))
    _check_numbers(args, methods)
    from isoflop.cli.quantize_text import print_report
    from isoflop.quantize.work import quantize

    chosen = _format(args)
    trained = open_trained(args)
    question = _question(trained, methods, chosen, args)
    answer = remade("quantize", args, trained, question.context, partial(quantize, trained.model, question))
    if answer is None:
        return EXIT_NO
    _write(answer, trained.source, args.out)
    if args.json:
        print(_json(answer.report).decode())
    else:
        print_report(answer.report, args.out)
    return 0


def _check_numbers(args: argparse.Namespace, methods: "tuple[Way, ...]") -> None:
    lowest = {"group": 0, "calibration_tokens": 1, "eval_tokens": 1, "context": 1, "steps": 0, "batch": 1, "seed": 0}
    require_at_least(args, lowest)
    require_positive(args, "lr", "bits_per_weight", "trained_tokens")
    if ("qat" in methods) != (args.steps > 0):
        raise ValueError("--method qat and --steps K belong together")
    if args.bits_per_weight is not None and not args.format.startswith("int"):
        raise ValueError(f"--bits-per-weight chooses among integers, not {args.format}")
    if args.asymmetric and not args.format.startswith("int"):
        raise ValueError(f"--asymmetric is of integers, not of {args.format}")


def _format(args: argparse.Namespace) -> "Format":
    from isoflop.model.quantized import Float8, Integer, NormalFloat

    match args.format:
        case "nf4":
            return NormalFloat(group=args.group)
        case "fp8":
            return Float8(group=args.group)
        case name if name in FORMATS:
            return Integer(bits=int(name[3:]), group=args.group, symmetric=not args.asymmetric)
        case name:
            raise ValueError(f"--format {name} is unknown; valid: {', '.join(FORMATS)}")


def _question(trained: Trained, methods: "tuple[Way, ...]", chosen: "Format", args: argparse.Namespace) -> "Question":
    from isoflop.quantize.work import Question

    model, source = trained
    longest = model.decoder.max_context
    if args.context is not None and args.context > longest:
        raise ValueError(f"--context {args.context}: the model takes at most {longest} tokens")
    context = args.context or min(longest, CONTEXT)
    trained_tokens = _tokens_of_study(source) if args.trained_tokens is None else round(args.trained_tokens)
    return Question(
        model=str(args.model),
        command=command("quantize", args),
        ways=methods,
        format=chosen,
        bits_per_weight=args.bits_per_weight,
        context=context,
        calibration_tokens=args.calibration_tokens,
        eval_tokens=args.eval_tokens,
        seed=args.seed,
        tuning=fine_tuning(args, model, context),
        trained_tokens=trained_tokens,
        itemsize=_itemsize(source),
    )


def _tokens_of_study(source: Path) -> int | None:
    """How long the run was trained that a study kept: STUDY/jobs/TRUNK/models/RUN."""
    from isoflop.table import read_table

    parents = source.resolve().parents
    if len(parents) < 4 or not (parents[3] / "runs.parquet").is_file():
        return None
    return next((row.tokens for row in read_table(parents[3]) if row.run == source.resolve().name), None)


def _itemsize(source: Path) -> int:
    from isoflop.weights.convert import main_dtype
    from isoflop.weights.folder import TensorFolder

    size: int = main_dtype(TensorFolder(source, codes=True)).itemsize
    return size


def _write(answer: "Quantized", source: Path, out: Path) -> None:
    """The checkpoint and the report; all of it or nothing."""
    from isoflop.evaluate.checkpoint import write_like
    from isoflop.weights.checkpoint import Codes
    from isoflop.weights.quantized import described
    from isoflop.weights.writer import new_folder

    method = answer.report.figures[0].method
    codes = Codes(described(method, answer.weights), answer.weights.__getitem__)
    with new_folder(out) as folder:
        write_like(folder, answer.model, source, f"{answer.report.model} quantized by {method}", codes)
        (folder / REPORT).write_bytes(_json(answer.report) + b"\n")


def _json(report: "Report") -> bytes:
    return msgspec.json.format(msgspec.json.encode(report))
