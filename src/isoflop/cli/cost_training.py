"""The part of `isoflop cost` that knows devices: how fast the architecture trains on them, and whether it fits."""

import argparse
import sys
from typing import TYPE_CHECKING

import msgspec

from isoflop.architecture import Decoder
from isoflop.cli.tables import BYTES, COUNTS, new_table, scaled
from isoflop.cost.belief import Belief, belief_about
from isoflop.cost.layout import RECOMPUTES, SHARDS, Layout
from isoflop.cost.quantity import Quantity
from isoflop.cost.search import Question, cheapest_layout, no_layout
from isoflop.cost.this_device import this_device
from isoflop.cost.training import KERNELS, PRECISIONS, Precision, TrainingEstimate, training_estimate
from isoflop.cost.work import Work, work_of
from isoflop.hardware import Accelerator, find_accelerator

if TYPE_CHECKING:
    from rich.table import Table

DEGREES = ("tensor", "pipeline", "context_parallel", "expert")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What training on devices needs to know."""
    group = parser.add_argument_group("training on devices (with --hardware)")
    group.add_argument("--hardware", metavar="NAME", help="such as H100-SXM; 'this' once `isoflop calibrate` has run")
    group.add_argument("--devices", type=int, default=1, metavar="N", help="how many (default 1)")
    group.add_argument("--micro-batch", type=int, metavar="B", help="sequences a replica takes at a time (default 1)")
    group.add_argument("--accumulate", type=int, default=1, metavar="A", help="micro-batches a step (default 1)")
    group.add_argument("--precision", metavar="P", help=f"{', '.join(PRECISIONS)} (default bf16)")
    group.add_argument("--recompute", choices=RECOMPUTES, help="of activations in the backward (default none)")
    group.add_argument("--kernels", default="measured", choices=KERNELS, help="default: those of the fitted runs")
    for degree in DEGREES:
        name = degree.replace("_", "-")
        group.add_argument(f"--{name}", type=int, default=1, metavar="N", help=f"{name} degree (default 1)")
    group.add_argument("--interleave", type=int, default=1, metavar="V", help="chunks a pipeline stage (default 1)")
    group.add_argument("--shard", choices=SHARDS, help="what replicas split (default: parameters)")
    group.add_argument("--search", action="store_true", help="find the cheapest layout that fits; exit 1 if none does")
    group.add_argument("--batch", type=int, metavar="S", help="sequences of a step, for --search (default: any)")


def hardware_of(args: argparse.Namespace) -> tuple[Accelerator, Belief]:
    """The device asked for, and what is known of its efficiencies."""
    if args.hardware.lower() == "this":
        return this_device()
    hardware = find_accelerator(args.hardware)
    return hardware, belief_about(hardware)


def training_of(
    args: argparse.Namespace, decoder: Decoder, context: int, hardware: Accelerator, belief: Belief
) -> TrainingEstimate | None:
    """The estimate in the layout asked for, or in the cheapest that fits; None, and a line that says so, where none
    does. Where one does, but not the one asked for, the estimate notes it."""
    if args.devices < 1:
        raise ValueError(f"--devices {args.devices} must be at least 1")
    precision = args.precision or hardware.training_precision
    if precision not in PRECISIONS:
        raise ValueError(f"--precision '{precision}' is unknown; valid: {', '.join(PRECISIONS)}")

    def estimate(layout: Layout) -> TrainingEstimate:
        return training_estimate(decoder, hardware, layout, context, precision, args.kernels, belief)

    question = _question(args, work_of(decoder, context), hardware, belief, precision)
    told = None if args.search else estimate(_asked(args))
    if told is not None and told.fits:
        return told
    found = cheapest_layout(question if args.search else question._replace(micro_batch=None, recompute=None))
    if found is None:
        print(f"isoflop cost: {no_layout(question)}", file=sys.stderr)
        return None
    if told is None:
        return estimate(found.layout)
    return msgspec.structs.replace(told, notes=[*told.notes, f"it does not fit so; {_words(found.layout)} does"])


def _question(
    args: argparse.Namespace, work: Work, hardware: Accelerator, belief: Belief, precision: Precision
) -> Question:
    choice = (args.batch, args.micro_batch, args.recompute)
    return Question(work, hardware, args.devices, belief, precision, args.kernels, *choice)


def _asked(args: argparse.Namespace) -> Layout:
    parts = args.tensor * args.pipeline * args.context_parallel
    if min(args.tensor, args.pipeline, args.context_parallel) < 1 or args.devices % parts:
        raise ValueError(
            f"--devices {args.devices} is not a multiple of tensor * pipeline * context-parallel = {args.tensor} *"
            f" {args.pipeline} * {args.context_parallel}"
        )
    return Layout(
        data=args.devices // parts,
        tensor=args.tensor,
        pipeline=args.pipeline,
        context=args.context_parallel,
        expert=args.expert,
        interleave=args.interleave,
        shard=args.shard or ("parameters" if args.devices > args.tensor * args.pipeline else "none"),
        micro_batch=1 if args.micro_batch is None else args.micro_batch,
        accumulate=args.accumulate,
        recompute=args.recompute or "none",
    )


def training_tables(told: TrainingEstimate) -> "list[Table]":
    """Rates and memory on a terminal."""
    return [_rates(told), _memory(told)]


def shown(quantity: Quantity, unit: tuple[int, tuple[str, ...]] = COUNTS) -> tuple[str, str, str]:
    """Value, interval and source of a quantity."""
    interval = f"{scaled(quantity.low, unit)} to {scaled(quantity.high, unit)}"
    return scaled(quantity.value, unit), "" if quantity.low == quantity.high else interval, quantity.source


def _rates(told: TrainingEstimate) -> "Table":
    table = new_table(f"training on {told.devices} x {told.hardware}", "value", "80 % interval", "source")
    table.add_row("tokens/s a device", *shown(told.tokens_per_s_per_device))
    table.add_row("seconds a step", *(_seconds(told.step_seconds)))
    for convention, share in told.mfu.items():
        table.add_row(f"MFU {convention}", f"{share:.2%}", "", told.tokens_per_s_per_device.source)
    table.add_row("tokens a step", f"{told.tokens_per_step:,}", "", "exact")
    table.caption = "; ".join([_words(told.layout), *told.notes])
    return table


def _words(layout: Layout) -> str:
    """A layout in one line: what differs from nothing split."""
    names = ("data", "tensor", "pipeline", "context", "expert", "interleave", "micro_batch", "accumulate")
    degrees = [f"{name} {getattr(layout, name)}" for name in names if getattr(layout, name) > 1]
    return ", ".join([*degrees, f"shard {layout.shard}", f"recompute {layout.recompute}"])


def _seconds(quantity: Quantity) -> tuple[str, str, str]:
    return f"{quantity.value:.4g}", f"{quantity.low:.4g} to {quantity.high:.4g}", quantity.source


def _memory(told: TrainingEstimate) -> "Table":
    table = new_table(f"memory a device, at the {told.worst_instant}", "bytes", "interval", "source")
    for kind, size in told.memory_per_device.items():
        table.add_row(kind, scaled(size, BYTES), "", told.memory_sources[kind])
    table.add_row("total", *shown(told.memory_bytes, BYTES))
    table.add_row("free on the device", *shown(told.usable_bytes, BYTES))
    table.add_row("fits", "yes" if told.fits else "no", "", "")
    return table
