"""Bytes that autograd keeps of a forward for its backward, for a stated set of kernels.

What is kept depends on what runs, so every closed form names its kernels. `eager-cpu-fp32` is our modules as they run
on a CPU in float32 without torch.compile: our attention kernel (keeps queries, keys, values, its output and a log of
the denominator a head), matrix products (keep their input), torch's norms and elementwise functions.

A tensor that several operations keep is counted once, and a view keeps the whole tensor that it looks at: values keep
the projection that queries and keys came from. Parameters, buffers and the tokens are there anyway and not counted.
Sizes are in numbers of 4 bytes; N = batch * context tokens.
"""

from collections import Counter
from typing import Literal, NamedTuple, get_args

import msgspec

from isoflop.architecture import (
    Attention,
    Decoder,
    Dynamic,
    FeedForward,
    LatentAttention,
    Layer,
    LongRope,
    Mixer,
    Norm,
    RmsNorm,
    Rope,
)

Kernels = Literal["eager-cpu-fp32"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)
FLOAT32 = 4


class Activations(msgspec.Struct, frozen=True):
    """Bytes kept for the backward of one forward and loss: by the norms of the layers, by the mixers and feed-forwards
    within them, and outside of the layers (the norm after the last, logits, loss). None where no closed form is
    stated."""

    norms: int
    mixers: int | None
    feed_forwards: int | None
    head: int

    @property
    def total(self) -> int | None:
        if self.mixers is None or self.feed_forwards is None:
            return None
        return self.norms + self.mixers + self.feed_forwards + self.head


class _Kept(NamedTuple):
    """Numbers kept a token, and a position of the context whatever the batch."""

    a_token: int
    a_position: int = 0


def saved_activations(
    decoder: Decoder, batch: int, context: int, kernels: Kernels = "eager-cpu-fp32"
) -> Activations:
    """Exact bytes for `batch` sequences of `context` tokens."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels {kernels!r} are unknown; valid: {', '.join(KERNELS)}")
    if batch < 1 or context < 1:
        raise ValueError(f"batch = {batch} and context = {context} must be at least 1")
    layers = Counter(decoder.layers)
    n_tokens = batch * context

    def bytes_of(kept: _Kept) -> int:
        return FLOAT32 * (n_tokens * kept.a_token + context * kept.a_position)

    def sum_of(parts: list[tuple[_Kept | None, int]]) -> int | None:
        known = [bytes_of(kept) * times for kept, times in parts if kept is not None]
        return sum(known) if len(known) == len(parts) else None

    return Activations(
        norms=sum(bytes_of(_layer_norms(layer, decoder)) * n for layer, n in layers.items()),
        mixers=sum_of([(_mixer(layer.mixer, decoder), n) for layer, n in layers.items() if layer.mixer is not None]),
        feed_forwards=sum_of(
            [(_feed_forward(layer, decoder), n) for layer, n in layers.items() if layer.feed_forward is not None]
        ),
        head=bytes_of(_head(decoder)) + FLOAT32 * (1 + context * _tables(decoder, context)),
    )


def _layer_norms(layer: Layer, decoder: Decoder) -> _Kept:
    """What the norms of the stream's width keep. A norm before a branch keeps the stream that it reads; one after it,
    the sum or the branch's output. Two that read the same stream keep it once."""
    before, after = {"pre": (1, 0), "post": (0, 1), "sandwich": (1, 1), "output": (0, 1), "deep-norm": (0, 1)}[
        decoder.placement
    ]
    branches = (layer.mixer is not None) + (layer.feed_forward is not None)
    n_norms = (before + after) * (1 if layer.parallel == "shared-norm" else branches)
    inputs = 1 if layer.parallel != "no" else n_norms
    return _Kept(inputs * decoder.d_model + n_norms * _of_norm(decoder.norm, decoder.d_model))


def _of_norm(norm: Norm, width: int) -> int:
    """Numbers a norm keeps beside its input: the root mean square and the input divided by it; mean and deviation."""
    return width + 1 if isinstance(norm, RmsNorm) else 2


def _mixer(mixer: Mixer, decoder: Decoder) -> _Kept | None:
    match mixer:
        case Attention():
            return _attention(mixer, decoder)
        case LatentAttention():
            return _latent_attention(mixer, decoder)
        case _:
            return None


def _attention(m: Attention, decoder: Decoder) -> _Kept:
    """The input; the projection, before and after it is clamped; what norms keep; queries and keys where they are no
    longer the projection's own; the output and the log of the denominators."""
    rope = decoder.rope_of(m)
    d_query, d_key = m.n_heads * m.d_head, m.n_kv_heads * m.d_head
    kept = decoder.d_model + (d_query + 2 * d_key) * (1 if m.clip_qkv is None else 2)
    kept += d_query + m.n_heads
    if m.qk_norm == "head":
        kept += (m.n_heads + m.n_kv_heads) * _of_norm(decoder.norm, m.d_head)
    if m.qk_norm == "all":
        kept += _of_norm(decoder.norm, d_query) + _of_norm(decoder.norm, d_key)
    if m.qk_norm == "unweighted-after":
        kept += m.n_heads + m.n_kv_heads + (0 if rope is None else d_query + d_key)
    changed = rope is not None or m.qk_norm != "none"
    kept += d_query * (changed or m.temperature is not None) + d_key * changed
    return _Kept(kept, _sines(rope, m.d_head) + (m.temperature is not None))


def _latent_attention(m: LatentAttention, decoder: Decoder) -> _Kept:
    """The input; both latents with what their norms keep, before and after; queries, keys, keys and values as they were
    expanded; the output and the log of the denominators."""
    d_query, d_value = m.n_heads * (m.d_nope + m.d_rope), m.n_heads * m.d_value
    kept = decoder.d_model
    if m.q_rank is not None:
        kept += 3 * m.q_rank + 1
    kept += m.kv_rank + m.d_rope + 2 * m.kv_rank + 1
    kept += 2 * d_query + m.n_heads * (m.d_nope + m.d_value) + d_value + m.n_heads
    return _Kept(kept, _sines(decoder.rope_of(m), m.d_rope))


def _sines(rope: Rope | None, width: int) -> int:
    """Sines with both signs, for the queries and again for the keys; cosines are the tables' own."""
    return 0 if rope is None else 2 * rope.d_rotated(width)


def _feed_forward(layer: Layer, decoder: Decoder) -> _Kept | None:
    return None


def _head(decoder: Decoder) -> _Kept:
    """The embedded input before its norm; the last stream, normalised; the probabilities, and the softcap's tanh."""
    a_norm = decoder.d_model + _of_norm(decoder.norm, decoder.d_model)
    kept = decoder.d_model + a_norm * (decoder.embedding_norm + decoder.final_norm)
    return _Kept(kept + decoder.vocab_size * (1 if decoder.logit_softcap is None else 2))


def _tables(decoder: Decoder, context: int) -> int:
    """Cosines a position, of ropes whose tables are made anew for a long sequence."""
    turns = set()
    for mixer in {layer.mixer for layer in decoder.layers}:
        rope = decoder.rope_of(mixer)
        if rope is not None and isinstance(rope.scaling, Dynamic | LongRope):
            width = mixer.d_rope if isinstance(mixer, LatentAttention) else mixer.d_head
            turns.add((rope, rope.d_rotated(width)))
    return sum(d // 2 for rope, d in turns if context > rope.scaling.original_max_context)
