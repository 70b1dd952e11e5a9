"""One decoder at other widths or depths, for comparisons at equal size or equal cost.

Width. The dial is d_model, in steps of 16, or of what 16 and the original d_model have in common; d_head need not
divide it. With r = the new d_model over the old, everything that scales with width is multiplied by r and rounded:
heads, keeping d_head and the queries a key; groups of heads of Mamba-2; the rank of dt; ranks of latents, d_ff of mlps
and of each expert, and d_inner, to multiples of 8. Kept: layers, vocabulary, d_head, one key head where there is only
one, numbers of experts, d_state, windows.

Depth. The dial is the number of layers: the pattern of the layers (what comes before it repeats, then the shortest
part that repeats) is cut off or continued.

Only the shape follows the dial: multipliers and scales of a tuned recipe are left as they are.
"""

from math import gcd, lcm

import msgspec

from isoflop.architecture.decoder import Decoder, Layer
from isoflop.architecture.feed_forward import FeedForward, MixtureOfExperts
from isoflop.architecture.mixer import Attention, LatentAttention, Mixer
from isoflop.architecture.recurrent import S4D, Hyena, Mamba1, Mamba2

replace = msgspec.structs.replace


def width_step(decoder: Decoder) -> int:
    """The step in which d_model may be chosen."""
    return gcd(decoder.d_model, 16)


def with_width(decoder: Decoder, d_model: int) -> Decoder:
    """The decoder at another d_model, everything else in proportion; at its own, itself."""
    if d_model == decoder.d_model:
        return decoder
    resized = {layer: _resized(layer, d_model, decoder.d_model) for layer in dict.fromkeys(decoder.layers)}
    return replace(decoder, d_model=d_model, layers=tuple(resized[layer] for layer in decoder.layers))


def with_depth(decoder: Decoder, n_layers: int) -> Decoder:
    """The decoder with another number of layers in the same pattern."""
    before, period = _pattern(decoder.layers)
    layers = [decoder.layers[i if i < before else before + (i - before) % period] for i in range(n_layers)]
    return replace(decoder, layers=tuple(layers))


def _pattern(layers: tuple[Layer, ...]) -> tuple[int, int]:
    """How many layers come before the pattern repeats, and the length of what repeats, their sum as small as may be."""
    kinds = {layer: i for i, layer in enumerate(dict.fromkeys(layers))}
    sequence = [kinds[layer] for layer in layers]
    for size in range(1, len(layers)):
        for period in range(size, 0, -1):
            before = size - period
            if sequence[before + period :] == sequence[before:-period]:
                return before, period
    return 0, len(layers)


def _resized(layer: Layer, new: int, old: int) -> Layer:
    mixer = None if layer.mixer is None else _mixer(layer.mixer, new, old)
    feed_forward = None if layer.feed_forward is None else _feed_forward(layer.feed_forward, new, old)
    return replace(layer, mixer=mixer, feed_forward=feed_forward)


def _mixer(mixer: Mixer, new: int, old: int) -> Mixer:
    def times(value: int, multiple: int = 1) -> int:
        return _in_proportion(value, multiple, new, old)

    match mixer:
        case Attention(n_kv_heads=1):
            return replace(mixer, n_heads=times(mixer.n_heads))
        case Attention():
            n_kv_heads = times(mixer.n_kv_heads)
            return replace(mixer, n_kv_heads=n_kv_heads, n_heads=n_kv_heads * (mixer.n_heads // mixer.n_kv_heads))
        case LatentAttention():
            q_rank = None if mixer.q_rank is None else times(mixer.q_rank, 8)
            return replace(mixer, n_heads=times(mixer.n_heads), kv_rank=times(mixer.kv_rank, 8), q_rank=q_rank)
        case Mamba1():
            return replace(mixer, d_inner=times(mixer.d_inner, 8), dt_rank=times(mixer.dt_rank))
        case Mamba2():
            return replace(mixer, n_heads=times(mixer.n_heads, lcm(mixer.n_groups, mixer.norm_groups)))
        case S4D():
            return replace(mixer, d_inner=times(mixer.d_inner, 8))
        case Hyena():
            return mixer


def _feed_forward(feed_forward: FeedForward, new: int, old: int) -> FeedForward:
    wider = replace(feed_forward, d_ff=_in_proportion(feed_forward.d_ff, 8, new, old))
    if isinstance(wider, MixtureOfExperts) and wider.shared is not None:
        shared = replace(wider.shared, d_ff=_in_proportion(wider.shared.d_ff, 8, new, old))
        return replace(wider, shared=shared)
    return wider


def _in_proportion(value: int, multiple: int, new: int, old: int) -> int:
    """value * new / old to the nearest multiple, at least one."""
    return max(1, (2 * value * new + old * multiple) // (2 * old * multiple)) * multiple
