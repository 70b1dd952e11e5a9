"""A trained model at a longer context: its rope scaled, fine-tuned if asked, and its loss by position before and after.

isoflop extend studies/long_context/jobs/TRUNK/models/RUN studies/longer --context 1024
isoflop extend CKPT OUT --context 1024 --method yarn --method linear --steps 200 --beside OTHER

OUT is a checkpoint of the extended model with position.json and report.html beside it; it appears whole or not at all.
Several methods are compared, and the first is written and fine-tuned. Method none raises the context without scaling.
--beside shows other models, such as one with ALiBi or with windows and sinks, on the same text.
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from isoflop.architecture.extend import METHODS, Method, extended

if TYPE_CHECKING:
    from isoflop.evaluate.curve import LossByPosition
    from isoflop.evaluate.extension import Extended, Watch
    from isoflop.model import DecoderModel
    from isoflop.train.extend import FineTuning

EXIT_NO = 1
BATCH_TOKENS = 8192
EVAL_TOKENS = 2**18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("model", type=Path, metavar="CKPT", help="the trained model: a folder of isoflop.load")
    parser.add_argument("out", type=Path, metavar="OUT", help="the folder to write; nothing may be there")
    parser.add_argument("--context", type=int, required=True, metavar="N", help="tokens that the model is to take")
    parser.add_argument("--method", action="append", metavar="M", help=f"{', '.join(METHODS)} (default yarn)")
    parser.add_argument("--steps", type=int, default=0, metavar="K", help="steps of fine-tuning (default 0)")
    parser.add_argument("--batch", type=int, metavar="B", help=f"sequences a step (default {BATCH_TOKENS} tokens)")
    parser.add_argument("--lr", type=float, metavar="LR", help="peak learning rate (default 0.08 / d_model)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the order of the text (default 0)")
    parser.add_argument("--data", metavar="TEXT", help="a study, a prepared folder, or text (default: CKPT's study's)")
    parser.add_argument("--beside", action="append", metavar="CKPT", default=[], help="another model in the figure")
    parser.add_argument(
        "--eval-tokens",
        type=int,
        default=EVAL_TOKENS,
        metavar="E",
        help=f"held-out tokens read (default {EVAL_TOKENS})",
    )
    parser.add_argument("--json", action="store_true", help="print position.json instead of a table")


def run(args: argparse.Namespace) -> int:
    """Extend, measure, write, print. Returns the exit code."""
    methods = _methods(args.method or ["yarn"])
    _check_numbers(args)
    import torch

    from isoflop.cli.extend_text import print_result, watch
    from isoflop.train.extend import Diverged
    from isoflop.weights.load import find_weights, load
    from isoflop.weights.quantized import require_plain
    from isoflop.weights.writer import refuse_existing

    refuse_existing(args.out)
    source = find_weights(args.model)
    model = load(source, torch.float32)
    require_plain(model, str(args.model))
    for method in methods:
        extended(model.decoder, args.context, method)  # refused before any text is read
    try:
        with watch(quiet=args.json) as told:
            answer = _measured(model, source, methods, args, told)
    except Diverged as error:
        print(f"isoflop extend: fine-tuning diverged: {error}", file=sys.stderr)
        return EXIT_NO
    _write(answer, source, args.out)
    if args.json:
        print(_json(answer.result).decode())
    else:
        print_result(answer.result, args.out)
    return 0


def _methods(names: list[str]) -> tuple[Method, ...]:
    unknown = [name for name in names if name not in METHODS]
    if unknown:
        raise ValueError(f"--method {unknown[0]} is unknown; valid: {', '.join(METHODS)}")
    return cast("tuple[Method, ...]", tuple(dict.fromkeys(names)))


def _check_numbers(args: argparse.Namespace) -> None:
    lowest = {"context": 1, "steps": 0, "batch": 1, "seed": 0, "eval_tokens": 1}
    for name, least in lowest.items():
        value = getattr(args, name)
        if value is not None and value < least:
            raise ValueError(f"--{name.replace('_', '-')} {value} must be at least {least}")
    if args.lr is not None and not 0 < args.lr < math.inf:
        raise ValueError(f"--lr {args.lr} must be a finite number above 0")
    if args.steps == 0 and (args.lr is not None or args.batch is not None):
        raise ValueError("--lr and --batch are of the fine-tuning, which --steps K asks for")


def _measured(
    model: "DecoderModel", source: Path, methods: tuple[Method, ...], args: argparse.Namespace, told: "Watch"
) -> "Extended":
    from isoflop.evaluate.extension import Question, extend
    from isoflop.evaluate.text import find_dataset
    from isoflop.ladder.run import environment

    with tempfile.TemporaryDirectory() as scratch:
        dataset = find_dataset(args.data, source, model.decoder.vocab_size, Path(scratch))
        question = Question(
            model=str(args.model),
            command=_command(args),
            context=args.context,
            methods=methods,
            tuning=_tuning(model, args),
            beside=tuple(map(Path, args.beside)),
            eval_tokens=args.eval_tokens,
        )
        return extend(model, question, dataset, environment(), told)


def _tuning(model: "DecoderModel", args: argparse.Namespace) -> "FineTuning | None":
    from isoflop.train.extend import FineTuning, default_lr

    if args.steps == 0:
        return None
    batch = args.batch or max(1, BATCH_TOKENS // args.context)
    return FineTuning(args.steps, batch, args.lr or default_lr(model.decoder), args.seed)


def _command(args: argparse.Namespace) -> list[str]:
    """The command line that asks the same again."""
    words = ["isoflop", "extend", str(args.model), str(args.out)]
    options = ("context", "method", "steps", "batch", "lr", "seed", "data", "beside", "eval_tokens")
    for name in options:
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            words += [] if value is None else [f"--{name.replace('_', '-')}", str(value)]
    return words


def _write(answer: "Extended", source: Path, out: Path) -> None:
    """The extended model in the types that the checkpoint had, the numbers and the page; all of it or nothing."""
    from isoflop.evaluate.checkpoint import write_like
    from isoflop.report.position import build
    from isoflop.weights.writer import new_folder

    page, numbers = build(answer.result).encode(), _json(answer.result) + b"\n"
    with new_folder(out) as partial:
        write_like(partial, answer.model, source, _origin(answer.result))
        (partial / "position.json").write_bytes(numbers)
        (partial / "report.html").write_bytes(page)


def _origin(result: "LossByPosition") -> str:
    tuned = f", {result.tuning.steps} steps of fine-tuning" if result.tuning else ""
    return f"{result.model} extended from {result.border} to {result.context} tokens ({result.written}){tuned}"


def _json(result: "LossByPosition") -> bytes:
    return msgspec.json.format(msgspec.json.encode(result))
