"""A small decoder with the same kinds of layers as a large one: what a CPU can run in the place of what it cannot."""

import math

import msgspec

from isoflop.architecture import (
    S4D,
    Attention,
    Decoder,
    Dynamic,
    FeedForward,
    Hyena,
    LatentAttention,
    Layer,
    LongRope,
    Mamba1,
    Mamba2,
    MixtureOfExperts,
    Mlp,
    Rope,
)
from isoflop.architecture.mixer import Mixer

D_MODEL, D_HEAD, D_FF, D_INNER, D_STATE, RANK = 24, 8, 20, 16, 4, 6
CONTEXT = 20
SPAN = 5  # windows, chunks and periods of temperature: short enough to matter within the context

replace = msgspec.structs.replace


def shrink(decoder: Decoder) -> Decoder:
    """One layer of each kind, every option kept, every width small. Experts' capacity is lifted: what is dropped
    depends on how many tokens come at once, so decoding cannot agree with it."""
    position = _rope(decoder.position) if isinstance(decoder.position, Rope) else decoder.position
    layers = dict.fromkeys(_layer(layer, decoder) for layer in decoder.layers)
    return replace(
        decoder,
        vocab_size=min(decoder.vocab_size, 61),
        d_model=min(decoder.d_model, D_MODEL),
        layers=tuple(layers),
        max_context=min(decoder.max_context, CONTEXT),
        position=position,
    )


def _layer(layer: Layer, decoder: Decoder) -> Layer:
    mixer = None if layer.mixer is None else _mixer(layer.mixer, decoder)
    feed_forward = None if layer.feed_forward is None else _feed_forward(layer.feed_forward)
    return replace(layer, mixer=mixer, feed_forward=feed_forward)


def _mixer(mixer: Mixer, decoder: Decoder) -> Mixer:
    match mixer:
        case Attention():
            return _attention(mixer, decoder.rope_of(mixer))
        case LatentAttention():
            return _latent_attention(mixer, decoder.rope_of(mixer))
        case Mamba1():
            sizes = {"d_inner": D_INNER, "d_state": D_STATE, "dt_rank": 2}
            return replace(mixer, **_at_most(mixer, sizes))
        case Mamba2():
            return _mamba2(mixer)
        case S4D():
            return replace(mixer, **_at_most(mixer, {"d_inner": D_INNER, "d_state": D_STATE}))
        case Hyena():
            return replace(mixer, **_at_most(mixer, {"d_filter": D_HEAD}))


def _attention(mixer: Attention, rope: Rope | None) -> Attention:
    n_kv_heads = min(mixer.n_kv_heads, 2)
    temperature = mixer.temperature
    return replace(
        mixer,
        n_kv_heads=n_kv_heads,
        n_heads=n_kv_heads * min(mixer.n_heads // mixer.n_kv_heads, 2),
        d_head=_d_head(mixer.d_head, rope),
        window=mixer.window and min(mixer.window, SPAN),
        chunk=mixer.chunk and min(mixer.chunk, SPAN),
        temperature=temperature and replace(temperature, period=min(temperature.period, SPAN)),
        position=_rope(mixer.position) if isinstance(mixer.position, Rope) else mixer.position,
    )


def _latent_attention(mixer: LatentAttention, rope: Rope | None) -> LatentAttention:
    small = _at_most(mixer, {"n_heads": 2, "kv_rank": RANK, "d_nope": D_HEAD, "d_value": RANK})
    return replace(mixer, **small, q_rank=mixer.q_rank and min(mixer.q_rank, RANK), d_rope=_d_head(mixer.d_rope, rope))


def _mamba2(mixer: Mamba2) -> Mamba2:
    n_groups = min(mixer.n_groups, 2)
    n_heads = n_groups * min(mixer.n_heads // mixer.n_groups, 2)
    d_head, d_state = min(mixer.d_head, D_HEAD), min(mixer.d_state, D_STATE)
    return replace(
        mixer,
        n_groups=n_groups,
        n_heads=n_heads,
        d_head=d_head,
        d_state=d_state,
        norm_groups=math.gcd(n_heads * d_head, mixer.norm_groups),
    )


def _feed_forward(feed_forward: FeedForward) -> FeedForward:
    if isinstance(feed_forward, Mlp):
        return replace(feed_forward, d_ff=min(feed_forward.d_ff, D_FF))
    return _mixture(feed_forward)


def _mixture(f: MixtureOfExperts) -> MixtureOfExperts:
    """Grouped experts stay grouped, all-chosen ones all chosen, and where not every group may be chosen from, one may
    not."""
    n_groups = min(f.n_groups, 2)
    top_groups = n_groups if f.top_groups == f.n_groups else 1
    n_experts = n_groups * min(f.n_experts // f.n_groups, 4)
    reachable = n_experts // n_groups * top_groups
    return replace(
        f,
        n_experts=n_experts,
        top_k=n_experts if f.top_k == f.n_experts else min(f.top_k, 2, reachable),
        d_ff=min(f.d_ff, D_FF),
        n_groups=n_groups,
        top_groups=top_groups,
        shared=f.shared and replace(f.shared, d_ff=min(f.shared.d_ff, D_FF)),
        capacity_factor=None,
    )


def _d_head(d_head: int, rope: Rope | None) -> int:
    """Small, but with a pair to turn."""
    least = D_HEAD if rope is None else max(D_HEAD, 2 * math.ceil(1 / rope.fraction))
    return min(d_head, least)


def _rope(rope: Rope) -> Rope:
    """With factors for as many pairs as are left; where turns depend on the length of the sequence, the twin's is
    short."""
    match rope.scaling:
        case LongRope() as scaling:
            # A head of `_d_head` keeps this many pairs, or all where the original has fewer.
            n_pairs = min(len(scaling.long_factors), int(_d_head(1 << 30, rope) * rope.fraction) // 2)
            kept = replace(
                scaling,
                short_factors=scaling.short_factors[:n_pairs],
                long_factors=scaling.long_factors[:n_pairs],
                original_max_context=max(scaling.original_max_context, CONTEXT),
            )
            return replace(rope, scaling=kept)
        case Dynamic() as scaling:
            longer = replace(scaling, original_max_context=max(scaling.original_max_context, CONTEXT))
            return replace(rope, scaling=longer)
        case _:
            return rope


def _at_most(mixer: Mixer, most: dict[str, int]) -> dict[str, int]:
    return {key: min(getattr(mixer, key), value) for key, value in most.items()}
