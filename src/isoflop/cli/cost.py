"""What an architecture costs: parameters, FLOPs and cache bytes, exactly; with --hardware, time and memory too.

isoflop cost llama-3.1-8b
isoflop cost decoder.toml --context 4096
isoflop cost path/to/hugging-face-model/ --json
isoflop cost mpt-7b --hardware H100-SXM --devices 64 --micro-batch 8 --recompute full
isoflop cost llama-3.1-70b --hardware H100-SXM --devices 256 --search --tokens 2e12
isoflop cost llama-3.1-70b --hardware H100-SXM --devices 8 --serve --prompt 2048 --output 512 --weights fp8

ARCH is the name of a published model, a TOML file, or a Hugging Face directory or config.json.
"""

import argparse
import sys
from typing import TYPE_CHECKING

import msgspec

from isoflop.architecture import Decoder
from isoflop.cli import cost_money, cost_training
from isoflop.cli.cost_asked import require_all_used
from isoflop.cli.tables import BYTES as BYTE_UNITS
from isoflop.cli.tables import COUNTS, new_table, scaled
from isoflop.cli.tables import FLOPS as FLOP_UNITS
from isoflop.cost import CONVENTIONS, Cache, Flops, Parameters, PartFlops, cache, flops, flops_by_part, parameters
from isoflop.cost.cache import CACHE_DTYPES
from isoflop.cost.money import Bill
from isoflop.cost.serving import ServingEstimate
from isoflop.cost.training import TrainingEstimate

if TYPE_CHECKING:
    from rich.table import Table

EXIT_NO = 1

# What is counted, in words short enough for a terminal of 80 columns.
PARAMETERS = {
    "total": "all that is stored",
    "active": "what one token uses",
    "active_no_input_embedding": "no input table unless tied",
    "non_embedding": "total without both tables",
    "matmul": "active matrices and head",
}
FLOPS = {
    "6nd": "no attention: 6 (2) x matmul",
    "palm": "every token sees the whole",
    "exact": "every token sees its past",
    "hardware": "exact + recompute (none here)",
}
PARTS = {
    "mixer_matrices": "projections of the mixers",
    "mixing": "scores and sums, or recurrences",
    "feed_forward": "dense, shared, chosen experts",
    "router": "scores of the experts",
    "head": "output table",
}
CACHE = {
    "bytes_per_token": "keys and values, or latents",
    "state_bytes_per_sequence": "states that do not grow",
    "bytes_at_context": "one whole sequence",
}


class Cost(msgspec.Struct, frozen=True):
    """The JSON document. FLOPs are the mean a token over a sequence of `context`; decode: the token after it."""

    architecture: str
    digest: str
    context: int
    cache_dtype: str
    params: Parameters
    flops: dict[str, Flops]
    flops_by_part: dict[str, dict[str, PartFlops]]
    cache: Cache
    training: TrainingEstimate | msgspec.UnsetType = msgspec.UNSET
    bill: Bill | msgspec.UnsetType = msgspec.UNSET
    serving: ServingEstimate | msgspec.UnsetType = msgspec.UNSET


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("arch", metavar="ARCH", help="a published model's name, a TOML file, or a Hugging Face model")
    parser.add_argument("--context", type=int, metavar="T", help="tokens in a sequence (default: the longest it takes)")
    parser.add_argument("--cache-dtype", default="bf16", metavar="TYPE", help=f"{', '.join(CACHE_DTYPES)}")
    parser.add_argument("--json", action="store_true", help="print the document instead of tables")
    cost_training.add_arguments(parser)
    cost_money.add_arguments(parser)
    parser.set_defaults(usual=parser.get_default)


def run(args: argparse.Namespace) -> int:
    """Count and print. Returns the exit code."""
    from isoflop.architecture.find import find_decoder

    require_all_used(args, args.usual)
    decoder = find_decoder(args.arch)
    context = decoder.max_context if args.context is None else args.context
    cost = cost_of(args.arch, decoder, context, args.cache_dtype)
    if args.hardware is not None:
        whole = _on_devices(args, decoder, cost)
        if whole is None:
            return EXIT_NO
        cost = whole
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(cost), indent=2).decode())
    else:
        _print(cost, decoder)
    return 0


def _on_devices(args: argparse.Namespace, decoder: Decoder, cost: Cost) -> Cost | None:
    """The document with training, its bill and serving, as asked for; None, and a line that says why, where something
    does not fit."""
    hardware, belief = cost_training.hardware_of(args)
    served = cost_money.serving_of(args, decoder, hardware)
    if served is not None:
        wrong = cost_money.too_large(served) if not served.fits else cost_money.too_slow(args, served)
        if wrong is not None:
            print(f"isoflop cost: {wrong}", file=sys.stderr)
            return None
        return msgspec.structs.replace(cost, serving=served)
    training = cost_training.training_of(args, decoder, cost.context, hardware, belief)
    if training is None:
        return None
    bill = cost_money.bill_of(args, training, hardware)
    return msgspec.structs.replace(cost, training=training, bill=msgspec.UNSET if bill is None else bill)


def cost_of(name: str, decoder: Decoder, context: int, cache_dtype: str) -> Cost:
    """Everything the verb tells. Raises ValueError for a context the decoder does not take."""
    if not 1 <= context <= decoder.max_context:
        raise ValueError(f"--context {context} must lie between 1 and the architecture's {decoder.max_context} tokens")
    return Cost(
        architecture=name,
        digest=decoder.digest,
        context=context,
        cache_dtype=cache_dtype,
        params=parameters(decoder),
        flops={convention: flops(decoder, context, convention) for convention in CONVENTIONS},
        flops_by_part={convention: flops_by_part(decoder, context, convention) for convention in CONVENTIONS},
        cache=cache(decoder, context, cache_dtype),
    )


def _print(cost: Cost, decoder: Decoder) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    shape = f"{decoder.n_layers} layers, d_model {decoder.d_model}, vocabulary {decoder.vocab_size}"
    console.print(f"{cost.architecture}: {shape}, context {cost.context} of {decoder.max_context}", soft_wrap=True)
    console.print("Exact counts. FLOPs are the mean a token of one sequence; decode: of the token after it.\n")
    for table in (_parameters_table(cost), _flops_table(cost), _parts_table(cost), _cache_table(cost)):
        console.print(table)
        console.print()
    for table in _on_devices_tables(cost):
        console.print(table)
        console.print()


def _on_devices_tables(cost: Cost) -> "list[Table]":
    tables = cost_training.training_tables(cost.training) if cost.training is not msgspec.UNSET else []
    if cost.bill is not msgspec.UNSET:
        tables.append(cost_money.bill_table(cost.bill))
    if cost.serving is not msgspec.UNSET:
        tables.append(cost_money.serving_table(cost.serving))
    return tables


def _parameters_table(cost: Cost) -> "Table":
    table = new_table("parameters", "count", "", "which")
    for name, meaning in PARAMETERS.items():
        count = getattr(cost.params, name)
        table.add_row(name, f"{count:,}", scaled(count, COUNTS), meaning)
    return table


def _flops_table(cost: Cost) -> "Table":
    table = new_table("FLOPs a token", "train", "prefill", "decode", "convention")
    for name, meaning in FLOPS.items():
        f = cost.flops[name]
        numbers = (f.train_per_token, f.prefill_per_token, f.decode_per_token)
        table.add_row(name, *(scaled(n, FLOP_UNITS) for n in numbers), meaning)
    return table


def _parts_table(cost: Cost) -> "Table":
    table = new_table("exact, by part", "forward", "backward", "decode", "which")
    for name, meaning in PARTS.items():
        f = cost.flops_by_part["exact"][name]
        numbers = (f.forward_per_token, f.backward_per_token, f.decode_per_token)
        table.add_row(name, *(scaled(n, FLOP_UNITS) for n in numbers), meaning)
    return table


def _cache_table(cost: Cost) -> "Table":
    table = new_table(f"cache in {cost.cache_dtype}", "bytes", "", "which")
    for name, meaning in CACHE.items():
        count = getattr(cost.cache, name)
        table.add_row(name, f"{count:,}", scaled(count, BYTE_UNITS), meaning)
    return table
