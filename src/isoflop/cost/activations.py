"""Bytes that autograd keeps of a forward for its backward, for a stated set of kernels.

What is kept depends on what runs, so every closed form names its kernels. `eager-cpu-fp32` is our modules as they run
on a CPU in float32 without torch.compile: our attention kernel (keeps queries, keys, values, its output and a log of
the denominator a head), those of convolutions and scans (activations_recurrent.py), matrix products (keep their input),
torch's norms and elementwise functions.

A sequence has at least two tokens: for one alone, as in decoding, attention takes another kernel.

A tensor that several operations keep is counted once, and a view keeps the whole tensor that it looks at: values keep
the projection that queries and keys came from. Parameters, buffers and the tokens are there anyway and not counted.
Statistics of the routers are kept as long as their losses.
"""

from collections import Counter
from typing import Literal, NamedTuple, get_args

import msgspec

from isoflop.architecture import (
    Activation,
    Attention,
    Decoder,
    Dynamic,
    LatentAttention,
    Layer,
    LongRope,
    Mixer,
    MixtureOfExperts,
    Mlp,
    Norm,
    RmsNorm,
    Rope,
)
from isoflop.cost.activations_recurrent import FLOAT32, recurrent_activations

Kernels = Literal["eager-cpu-fp32"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)
INT64 = 8


class Activations(msgspec.Struct, frozen=True):
    """Bytes kept for the backward of one forward and loss: by the norms of the layers, by the mixers and feed-forwards
    within them, and outside of the layers (the norm after the last, logits, loss)."""

    norms: int
    mixers: int
    feed_forwards: int
    head: int

    @property
    def total(self) -> int:
        return self.norms + self.mixers + self.feed_forwards + self.head


class _Kept(NamedTuple):
    """Bytes kept a token; a position of the context, whatever the batch; a sequence; and whatever the batch."""

    a_token: int
    a_position: int = 0
    a_sequence: int = 0
    once: int = 0

    def bytes_of(self, batch: int, context: int) -> int:
        sequences = batch * (context * self.a_token + self.a_sequence)
        return sequences + context * self.a_position + self.once


def saved_activations(decoder: Decoder, batch: int, context: int, kernels: Kernels = "eager-cpu-fp32") -> Activations:
    """Exact bytes for `batch` sequences of `context` tokens."""
    if kernels not in KERNELS:
        raise ValueError(f"kernels {kernels!r} are unknown; valid: {', '.join(KERNELS)}")
    if batch < 1 or context < 1:
        raise ValueError(f"batch = {batch} and context = {context} must be at least 1")
    layers, shape = Counter(decoder.layers), (batch, context)
    mixers = ((layer.mixer, n) for layer, n in layers.items() if layer.mixer is not None)
    fed_forward = ((layer, n) for layer, n in layers.items() if layer.feed_forward is not None)
    return Activations(
        norms=sum(_layer_norms(layer, decoder).bytes_of(*shape) * n for layer, n in layers.items()),
        mixers=sum(_mixer(mixer, decoder, *shape) * n for mixer, n in mixers),
        feed_forwards=sum(_feed_forward(layer, decoder).bytes_of(*shape) * n for layer, n in fed_forward),
        head=_head(decoder, context).bytes_of(*shape),
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
    return _Kept(FLOAT32 * (inputs * decoder.d_model + n_norms * _of_norm(decoder.norm, decoder.d_model)))


def _of_norm(norm: Norm, width: int) -> int:
    """Numbers a norm keeps beside its input: the root mean square and the input divided by it; mean and deviation."""
    return width + 1 if isinstance(norm, RmsNorm) else 2


def _mixer(mixer: Mixer, decoder: Decoder, batch: int, context: int) -> int:
    match mixer:
        case Attention():
            return _attention(mixer, decoder).bytes_of(batch, context)
        case LatentAttention():
            return _latent_attention(mixer, decoder).bytes_of(batch, context)
        case _:
            return recurrent_activations(mixer, decoder.d_model, batch, context)


def _attention(m: Attention, decoder: Decoder) -> _Kept:
    """The input; the projection; what norms and clamps keep; queries, keys and values where they are no longer the
    projection's own; the output and the log of the denominators."""
    rope, clipped = decoder.rope_of(m), m.clip_qkv is not None
    d_query, d_key = m.n_heads * m.d_head, m.n_kv_heads * m.d_head
    kept = decoder.d_model + d_query + 2 * d_key + d_query + m.n_heads
    if m.qk_norm == "head":
        kept += (m.n_heads + m.n_kv_heads) * _of_norm(decoder.norm, m.d_head)
    if m.qk_norm == "all":
        kept += _of_norm(decoder.norm, d_query) + _of_norm(decoder.norm, d_key)
    if clipped:
        kept += d_key + (d_query + d_key) * (m.qk_norm in ("head", "all"))
    if m.qk_norm == "unweighted-after":
        kept += m.n_heads + m.n_kv_heads + (d_query + d_key) * (rope is not None or clipped)
    changed = rope is not None or clipped or m.qk_norm != "none"
    tempered = m.temperature is not None
    kept += d_query * (changed or tempered) + d_key * changed
    together = m.qk_norm in ("none", "unweighted-after") and not clipped  # queries and keys turn as one tensor
    kept += d_query * (together and rope is not None and tempered and m.qk_norm == "none")
    return _Kept(FLOAT32 * kept, FLOAT32 * (_sines(rope, m.d_head) * (1 if together else 2) + tempered))


def _latent_attention(m: LatentAttention, decoder: Decoder) -> _Kept:
    """The input; both latents with what their norms keep, before and after; queries, keys, keys and values as they were
    expanded; the output and the log of the denominators."""
    d_query, d_value = m.n_heads * (m.d_nope + m.d_rope), m.n_heads * m.d_value
    kept = decoder.d_model
    if m.q_rank is not None:
        kept += 3 * m.q_rank + 1
    kept += m.kv_rank + m.d_rope + 2 * m.kv_rank + 1
    kept += 2 * d_query + m.n_heads * (m.d_nope + m.d_value) + d_value + m.n_heads
    return _Kept(FLOAT32 * kept, FLOAT32 * 2 * _sines(decoder.rope_of(m), m.d_rope))


def _sines(rope: Rope | None, width: int) -> int:
    """Sines with both signs, of one rotation; cosines are the tables' own."""
    return 0 if rope is None else rope.d_rotated(width)


def _feed_forward(layer: Layer, decoder: Decoder) -> _Kept:
    """The input, unless the mixer has kept it already, and what follows."""
    f, d_model = layer.feed_forward, decoder.d_model
    shared_input = FLOAT32 * d_model * (layer.parallel == "shared-norm")
    if isinstance(f, Mlp):
        return _Kept(FLOAT32 * (d_model + _KEPT_BY_ACTIVATION[f.activation] * f.d_ff) - shared_input)
    assert isinstance(f, MixtureOfExperts)
    kept = _mixture(f, d_model)
    return kept._replace(a_token=kept.a_token - shared_input)


# Numbers an activation keeps, in widths d_ff: what it reads, what it computes on the way, and what it gives to the
# matrix after it. Gates and what they gate are halves of one tensor.
_KEPT_BY_ACTIVATION: dict[Activation, int] = {
    "relu": 1,
    "relu2": 2,
    "gelu": 2,
    "gelu-tanh": 2,
    "silu": 2,
    "swiglu": 4,
    "geglu": 4,
    "geglu-tanh": 4,
    "swiglu-clamped": 7,
}


def _mixture(f: MixtureOfExperts, d_model: int) -> _Kept:
    """The input, what the router keeps of it, and every chosen row in and out of its expert."""
    a_row = 2 * d_model + _KEPT_BY_ACTIVATION[f.activation] * f.d_ff
    indices = 3 + f.bias  # the choice, both orders of rows, and the expert of each row where a bias is looked up
    floats = d_model + _router(f) + f.top_k * a_row
    if f.weigh == "input":
        floats += f.top_k * (d_model + 1)
    if f.shared is not None:
        floats += _KEPT_BY_ACTIVATION[f.activation] * f.shared.d_ff + (d_model + 1) * f.shared.gated
    mask = f.top_k * (f.capacity_factor is not None and f.weigh == "output")
    return _Kept(
        a_token=FLOAT32 * floats + INT64 * f.top_k * indices + mask,
        a_sequence=FLOAT32 * f.n_experts * (f.sequence_balance_coef > 0),
        once=FLOAT32 * 2 * f.n_experts,  # where each expert's rows end, and its share of them
    )


def _router(f: MixtureOfExperts) -> int:
    """Logits, scores, and for the entropy scores kept from zero and their logarithms; the denominator of the z-loss;
    weights as they are used, and before they are divided by their sum; sigmoid scores divided by theirs."""
    kept = 4 * f.n_experts + 1 + f.top_k
    if f.renormalize:
        kept += f.top_k + 1
    if f.router == "sigmoid":
        kept += f.n_experts + 1
    return kept


def _head(decoder: Decoder, context: int) -> _Kept:
    """The embedded input before its norm; the last stream, normalised; the probabilities, and the softcap's tanh; one
    number of the loss."""
    a_norm = decoder.d_model + _of_norm(decoder.norm, decoder.d_model)
    kept = decoder.d_model + a_norm * (decoder.embedding_norm + decoder.final_norm)
    kept += decoder.vocab_size * (1 if decoder.logit_softcap is None else 2)
    return _Kept(FLOAT32 * kept, FLOAT32 * _tables(decoder, context), once=FLOAT32)


def _tables(decoder: Decoder, context: int) -> int:
    """Cosines a position, of ropes whose tables are made anew for a long sequence; layers with equal turns share
    them."""
    turns = {_turns(layer.mixer, decoder) for layer in decoder.layers}
    return sum(d_rotated // 2 for rope, d_rotated in turns if rope is not None and _made_anew(rope, context))


def _turns(mixer: Mixer | None, decoder: Decoder) -> tuple[Rope | None, int]:
    rope = decoder.rope_of(mixer)
    match mixer:
        case Attention(d_head=width) | LatentAttention(d_rope=width) if rope is not None:
            return rope, rope.d_rotated(width)
        case _:
            return None, 0


def _made_anew(rope: Rope, context: int) -> bool:
    return isinstance(rope.scaling, Dynamic | LongRope) and context > rope.scaling.original_max_context
