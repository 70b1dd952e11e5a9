"""The models of benchmarks/families.py: one of each family, about 100 million weights a token. No torch."""

from inference_shape import CONTEXT, D_FF, D_HEAD, D_MODEL, HEADS, KV_HEADS, LAYERS, VOCAB
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
    NoPosition,
    RmsNorm,
)
from isoflop.architecture.position import Position, Rope
from isoflop.cost.cache import cache
from isoflop.cost.parameters import parameters

ATTENTION = Attention(n_heads=HEADS, n_kv_heads=KV_HEADS, d_head=D_HEAD)
WINDOW = Attention(n_heads=HEADS, n_kv_heads=KV_HEADS, d_head=D_HEAD, window=256)
NORMED = Attention(n_heads=HEADS, n_kv_heads=KV_HEADS, d_head=D_HEAD, qk_norm="head")
LATENT = LatentAttention(n_heads=HEADS, kv_rank=256, d_nope=D_HEAD, d_rope=32, d_value=D_HEAD, q_rank=384)
SPACE = Mamba2(n_heads=24, d_head=D_HEAD, d_state=128)
MLP, RELU2 = Mlp(d_ff=D_FF), Mlp(d_ff=D_FF * 3 // 2, activation="relu2")
EIGHT = MixtureOfExperts(n_experts=8, top_k=2, d_ff=D_FF // 2)
THIRTY_TWO = MixtureOfExperts(n_experts=32, top_k=4, d_ff=D_FF // 4)
Parts = tuple[Mixer | None, FeedForward | None]


def _decoder(*parts: Parts, position: Position | None = None) -> Decoder:
    layers = tuple(Layer(mixer=mixer, feed_forward=feed_forward) for mixer, feed_forward in parts)
    return Decoder(
        vocab_size=VOCAB,
        d_model=D_MODEL,
        layers=layers * (2 * LAYERS // len(parts) if len(parts) > 2 else LAYERS * len(parts)),
        norm=RmsNorm(eps=1e-5),
        position=position or Rope(theta=10000.0),
        max_context=CONTEXT,
        tie_embeddings=False,
    )


_MIXED: tuple[Parts, ...] = ((SPACE, None), (None, RELU2)) * 3 + ((ATTENTION, None), (None, RELU2))
FAMILIES: dict[str, Decoder] = {
    "dense": _decoder((ATTENTION, MLP)),
    "window": _decoder((WINDOW, MLP)),
    "latent": _decoder((LATENT, MLP)),
    "8 experts": _decoder((ATTENTION, EIGHT)),
    "32 experts": _decoder((NORMED, THIRTY_TWO)),
    "mamba-2": _decoder(*((SPACE, None),) * 24, position=NoPosition()),
    "hybrid": _decoder(*_MIXED, position=NoPosition()),
}


def weights_read(decoder: Decoder, batch: int) -> float:
    """Weights that a step of so many tokens needs: all but the input table, and of E experts those that get one of the
    tokens, E (1 - (1 - k/E)^batch) on average (cost/serving.py)."""
    count = parameters(decoder)
    share = next((f.top_k / f.n_experts for _, f in _parts(decoder) if isinstance(f, MixtureOfExperts)), 1.0)
    idle = count.total - count.active
    routed = idle / (1 - share) if idle else 0.0
    return count.active_no_input_embedding + idle - routed * (1 - share) ** batch


def bytes_moved(decoder: Decoder, batch: int, context: int, a_weight: float) -> float:
    """Of a step that decodes: weights and what each sequence keeps, states twice, as they are written anew."""
    kept = cache(decoder, context, "fp32")
    return weights_read(decoder, batch) * a_weight + batch * (kept.bytes_at_context + kept.state_bytes_per_sequence)


def _parts(decoder: Decoder) -> list[Parts]:
    return [(layer.mixer, layer.feed_forward) for layer in decoder.layers]
