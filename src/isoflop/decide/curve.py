"""A family's exact costs as functions of its size: members of the family, and lines in log-log between them.

Legend: m sizes of a grid, the same for every quantity.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from isoflop.architecture import Decoder
from isoflop.cost.cache import cache
from isoflop.cost.flops import flops
from isoflop.cost.parameters import parameters
from isoflop.decide.belief import Convention
from isoflop.decide.question import Count
from isoflop.decide.shapes import Shape, shape_named, usual
from isoflop.laws.forms import Array

MEMBERS = 30
POINTS = 400


@dataclass(frozen=True)
class Setting:
    """What the costs of a member are taken at."""

    vocab_size: int
    context: int
    prompt: int
    output: int
    prompt_share: float
    count: Count


@dataclass(frozen=True)
class Member:
    """Exact figures of one decoder: parameters under each convention, those one token uses, FLOPs to train on a token
    and to serve one (a mean over prompt and answer), cache bytes of a request in half precision."""

    decoder: Decoder
    total: int
    active: int
    matmul: int
    non_embedding: int  # active, as laws mean it
    train_flops: float
    served_flops: float
    cache_bytes: int

    @property
    def convention(self) -> dict[Convention, float]:
        """N as a law counts it: of experts, those a token uses."""
        return {"total": self.active, "non_embedding": self.non_embedding, "matmul": self.matmul}


@dataclass(frozen=True)
class Curve:
    """Costs over a grid of total parameters; arrays of (m,)."""

    shape: Shape
    total_m: Array
    active_m: Array
    n: dict[Convention, Array]
    train_m: Array
    served_m: Array
    cache_m: Array


def member(decoder: Decoder, at: Setting) -> Member:
    """The exact figures of a decoder."""
    count = parameters(decoder)
    served = at.prompt_share, 1 - at.prompt_share
    if at.count == "6nd":
        train, prefill, decode = 6.0 * count.active, 2.0 * count.active, 2.0 * count.active
    else:
        train = flops(decoder, at.context, "exact").train_per_token
        prefill = flops(decoder, at.prompt, "exact").prefill_per_token
        decode = flops(decoder, at.prompt + at.output // 2, "exact").decode_per_token
    return Member(
        decoder=decoder,
        total=count.total,
        active=count.active,
        matmul=count.matmul,
        non_embedding=count.active - (count.total - count.non_embedding),
        train_flops=train,
        served_flops=served[0] * prefill + served[1] * decode,
        cache_bytes=cache(decoder, at.prompt + at.output, "bf16").bytes_at_context,
    )


@lru_cache(maxsize=64)
def curve(family: str, at: Setting) -> Curve:
    """Costs of a family, by name or template, in tens of milliseconds the first time."""
    shape = shape_named(family, at.vocab_size, max(at.context, at.prompt + at.output))
    steps = np.geomspace(shape.widths[0], shape.widths[-1], MEMBERS)
    widths = sorted({min(shape.widths, key=lambda width: abs(width - step)) for step in steps})
    built = {(m := member(usual(shape, width), at)).total: m for width in widths}
    members = [built[total] for total in sorted(built)]
    knots = np.log([m.total for m in members])
    log_m = np.linspace(knots[0], knots[-1], POINTS)

    def line(values: list[float]) -> Array:
        drawn: Array = np.exp(np.interp(log_m, knots, np.log(values)))
        return drawn

    conventions: tuple[Convention, ...] = ("total", "non_embedding", "matmul")
    return Curve(
        shape=shape,
        total_m=np.exp(log_m),
        active_m=line([m.active for m in members]),
        n={name: line([m.convention[name] for m in members]) for name in conventions},
        train_m=line([m.train_flops for m in members]),
        served_m=line([m.served_flops for m in members]),
        cache_m=line([m.cache_bytes for m in members]),
    )
