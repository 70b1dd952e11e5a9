"""Families of candidates: a decoder of about so many parameters, of dimensions that hardware likes.

A family is a shape of two dials, width and depth. Widths are multiples of 64, from 1024 of 256, from 4096 of 1024, so
that heads (128 wide, below 1024 64) split over eight devices; feed-forwards are multiples of 128. Of the widths
whose depth gives the size wanted, the one nearest to the family's usual width over depth is taken, as shape matters
little over a wide range (Kaplan et al. 2020, section 3.2).
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from isoflop.architecture import (
    Attention,
    Decoder,
    FeedForward,
    LatentAttention,
    Layer,
    Mamba2,
    Mixer,
    MixtureOfExperts,
    Mlp,
    Rope,
)
from isoflop.architecture.find import find_decoder
from isoflop.architecture.resize import width_step, with_depth, with_width
from isoflop.cost.parameters import parameters
from isoflop.decide.question import FAMILIES

THETA = 500_000.0
TIED_BELOW = 2048  # of width: small models share input and output table
ATTENTION_EVERY = 8  # of a hybrid's layers (Jamba, arXiv 2403.19887)
EXPERTS, CHOSEN = 64, 8  # as OLMoE (arXiv 2409.02060)
SIZE_OVER_SHAPE = 20.0  # how much a miss in size counts over the same miss in width over depth
WIDEST = 2**16
NEAR = 4  # widths tried to either side


class Shape(NamedTuple):
    """A family: its decoder of a width and a number of layers; its widths; their usual ratio to the depth; layers after
    which its pattern repeats."""

    name: str
    build: Callable[[int, int], Decoder]
    widths: tuple[int, ...]
    aspect: float
    period: int
    deepest: int = 256


def shape_named(family: str, vocab_size: int, context: int) -> Shape:
    """The shape of a family, or of an architecture by name or file, for sequences of `context`. Raises ValueError for a
    name that is neither."""
    layers = _LAYERS.get(family)
    if layers is None:
        return _of_template(family, context)

    def build(d_model: int, n_layers: int) -> Decoder:
        return Decoder(
            vocab_size=vocab_size,
            d_model=d_model,
            layers=layers(d_model, n_layers),
            max_context=context,
            position=Rope(theta=THETA),
            tie_embeddings=d_model < TIED_BELOW,
        )

    alone = family == "mamba-2"  # without feed-forwards it has twice the layers
    return Shape(family, build, _widths(), 56.0 if alone else 112.0, ATTENTION_EVERY if family == "hybrid" else 1)


@lru_cache(maxsize=1024)
def of_size(shape: Shape, wanted: float) -> Decoder:
    """The decoder whose total parameters are nearest to `wanted`, shape considered. Takes about two milliseconds."""
    middle = bisect_left(shape.widths, wanted, key=lambda width: _usual_size(shape, width))
    near = shape.widths[max(0, middle - NEAR - 1) : middle + NEAR]
    return shape.build(*min((_at_width(shape, width, wanted) for width in near), key=lambda one: one[0])[1:])


def usual(shape: Shape, width: int) -> Decoder:
    """The decoder of a width at the family's usual depth."""
    return shape.build(width, _usual_depth(shape, width))


def _usual_size(shape: Shape, width: int) -> int:
    return parameters(usual(shape, width)).total


def _usual_depth(shape: Shape, width: int) -> int:
    return min(shape.deepest, max(1, round(width / shape.aspect)))


def _at_width(shape: Shape, width: int, wanted: float) -> tuple[float, int, int]:
    """How far the best depth of a width is off, that width and depth."""
    wonted = _usual_depth(shape, width)
    deep = max(shape.period, round(wonted / shape.period) * shape.period)
    size, more = (parameters(shape.build(width, n)).total for n in (deep, 2 * deep))
    depth = min(shape.deepest, max(1, round(deep + (wanted - size) * deep / (more - size))))
    reached = parameters(shape.build(width, depth)).total
    off = SIZE_OVER_SHAPE * abs(math.log(reached / wanted)) + abs(math.log(depth / wonted))
    return off, width, depth


@cache
def _widths() -> tuple[int, ...]:
    steps = ((64, 1024, 64), (1024, 2048, 256), (2048, 4096, 512), (4096, 16384, 1024), (16384, WIDEST + 1, 2048))
    return tuple(width for step in steps for width in range(*step))


def _of_template(family: str, context: int) -> Shape:
    """Any architecture with its dials turned, in its own proportions."""
    template = _template(family)
    template = msgspec.structs.replace(template, max_context=max(context, template.max_context))

    def build(d_model: int, n_layers: int) -> Decoder:
        return with_depth(with_width(template, d_model), n_layers)

    step = width_step(template)
    widths = tuple(sorted({width for width in _widths() if width % step == 0} | {template.d_model}))
    aspect = template.d_model / template.n_layers
    return Shape(family, build, widths, aspect, _period(template.layers), max(256, template.n_layers))


def _template(family: str) -> Decoder:
    try:
        return find_decoder(family)
    except ValueError as error:
        if Path(family).exists():
            raise
        raise ValueError(f"--family: {error}, nor one of {', '.join(FAMILIES)}") from None


def _period(layers: tuple[Layer, ...]) -> int:
    """Layers after which the pattern repeats, at its end."""
    return next(p for p in range(1, len(layers) + 1) if layers[p:] == layers[:-p] or p >= len(layers) // 2)


def _d_head(d_model: int) -> int:
    return 128 if d_model >= 1024 else 64


def _rounded(value: float, multiple: int) -> int:
    return max(multiple, round(value / multiple) * multiple)


def _attention(d_model: int) -> Attention:
    """Grouped queries: eight key heads, or as many as divide the heads."""
    n_heads = d_model // _d_head(d_model)
    return Attention(n_heads=n_heads, n_kv_heads=math.gcd(n_heads, 8), d_head=_d_head(d_model))


def _mlp(d_model: int) -> FeedForward:
    return Mlp(d_ff=_rounded(3.5 * d_model, 128))


def _dense(d_model: int, n_layers: int) -> tuple[Layer, ...]:
    return (Layer(mixer=_attention(d_model), feed_forward=_mlp(d_model)),) * n_layers


def _experts(d_model: int, n_layers: int) -> tuple[Layer, ...]:
    d_ff = _rounded(3.5 * d_model / CHOSEN, 64)
    sparse = MixtureOfExperts(n_experts=EXPERTS, top_k=CHOSEN, d_ff=d_ff)
    return (Layer(mixer=_attention(d_model), feed_forward=sparse),) * n_layers


def _latent(d_model: int, n_layers: int) -> tuple[Layer, ...]:
    """Latents of DeepSeek-V2's proportions (arXiv 2405.04434): four heads' width, a rotated key of half a head."""
    d_head = _d_head(d_model)
    mixer = LatentAttention(
        n_heads=d_model // d_head, kv_rank=4 * d_head, d_nope=d_head, d_rope=d_head // 2, d_value=d_head
    )
    return (Layer(mixer=mixer, feed_forward=_mlp(d_model)),) * n_layers


def _mamba2_mixer(d_model: int) -> Mixer:
    return Mamba2(n_heads=2 * d_model // 64, d_head=64, d_state=128)


def _mamba2(d_model: int, n_layers: int) -> tuple[Layer, ...]:
    return (Layer(mixer=_mamba2_mixer(d_model), feed_forward=None),) * n_layers


def _hybrid(d_model: int, n_layers: int) -> tuple[Layer, ...]:
    """Attention in the middle of every eight layers, Mamba-2 in the others."""
    feed_forward = _mlp(d_model)
    recurrent = Layer(mixer=_mamba2_mixer(d_model), feed_forward=feed_forward)
    attending = Layer(mixer=_attention(d_model), feed_forward=feed_forward)
    return tuple(attending if i % ATTENTION_EVERY == ATTENTION_EVERY // 2 else recurrent for i in range(n_layers))


_LAYERS: dict[str, Callable[[int, int], tuple[Layer, ...]]] = {
    "dense": _dense,
    "experts": _experts,
    "latent": _latent,
    "mamba-2": _mamba2,
    "hybrid": _hybrid,
}
