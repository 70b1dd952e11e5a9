"""What to train, on how much, under a budget: with what left uncertain, and what would change the answer.

isoflop plan --flops 1e23
isoflop plan --flops 1e24 --law besiroglu-2024 --law muennighoff-2023*2 --unique-tokens 5e11 --served-tokens 5e12
isoflop plan --dollars 2e6 --hardware H100-SXM --devices 512 --price 2.5@2026-05 --family dense,experts,hybrid
isoflop plan --deadline 30 --hardware H100-SXM --devices 1024 --served-tokens 1e13 --context 8192 --latency 25
isoflop plan --flops 1e21 --law studies/quickstart --family llama-3.1-8b,mixtral-8x7b --vary flops=1e20,1e21,1e22

Exactly one goal: a budget for training, or a quality. A law is a published one by name (`isoflop laws` lists them), a
study's directory, a law.json, or a table of runs; NAME*WEIGHT weighs it in an average, FAMILY=NAME speaks for that
family alone. With a serving demand the recommended model spends the training budget and is the cheapest of its loss
over its lifetime. Exit code 1: the limits leave nothing, and the line says what would have to change.
"""

import argparse
import os
import re
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from isoflop.decide.question import Goal, LawChoice, Question

_LAW = re.compile(r"(?:(?P<family>[A-Za-z][\w.-]*)=)?(?P<name>.+?)(?:\*(?P<weight>[0-9.eE+-]+))?")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    goal = parser.add_argument_group("the goal (one of them)").add_mutually_exclusive_group(required=True)
    goal.add_argument("--flops", type=float, metavar="C", help="training FLOPs, counted as --count says")
    goal.add_argument("--accelerator-hours", type=float, metavar="H", help="of all devices together, failures included")
    goal.add_argument("--dollars", type=float, metavar="USD", help="for training, at --price or the listed one")
    goal.add_argument("--deadline", type=float, metavar="DAYS", help="by the clock, on all --devices")
    goal.add_argument(
        "--quality-of", type=float, metavar="N", help="the loss of the dense model optimal at N parameters"
    )
    goal.add_argument("--target-loss", type=float, metavar="LOSS", help="a loss, for the least compute")
    _add_what(parser)
    _add_limits(parser)
    _add_asking(parser)


def _add_what(parser: argparse.ArgumentParser) -> None:
    what = parser.add_argument_group("laws and candidates")
    what.add_argument("--law", action="append", metavar="[FAMILY=]LAW[*W]", help="repeatable (default besiroglu-2024)")
    what.add_argument("--n", metavar="COL", help="column of N in a table of runs that is not ours")
    what.add_argument("--d", metavar="COL", help="column of D")
    what.add_argument("--loss", metavar="COL", help="column of the loss")
    what.add_argument("--force", action="store_true", help="plan on a law even where it is refused")
    what.add_argument(
        "--family",
        action="append",
        metavar="F,...",
        help="dense, experts, latent, mamba-2, hybrid, or ARCH (default all)",
    )
    what.add_argument(
        "--vocab", type=int, default=65536, metavar="V", help="vocabulary of the families (default 65536)"
    )
    what.add_argument("--train-context", type=int, default=4096, metavar="T", help="tokens a sequence (default 4096)")
    what.add_argument("--count", default="exact", metavar="HOW", help="FLOPs: exact (default), or 6nd as laws meant")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    limits = parser.add_argument_group("devices, data, serving")
    limits.add_argument("--hardware", metavar="NAME", help="such as H100-SXM")
    limits.add_argument("--devices", type=int, metavar="N", help="how many of them train")
    limits.add_argument("--price", metavar="USD@DATE", help="a device hour: 2.5@2026-01, or low,middle,high@DATE")
    limits.add_argument("--device-memory", type=float, metavar="GIB", help="free on each device (default: its own)")
    limits.add_argument("--unique-tokens", type=float, metavar="U", help="that there are; more are repeats, worth less")
    limits.add_argument("--repeats", type=float, metavar="R", help="times that they may be seen at most")
    limits.add_argument(
        "--served-tokens", type=float, default=0.0, metavar="S", help="in the lifetime, prompts included"
    )
    limits.add_argument("--context", type=int, default=4096, metavar="T", help="tokens of a request (default 4096)")
    limits.add_argument("--prompt-share", type=float, default=0.75, metavar="P", help="of them (default 0.75)")
    limits.add_argument("--latency", type=float, metavar="MS", help="milliseconds a token of an answer, at most")
    limits.add_argument("--weights", default="bf16", metavar="TYPE", help="in serving: bf16, fp16, fp8, int8, int4")
    limits.add_argument("--serve-memory", type=float, metavar="GIB", help="for weights and one request's cache")


def _add_asking(parser: argparse.ArgumentParser) -> None:
    asking = parser.add_argument_group("the answer")
    asking.add_argument("--within", type=float, default=0.005, metavar="X", help="near-optimal: loss over the least")
    asking.add_argument("--level", type=float, default=0.8, metavar="P", help="of intervals (default 0.8)")
    asking.add_argument(
        "--vary", action="append", default=[], metavar="KEY=a,b,c", help="the answer at each; repeatable"
    )
    asking.add_argument(
        "--tornado", action="store_true", help="how far halving and doubling each input moves the answer"
    )
    asking.add_argument("--figure", metavar="OUT.html", help="the curves as one page that works offline")
    asking.add_argument("--json", action="store_true", help="print the JSON document instead of tables")


def run(args: argparse.Namespace) -> int:
    """Plan and print. Returns the exit code: 1 where the limits leave nothing."""
    # Before numpy is imported: the matrices are small, and threads that wait for each other on a busy machine made a
    # plan from a table of runs ten times slower.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from isoflop.decide.answer import NoPlan
    from isoflop.decide.planner import plan
    from isoflop.decide.vary import tornado, varied

    question = question_of(args)
    try:
        told = plan(question)
        rows = [row for text in args.vary for row in varied(question, text)]
        bars = tornado(question) if args.tornado else []
    except NoPlan as no:
        print(f"isoflop plan: {no}", file=sys.stderr)
        return 1
    if args.figure is not None:
        from isoflop.report.decision import write_page

        write_page(args.figure, told, bars)
    if args.json:
        import msgspec

        document: dict[str, Any] = {**msgspec.to_builtins(told), "varied": msgspec.to_builtins(rows)}
        document["tornado"] = msgspec.to_builtins(bars)
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(document)).decode() + "\n")
    else:
        from isoflop.cli.plan_text import show

        show(told, rows, bars)
    return 0


def question_of(args: argparse.Namespace) -> "Question":
    """The question that the arguments ask. Raises ValueError in one line."""
    from isoflop.decide.question import FAMILIES, Question, Served

    families = [name for text in args.family or [] for name in text.split(",") if name]
    return Question(
        goal=_goal(args),
        laws=_laws(args),
        families=tuple(families) if args.family else FAMILIES,
        hardware=args.hardware,
        devices=args.devices,
        price=args.price,
        unique_tokens=args.unique_tokens,
        most_repeats=args.repeats,
        served=Served(
            tokens=args.served_tokens,
            context=args.context,
            prompt_share=args.prompt_share,
            latency_ms=args.latency,
            weights=args.weights,
        ),
        serve_memory_gib=args.serve_memory,
        device_memory_gib=args.device_memory,
        context=args.train_context,
        vocab_size=args.vocab,
        count=args.count,
        within=args.within,
        level=args.level,
    )


def _goal(args: argparse.Namespace) -> "Goal":
    from isoflop.decide.question import Deadline, DeviceHours, Dollars, Flops, QualityOf, TargetLoss

    given: list[tuple[float | None, type[Goal]]] = [
        (args.flops, Flops),
        (args.accelerator_hours, DeviceHours),
        (args.dollars, Dollars),
        (args.deadline, Deadline),
        (args.quality_of, QualityOf),
        (args.target_loss, TargetLoss),
    ]
    return next(kind(amount) for amount, kind in given if amount is not None)


def _laws(args: argparse.Namespace) -> "tuple[LawChoice, ...]":
    from isoflop.decide.question import DEFAULT_LAW, LawChoice

    named: dict[str, str | None] = {"n": args.n, "d": args.d, "loss": args.loss}
    if not args.law:
        if any(named.values()):
            raise ValueError("--n, --d and --loss name columns of a table of runs, and --law names none")
        return (LawChoice(name=DEFAULT_LAW),)
    return tuple(law_choice(text, **named, force=args.force) for text in args.law)


def law_choice(
    text: str, n: str | None = None, d: str | None = None, loss: str | None = None, force: bool = False
) -> "LawChoice":
    """A law as typed: [FAMILY=]NAME[*WEIGHT]."""
    from isoflop.decide.question import LawChoice

    read = _LAW.fullmatch(text)
    if read is None:
        raise ValueError(f"--law '{text}': must be a law's name or path, as in besiroglu-2024*2 or experts=runs.csv")
    weight = read["weight"]
    try:
        value = 1.0 if weight is None else float(weight)
    except ValueError:
        raise ValueError(f"--law {text}: its weight '{weight}' is no number") from None
    return LawChoice(name=read["name"], weight=value, family=read["family"], n=n, d=d, loss=loss, force=force)
