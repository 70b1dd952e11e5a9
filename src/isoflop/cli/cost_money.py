"""The parts of `isoflop cost` about a whole training run, and about serving: hours, dollars, joules."""

import argparse
from typing import TYPE_CHECKING

from isoflop.architecture import Decoder
from isoflop.cli.cost_training import shown
from isoflop.cli.tables import BYTES, COUNTS, new_table, scaled
from isoflop.cost.money import Bill, training_bill
from isoflop.cost.serving import WEIGHT_TYPES, Demand, ServingEstimate, Speculation, serving_estimate
from isoflop.cost.training import TrainingEstimate
from isoflop.hardware import GIB, Accelerator
from isoflop.hardware.prices import Range, read_price

if TYPE_CHECKING:
    from rich.table import Table

DOLLARS = (1000, ("$", "k$", "M$", "G$"))
HOURS = (1000, ("h", "kh", "Mh"))
SECONDS = (1000, ("us", "ms", "s"))
SLACK = 1e-9  # of a latency, for rounding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a bill and serving need to know."""
    bill = parser.add_argument_group("a whole training run (with --hardware)")
    bill.add_argument("--tokens", type=float, metavar="D", help="training tokens: hours, device hours, dollars, kWh")
    bill.add_argument("--price", metavar="USD@DATE", help="a device hour: 2.5@2026-01, or low,middle,high@DATE")
    group = parser.add_argument_group("serving (with --hardware; one group of --devices)")
    group.add_argument("--serve", action="store_true", help="prefill, decoding, limits, cost of a million tokens")
    group.add_argument("--prompt", type=int, default=1024, metavar="P", help="tokens of a prompt (default 1024)")
    group.add_argument("--output", type=int, default=256, metavar="O", help="tokens of an answer (default 256)")
    group.add_argument("--serve-batch", type=int, metavar="B", help="sequences at a time (default: as many as may)")
    group.add_argument("--latency", type=float, metavar="MS", help="milliseconds a token may take, at most")
    group.add_argument("--weights", default="bf16", choices=WEIGHT_TYPES, help="type of the weights (default bf16)")
    group.add_argument("--draft", metavar="ARCH", help="a small model that drafts (speculative decoding)")
    group.add_argument("--drafted", type=int, default=4, metavar="K", help="tokens it drafts (default 4)")
    group.add_argument("--acceptance", type=float, default=0.7, metavar="A", help="share accepted (default 0.7)")


def bill_of(args: argparse.Namespace, training: TrainingEstimate, hardware: Accelerator) -> Bill | None:
    """The bill of --tokens, if asked for."""
    if args.tokens is None:
        return None
    return training_bill(training.tokens_per_s_per_device, training.devices, args.tokens, hardware, price_of(args))


def price_of(args: argparse.Namespace) -> Range | None:
    """The price given, if any."""
    return None if args.price is None else read_price(args.price)


def serving_of(args: argparse.Namespace, decoder: Decoder, hardware: Accelerator) -> ServingEstimate | None:
    """The estimate of --serve, if asked for. Raises ValueError where the weights alone do not fit."""
    if not args.serve:
        return None
    from isoflop.architecture.find import find_decoder

    demand = Demand(
        prompt=args.prompt,
        output=args.output,
        batch=args.serve_batch,
        latency_s=None if args.latency is None else args.latency / 1e3,
        weights=args.weights,
        cache_dtype=args.cache_dtype,
    )
    draft = None if args.draft is None else (find_decoder(args.draft), Speculation(args.drafted, args.acceptance))
    return serving_estimate(decoder, hardware, demand, args.devices, draft, price_of(args))


def too_large(told: ServingEstimate) -> str:
    """One line: that the batch does not fit, and what would."""
    need, free = told.memory_bytes / GIB, told.usable_bytes / GIB
    what = f"{told.batch} sequences of {told.prompt + told.output} tokens in {told.weights} need {need:.1f} GiB"
    change = (
        f"at most {told.batch_limit} sequences fit" if told.batch_limit else "fewer bits (--weights) or more --devices"
    )
    return f"{what}, {told.devices} x {told.hardware} have {free:.1f}: {change}"


def too_slow(args: argparse.Namespace, told: ServingEstimate) -> str | None:
    """One line where no batch answers within --latency, or the one asked for does not; None where it does."""
    a_token = (
        1e3 * told.decode_s.value / (1 if args.draft is None else Speculation(args.drafted, args.acceptance).tokens)
    )
    if args.latency is None or a_token <= args.latency * (1 + SLACK):
        return None
    batch = "a single sequence waits" if told.batch == 1 else f"{told.batch} sequences at a time wait"
    return (
        f"--latency {args.latency:g}: {batch} {a_token:.3g} ms a token on {told.devices} x {told.hardware}: "
        "fewer bits (--weights), more --devices" + ("" if told.batch == 1 else ", a smaller --serve-batch")
    )


def bill_table(bill: Bill) -> "Table":
    """A training run on a terminal."""
    table = new_table(f"training {scaled(bill.tokens, COUNTS)} tokens", "value", "interval", "source")
    table.add_row("goodput", f"{bill.goodput.share.value:.1%}", _percent(bill), bill.goodput.share.source)
    table.add_row("by the clock", *shown(bill.hours, HOURS))
    table.add_row("device hours", *shown(bill.device_hours, HOURS))
    if bill.usd is not None and bill.price is not None:
        table.add_row("dollars", *shown(bill.usd, DOLLARS))
        table.caption = _priced(bill.price)
    if bill.kwh is not None:
        table.add_row("energy, kWh", *shown(bill.kwh))
    return table


def _percent(bill: Bill) -> str:
    return f"{bill.goodput.share.low:.1%} to {bill.goodput.share.high:.1%}"


def _priced(price: Range) -> str:
    return f"{price.low:g} to {price.high:g} dollars a device hour, {price.date}: {price.source}"


def serving_table(told: ServingEstimate) -> "Table":
    """Serving on a terminal."""
    head = f"serving on {told.devices} x {told.hardware}"
    table = new_table(head, "value", "80 % interval", "source")
    table.add_row("prefill of a prompt, ms", *shown(told.prefill_s.times(1e3)))
    table.add_row("decoding step, ms", *shown(told.decode_s.times(1e3)))
    table.add_row("answered tokens/s", *shown(told.tokens_per_s))
    if told.usd_per_mtok is not None:
        table.add_row("dollars a million", *shown(told.usd_per_mtok))
    if told.joules_per_token is not None:
        table.add_row("joules a token", *shown(told.joules_per_token))
    table.add_row("batch", f"{told.batch}", f"memory allows {told.batch_limit}", "assumed")
    if told.context_limit is not None:
        table.add_row("longest at this batch", f"{told.context_limit}", "", "assumed")
    table.add_row("weights", scaled(told.weight_bytes, BYTES), told.weights, "exact")
    table.add_row("cache a sequence", scaled(told.cache_bytes_per_sequence, BYTES), told.cache_dtype, "exact")
    table.add_row("waits most for", told.bound, "", "assumed")
    table.caption = _priced(told.price) if told.price is not None else None
    return table
