"""Quantities by which architectures are compared, and the dial that makes two equal in one of them."""

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

from isoflop.architecture import Decoder
from isoflop.architecture.base import MOST_LAYERS
from isoflop.architecture.resize import width_step, with_depth, with_width
from isoflop.cost.cache import BYTES, cache
from isoflop.cost.flops import flops
from isoflop.cost.parameters import parameters

Quantity = Literal["total", "active", "train-flops", "kv-bytes", "decode-bytes"]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)
Dial = Literal["width", "layers"]
DIALS: tuple[Dial, ...] = get_args(Dial)

WIDEST = 2**20


class Setting(NamedTuple):
    """What the quantities are taken at: tokens of a sequence, and the types of cache and weights."""

    context: int
    cache_dtype: str = "bf16"
    weight_dtype: str = "bf16"


class Match(NamedTuple):
    """A dial that was turned: from and to which value, and what the resized decoder reaches."""

    decoder: Decoder
    dial: Dial
    before: int
    after: int
    target: float
    achieved: float


def quantity(decoder: Decoder, name: Quantity, at: Setting) -> float:
    """total, active: parameters. train-flops: exact FLOPs to train on a token. kv-bytes: bytes of one sequence's cache,
    states included. decode-bytes: see `decode_bytes`."""
    match name:
        case "total":
            return parameters(decoder).total
        case "active":
            return parameters(decoder).active
        case "train-flops":
            return flops(decoder, at.context, "exact").train_per_token
        case "kv-bytes":
            return cache(decoder, at.context, at.cache_dtype).bytes_at_context
        case "decode-bytes":
            return decode_bytes(decoder, at)


def decode_bytes(decoder: Decoder, at: Setting) -> int:
    """Bytes read to decode one token of one sequence after `context` others: the weights that the token uses (its own
    experts; of an input table that is not the output table one row, neglected) and the whole cache."""
    weights = parameters(decoder).active_no_input_embedding * BYTES[at.weight_dtype]
    return weights + cache(decoder, at.context, at.cache_dtype).bytes_at_context


def solve(decoder: Decoder, dial: Dial, name: Quantity, target: float, at: Setting) -> Match:
    """Turn one dial until the quantity is as near to the target as the dial's steps allow; of several settings that are
    equally near, the middle one. Raises ValueError where the quantity does not follow the dial."""
    step, most = (width_step(decoder), WIDEST) if dial == "width" else (1, MOST_LAYERS)
    resize = with_width if dial == "width" else with_depth
    before = decoder.d_model if dial == "width" else decoder.n_layers

    def reached(n: int) -> float:
        return quantity(resize(decoder, n * step), name, at)

    last = most // step
    if reached(1) == reached(last):
        other = DIALS[1 - DIALS.index(dial)]
        raise ValueError(f"{name} does not follow its {dial}; --dial {other} may")
    above = _first(lambda n: reached(n) >= target, last)  # every quantity grows with either dial
    nearest = min({max(1, above - 1), above}, key=lambda n: abs(reached(n) - target))
    achieved = reached(nearest)
    lowest = _first(lambda n: reached(n) >= achieved, last)
    highest = max(lowest, _first(lambda n: reached(n) > achieved, last) - (reached(last) > achieved))
    after = (lowest + highest) // 2 * step
    return Match(resize(decoder, after), dial, before, after, target, achieved)


def _first(holds: Callable[[int], bool], last: int) -> int:
    """The least n from 1 to `last` for which it holds, if it holds from there on; `last` where it never does."""
    low, high = 1, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low
