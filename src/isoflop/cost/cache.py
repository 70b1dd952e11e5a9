"""Bytes a sequence keeps while it is decoded."""

from collections import Counter

import msgspec

from isoflop.architecture import Attention, Decoder, LatentAttention, Mixer
from isoflop.cost.mixer import mixer_cache, mixer_tokens_kept

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}
# Integers with a scale in fp16 for each group of a vector (a head's key or value of a token, or a token's latent):
# bits a number, and numbers of a group.
QUANTIZED = {"int8": (8, 128), "int4": (4, 32)}
SCALE_BYTES = 2
CACHE_DTYPES = (*BYTES, *QUANTIZED)


class Cache(msgspec.Struct, frozen=True):
    """`bytes_per_token`: keys and values, or latents, of one token in every layer, whatever its window;
    `state_bytes_per_sequence`: states and convolution windows, which do not grow; `bytes_at_context`: all that a
    sequence of that many tokens keeps, a layer with a window or chunk only its last tokens."""

    bytes_per_token: int
    state_bytes_per_sequence: int
    bytes_at_context: int


def vector_bytes(width: int, dtype: str) -> int:
    """Bytes of one vector of `width` numbers, scales included."""
    if dtype not in QUANTIZED:
        return width * BYTES[dtype]
    bits, group = QUANTIZED[dtype]
    return -(-width * bits // 8) + SCALE_BYTES * -(-width // group)


def layer_cache(mixer: Mixer, d_model: int, dtype: str, rest: str | None = None) -> tuple[int, int]:
    """Bytes that one mixer keeps for each token, and for the sequence whatever its length. Only keys, values and
    latents are quantized: beside them, the inputs of convolutions are kept in `rest`, fp32 where it is not told."""
    if dtype not in QUANTIZED:
        return mixer_cache(mixer, d_model, BYTES[dtype])
    match mixer:
        case Attention(n_kv_heads=heads, d_head=width):
            return 2 * heads * vector_bytes(width, dtype), 0
        case LatentAttention(kv_rank=rank, d_rope=rotated):
            return vector_bytes(rank + rotated, dtype), 0
        case _:
            return mixer_cache(mixer, d_model, BYTES[rest or "fp32"])


def cache(decoder: Decoder, context: int, dtype: str = "bf16", rest: str | None = None) -> Cache:
    """Exact bytes of one sequence's cache at `context` tokens; recurrent states are fp32 in any dtype. `rest`: see
    `layer_cache`."""
    if dtype not in CACHE_DTYPES:
        raise ValueError(f"cache dtype {dtype!r} is unknown; valid: {', '.join(CACHE_DTYPES)}")
    if context < 0:
        raise ValueError(f"context = {context} must not be negative")
    mixers = Counter(layer.mixer for layer in decoder.layers if layer.mixer is not None)
    a_token = states = at_context = 0
    for mixer, n in mixers.items():
        bytes_per_token, state_bytes = layer_cache(mixer, decoder.d_model, dtype, rest)
        a_token += n * bytes_per_token
        states += n * state_bytes
        at_context += n * bytes_per_token * mixer_tokens_kept(mixer, context)
    return Cache(bytes_per_token=a_token, state_bytes_per_sequence=states, bytes_at_context=at_context + states)
