"""Bytes a sequence keeps while it is decoded."""

from collections import Counter

import msgspec

from isoflop.architecture import Decoder
from isoflop.cost.mixer import mixer_cache, mixer_tokens_kept

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "fp8": 1}


class Cache(msgspec.Struct, frozen=True):
    """`bytes_per_token`: keys and values, or latents, of one token in every layer, whatever its window;
    `state_bytes_per_sequence`: states and convolution windows, which do not grow; `bytes_at_context`: all that a
    sequence of that many tokens keeps, a layer with a window or chunk only its last tokens."""

    bytes_per_token: int
    state_bytes_per_sequence: int
    bytes_at_context: int


def cache(decoder: Decoder, context: int, dtype: str = "bf16") -> Cache:
    """Exact bytes of one sequence's cache at `context` tokens; recurrent states are fp32 in any dtype."""
    if dtype not in BYTES:
        raise ValueError(f"cache dtype {dtype!r} is unknown; valid: {', '.join(BYTES)}")
    if context < 0:
        raise ValueError(f"context = {context} must not be negative")
    mixers = Counter(layer.mixer for layer in decoder.layers if layer.mixer is not None)
    a_token = states = at_context = 0
    for mixer, n in mixers.items():
        bytes_per_token, state_bytes = mixer_cache(mixer, decoder.d_model, BYTES[dtype])
        a_token += n * bytes_per_token
        states += n * state_bytes
        at_context += n * bytes_per_token * mixer_tokens_kept(mixer, context)
    return Cache(bytes_per_token=a_token, state_bytes_per_sequence=states, bytes_at_context=at_context + states)
