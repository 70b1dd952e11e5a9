"""A trained model at a longer context: its rope scaled, fine-tuned if asked, and its loss by position before and after.

isoflop extend studies/long_context/jobs/TRUNK/models/RUN studies/longer --context 1024
isoflop extend CKPT OUT --context 1024 --method yarn --method linear --steps 200 --beside OTHER

OUT is a checkpoint of the extended model with position.json and report.html beside it; it appears whole or not at all.
Several methods are compared, and the first is written and fine-tuned. Method none raises the context without scaling.
--beside shows other models, such as one with ALiBi or with windows and sinks, on the same text.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

import msgspec

from isoflop.architecture.extend import METHODS, Method, extended
from isoflop.cli.remaking import (
    EXIT_NO,
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
    from isoflop.evaluate.curve import LossByPosition
    from isoflop.evaluate.extension import Extended, Question
    from isoflop.model import DecoderModel

EVAL_TOKENS = 2**18


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    add_model(parser)
    parser.add_argument("--context", type=int, required=True, metavar="N", help="tokens that the model is to take")
    parser.add_argument("--method", action="append", metavar="M", help=f"{', '.join(METHODS)} (default yarn)")
    add_training(parser, "fine-tuning")
    add_text(parser, EVAL_TOKENS)
    parser.add_argument("--beside", action="append", metavar="CKPT", default=[], help="another model in the figure")
    parser.add_argument("--json", action="store_true", help="print position.json instead of a table")


def run(args: argparse.Namespace) -> int:
    """Extend, measure, write, print. Returns the exit code."""
    methods = cast("tuple[Method, ...]", require_methods(args.method or ["yarn"], METHODS))
    _check_numbers(args)
    from isoflop.cli.extend_text import print_result
    from isoflop.evaluate.extension import extend
    from isoflop.weights.quantized import require_plain

    trained = open_trained(args)
    require_plain(trained.model, str(args.model))
    for method in methods:
        extended(trained.model.decoder, args.context, method)  # refused before any text is read
    question = _question(trained.model, methods, args)
    answer = remade("extend", args, trained, args.context, partial(extend, trained.model, question))
    if answer is None:
        return EXIT_NO
    _write(answer, trained.source, args.out)
    if args.json:
        print(_json(answer.result).decode())
    else:
        print_result(answer.result, args.out)
    return 0


def _check_numbers(args: argparse.Namespace) -> None:
    require_at_least(args, {"context": 1, "steps": 0, "batch": 1, "seed": 0, "eval_tokens": 1})
    require_positive(args, "lr")
    if args.steps == 0 and (args.lr is not None or args.batch is not None):
        raise ValueError("--lr and --batch are of the fine-tuning, which --steps K asks for")


def _question(model: "DecoderModel", methods: tuple[Method, ...], args: argparse.Namespace) -> "Question":
    from isoflop.evaluate.extension import Question

    return Question(
        model=str(args.model),
        command=command("extend", args),
        context=args.context,
        methods=methods,
        tuning=fine_tuning(args, model, args.context),
        beside=tuple(map(Path, args.beside)),
        eval_tokens=args.eval_tokens,
    )


def _write(answer: "Extended", source: Path, out: Path) -> None:
    """The extended model in the types that the checkpoint had, the numbers and the page; all of it or nothing."""
    from isoflop.evaluate.checkpoint import write_like
    from isoflop.report.position import build
    from isoflop.weights.writer import new_folder

    page, numbers = build(answer.result).encode(), _json(answer.result) + b"\n"
    with new_folder(out) as folder:
        write_like(folder, answer.model, source, _origin(answer.result))
        (folder / "position.json").write_bytes(numbers)
        (folder / "report.html").write_bytes(page)


def _origin(result: "LossByPosition") -> str:
    tuned = f", {result.tuning.steps} steps of fine-tuning" if result.tuning else ""
    return f"{result.model} extended from {result.border} to {result.context} tokens ({result.written}){tuned}"


def _json(result: "LossByPosition") -> bytes:
    return msgspec.json.format(msgspec.json.encode(result))
