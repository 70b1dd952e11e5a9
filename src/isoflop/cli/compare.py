"""Architectures side by side, and one dial turned until they match.

isoflop compare llama-3.1-8b qwen3-8b mamba2-2.7b --context 32768
isoflop compare llama-3.1-8b deepseek-v2-lite --match train-flops
isoflop compare mixtral-8x7b llama-2-70b --match decode-bytes --dial layers

With --match, every architecture after the first is resized until it equals the first in that quantity as nearly as its
dial allows: --dial width scales d_model and all that goes with it, layers and d_head kept; --dial layers cuts or
repeats the pattern of its layers. Quantities: total, active (parameters), train-flops (exact FLOPs a token), kv-bytes
(cache of one sequence at --context), decode-bytes (read to decode a token: active weights and cache).
"""

import argparse
from typing import TYPE_CHECKING, cast

import msgspec

from isoflop.architecture import Decoder
from isoflop.architecture.find import find_decoder
from isoflop.cli.layers import LayerGroup, kind_of, layer_groups, words
from isoflop.cli.tables import BYTES as BYTE_UNITS
from isoflop.cli.tables import COUNTS, Units, new_table, scaled
from isoflop.cli.tables import FLOPS as FLOP_UNITS
from isoflop.cost import CONVENTIONS, Cache, Flops, Parameters, cache, flops, parameters
from isoflop.cost.cache import BYTES, CACHE_DTYPES
from isoflop.cost.match import DIALS, QUANTITIES, Dial, Match, Quantity, Setting, decode_bytes, quantity, solve

if TYPE_CHECKING:
    from rich.table import Table


class Resized(msgspec.Struct, frozen=True):
    """The dial that was turned, and what came of it; `error` is (achieved - target) / target."""

    quantity: str
    dial: str
    before: int
    after: int
    target: float
    achieved: float
    error: float


class Side(msgspec.Struct, frozen=True):
    """One architecture; `ratios` are its quantities over those of the first."""

    architecture: str
    kind: str
    digest: str
    d_model: int
    n_layers: int
    vocab_size: int
    params: Parameters
    flops: dict[str, Flops]
    cache: Cache
    decode_bytes: int
    ratios: dict[str, float | None]
    resized: Resized | None
    layers: list[LayerGroup]


class Comparison(msgspec.Struct, frozen=True):
    """The JSON document."""

    context: int
    cache_dtype: str
    weight_dtype: str
    sides: list[Side]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's arguments."""
    parser.add_argument("archs", metavar="ARCH", nargs="+", help="as for isoflop cost; the first is the measure")
    parser.add_argument("--match", metavar="QUANTITY", help=f"resize the others to equal it: {', '.join(QUANTITIES)}")
    parser.add_argument("--dial", metavar="DIAL", help=f"what --match turns: {', '.join(DIALS)} (default width)")
    parser.add_argument("--context", type=int, metavar="T", help="tokens in a sequence (default: the longest all take)")
    parser.add_argument("--cache-dtype", default="bf16", metavar="TYPE", help=f"{', '.join(CACHE_DTYPES)}")
    parser.add_argument("--weight-dtype", default="bf16", metavar="TYPE", help="of the weights read (default bf16)")
    parser.add_argument("--json", action="store_true", help="print the document instead of a table")


def run(args: argparse.Namespace) -> int:
    """Compare and print. Returns the exit code."""
    wanted = _one_of("--match", args.match, QUANTITIES)
    dial = _one_of("--dial", args.dial, DIALS)
    if dial is not None and wanted is None:
        raise ValueError(f"--dial {dial} goes with --match QUANTITY, the quantity to make equal")
    _one_of("--cache-dtype", args.cache_dtype, CACHE_DTYPES)
    _one_of("--weight-dtype", args.weight_dtype, tuple(BYTES))
    decoders = [find_decoder(arch) for arch in args.archs]
    at = Setting(_context(args.context, args.archs, decoders), args.cache_dtype, args.weight_dtype)
    answer = compare(args.archs, decoders, at, cast("Quantity | None", wanted), cast(Dial, dial or "width"))
    if args.json:
        print(msgspec.json.format(msgspec.json.encode(answer), indent=2).decode())
    else:
        _print(answer)
    return 0


def compare(names: list[str], decoders: list[Decoder], at: Setting, wanted: Quantity | None, dial: Dial) -> Comparison:
    """All sides, those after the first resized where a quantity is to match. Raises ValueError naming the architecture
    whose quantity does not follow the dial."""
    matches: list[Match | None] = [None] * len(decoders)
    if wanted is not None:
        target = quantity(decoders[0], wanted, at)
        others = zip(names[1:], decoders[1:], strict=True)
        matches[1:] = [_solved(name, decoder, dial, wanted, target, at) for name, decoder in others]
    compared = [decoder if match is None else match.decoder for decoder, match in zip(decoders, matches, strict=True)]
    first = {name: quantity(compared[0], name, at) for name in QUANTITIES}
    sides = [
        _side(name, decoder, at, first, None if match is None else _resized(match, str(wanted)))
        for name, decoder, match in zip(names, compared, matches, strict=True)
    ]
    return Comparison(at.context, at.cache_dtype, at.weight_dtype, sides)


def _solved(name: str, decoder: Decoder, dial: Dial, wanted: Quantity, target: float, at: Setting) -> Match:
    try:
        return solve(decoder, dial, wanted, target, at)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _resized(match: Match, wanted: str) -> Resized:
    error = match.achieved / match.target - 1 if match.target else float(match.achieved != 0)
    return Resized(wanted, match.dial, match.before, match.after, match.target, match.achieved, error)


def _side(name: str, decoder: Decoder, at: Setting, first: dict[Quantity, float], resized: Resized | None) -> Side:
    return Side(
        architecture=name,
        kind=kind_of(decoder),
        digest=decoder.digest,
        d_model=decoder.d_model,
        n_layers=decoder.n_layers,
        vocab_size=decoder.vocab_size,
        params=parameters(decoder),
        flops={convention: flops(decoder, at.context, convention) for convention in CONVENTIONS},
        cache=cache(decoder, at.context, at.cache_dtype),
        decode_bytes=decode_bytes(decoder, at),
        ratios={q: quantity(decoder, q, at) / first[q] if first[q] else None for q in QUANTITIES},
        resized=resized,
        layers=layer_groups(decoder),
    )


def _one_of(flag: str, value: str | None, valid: tuple[str, ...]) -> str | None:
    if value is not None and value not in valid:
        raise ValueError(f"{flag} {value} is unknown; valid: {', '.join(valid)}")
    return value


def _context(asked: int | None, names: list[str], decoders: list[Decoder]) -> int:
    """The context to compare at: one that all architectures take."""
    shortest = min(range(len(decoders)), key=lambda i: decoders[i].max_context)
    most = decoders[shortest].max_context
    if asked is not None and not 1 <= asked <= most:
        raise ValueError(f"--context {asked} must lie between 1 and the {most} tokens that {names[shortest]} takes")
    return most if asked is None else asked


def _print(answer: Comparison) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    types = f"cache in {answer.cache_dtype}, weights in {answer.weight_dtype}"
    console.print(f"context {answer.context}; {types}; x: over the first. Exact counts.\n", soft_wrap=True)
    console.print(_table(answer))
    for side in answer.sides:
        if side.resized is not None:
            console.print(f"{side.architecture}: {_resized_words(side.resized)}", soft_wrap=True)
            for group in side.layers:
                mixer, feed_forward = words(group.layer["mixer"]), words(group.layer["feed_forward"])
                console.print(f"    {group.count} x {mixer}; {feed_forward}", soft_wrap=True)


def _resized_words(r: Resized) -> str:
    dial = {"width": "d_model", "layers": "layers"}[r.dial]
    reached = f"{r.achieved:,.0f} of {r.target:,.0f}, {r.error:+.3%}"
    return f"{dial} {r.before} -> {r.after} for equal {r.quantity}: {reached}"


def _table(answer: Comparison) -> "Table":
    table = new_table("a token or a sequence", *(side.architecture for side in answer.sides), last="right")
    first = answer.sides[0]

    def add(name: str, values: list[float], units: Units) -> None:
        ratios = [f"  x{v / values[0]:.3g}" if values[0] else "" for v in values]
        table.add_row(name, *(scaled(v, units) + ratio for v, ratio in zip(values, ratios, strict=True)))

    table.add_row("kind", *(side.kind for side in answer.sides))
    table.add_row("layers, d_model", *(f"{side.n_layers}, {side.d_model}" for side in answer.sides))
    for name in first.params.__struct_fields__:
        add(f"{name} params", [getattr(side.params, name) for side in answer.sides], COUNTS)
    for field in first.flops["exact"].__struct_fields__:
        name = f"FLOPs, {field.removesuffix('_per_token')}"
        add(name, [getattr(side.flops["exact"], field) for side in answer.sides], FLOP_UNITS)
    add("cache a token", [side.cache.bytes_per_token for side in answer.sides], BYTE_UNITS)
    add("states", [side.cache.state_bytes_per_sequence for side in answer.sides], BYTE_UNITS)
    add("cache at context", [side.cache.bytes_at_context for side in answer.sides], BYTE_UNITS)
    add("read to decode", [side.decode_bytes for side in answer.sides], BYTE_UNITS)
    return table
