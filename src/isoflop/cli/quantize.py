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
import math
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

if TYPE_CHECKING:
    from isoflop.evaluate.extension import Watch
    from isoflop.model import DecoderModel
    from isoflop.model.quantized import Format
    from isoflop.quantize.report import Report
    from isoflop.quantize.work import Quantized, Question, Way
    from isoflop.train.extend import FineTuning

EXIT_NO = 1
FORMATS = ("int8", "int6", "int5", "int4", "int3", "int2", "nf4", "fp8")
METHODS = ("rtn", "gptq", "awq", "qat")
CONTEXT = 512
BATCH_TOKENS = 8192
REPORT = "quantization_report.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("model", type=Path, metavar="CKPT", help="the trained model: a folder of isoflop.load")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; nothing may be there")
    parser.add_argument("--method", action="append", metavar="M", help=f"{', '.join(METHODS)} (default gptq)")
    parser.add_argument("--format", default="int4", metavar="F", help=f"{', '.join(FORMATS)} (default int4)")
    parser.add_argument("--group", type=int, default=32, metavar="G", help="weights a scale; 0: a row (default 32)")
    parser.add_argument("--asymmetric", action="store_true", help="a zero of its own for each group of integers")
    parser.add_argument("--bits-per-weight", type=float, metavar="B", help="mixed integers under this budget")
    parser.add_argument("--data", metavar="TEXT", help="a study, a prepared folder, or text (default: CKPT's study's)")
    parser.add_argument("--calibration-tokens", type=int, default=2**16, metavar="N", help="training text (65536)")
    parser.add_argument("--eval-tokens", type=int, default=2**17, metavar="E", help="held-out text (131072)")
    parser.add_argument("--context", type=int, metavar="T", help=f"tokens of a window (default {CONTEXT} at most)")
    parser.add_argument("--trained-tokens", type=float, metavar="D", help="of the model's training, for the law")
    parser.add_argument("--steps", type=int, default=0, metavar="K", help="steps of quantization-aware training")
    parser.add_argument("--batch", type=int, metavar="B", help=f"sequences a step (default {BATCH_TOKENS} tokens)")
    parser.add_argument("--lr", type=float, metavar="LR", help="peak learning rate (default 0.08 / d_model)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the order of the text (default 0)")
    parser.add_argument("--json", action="store_true", help=f"print {REPORT} instead of a table")


def run(args: argparse.Namespace) -> int:
    """Quantize, measure, write, print. Returns the exit code."""
    methods = _methods(args.method or ["gptq"])
    _check_numbers(args, methods)
    import torch

    from isoflop.cli.extend_text import watch
    from isoflop.cli.quantize_text import print_report
    from isoflop.train.extend import Diverged
    from isoflop.weights.load import find_weights, load
    from isoflop.weights.writer import refuse_existing

    refuse_existing(args.out)
    chosen = _format(args)
    source = find_weights(args.model)
    model = load(source, torch.float32)
    try:
        with watch(quiet=args.json) as told:
            answer = _quantized(model, source, methods, chosen, args, told)
    except Diverged as error:
        print(f"isoflop quantize: training diverged: {error}", file=sys.stderr)
        return EXIT_NO
    _write(answer, source, args.out)
    if args.json:
        print(_json(answer.report).decode())
    else:
        print_report(answer.report, args.out)
    return 0


def _methods(names: list[str]) -> "tuple[Way, ...]":
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"--method {unknown[0]} is unknown; valid: {', '.join(METHODS)}")
    return cast("tuple[Way, ...]", tuple(dict.fromkeys(names)))


def _check_numbers(args: argparse.Namespace, methods: "tuple[Way, ...]") -> None:
    lowest = {"group": 0, "calibration_tokens": 1, "eval_tokens": 1, "context": 1, "steps": 0, "batch": 1, "seed": 0}
    for name, least in lowest.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be at least {least}")
    for name in ("lr", "bits_per_weight", "trained_tokens"):
        value = getattr(args, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be a finite number above 0")
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


def _quantized(
    model: "DecoderModel",
    source: Path,
    methods: "tuple[Way, ...]",
    chosen: "Format",
    args: argparse.Namespace,
    told: "Watch",
) -> "Quantized":
    from isoflop.evaluate.text import find_dataset
    from isoflop.ladder.run import environment
    from isoflop.quantize.work import quantize

    with tempfile.TemporaryDirectory() as scratch:
        dataset = find_dataset(args.data, source, model.decoder.vocab_size, Path(scratch))
        return quantize(model, _question(model, source, methods, chosen, args), dataset, environment(), told)


def _question(
    model: "DecoderModel", source: Path, methods: "tuple[Way, ...]", chosen: "Format", args: argparse.Namespace
) -> "Question":
    from isoflop.quantize.work import Question

    context = args.context or min(model.decoder.max_context, CONTEXT)
    trained = _tokens_of_study(source) if args.trained_tokens is None else round(args.trained_tokens)
    return Question(
        model=str(args.model),
        command=_command(args),
        ways=methods,
        format=chosen,
        bits_per_weight=args.bits_per_weight,
        context=context,
        calibration_tokens=args.calibration_tokens,
        eval_tokens=args.eval_tokens,
        seed=args.seed,
        tuning=_tuning(model, context, args),
        trained_tokens=trained,
        itemsize=_itemsize(source),
    )


def _tuning(model: "DecoderModel", context: int, args: argparse.Namespace) -> "FineTuning | None":
    from isoflop.train.extend import FineTuning, default_lr

    if args.steps == 0:
        return None
    batch = args.batch or max(1, BATCH_TOKENS // context)
    return FineTuning(args.steps, batch, args.lr or default_lr(model.decoder), args.seed)


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


def _command(args: argparse.Namespace) -> list[str]:
    """The command line that asks the same again."""
    words = ["isoflop", "quantize", str(args.model), str(args.out)]
    skipped = ("model", "out", "json", "traceback")
    for name, value in vars(args).items():
        if name in skipped or value is None or value is False:
            continue
        for one in value if isinstance(value, list) else [value]:
            words += [f"--{name.replace('_', '-')}"] + ([] if one is True else [str(one)])
    return words


def _write(answer: "Quantized", source: Path, out: Path) -> None:
    """The checkpoint and the report; all of it or nothing."""
    from isoflop.evaluate.checkpoint import write_like
    from isoflop.weights.checkpoint import Codes
    from isoflop.weights.quantized import described
    from isoflop.weights.writer import new_folder

    method = answer.report.figures[0].method
    codes = Codes(described(method, answer.weights), answer.weights.__getitem__)
    with new_folder(out) as partial:
        write_like(partial, answer.model, source, f"{answer.report.model} quantized by {method}", codes)
        (partial / REPORT).write_bytes(_json(answer.report) + b"\n")


def _json(report: "Report") -> bytes:
    return msgspec.json.format(msgspec.json.encode(report))
