"""Every matrix product a token passes through, with its shape: what time depends on beyond the count of FLOPs.

The products of a decoder add up to its matmul parameters exactly; a test holds them to it.
"""

from typing import NamedTuple

from isoflop.architecture import (
    S4D,
    Attention,
    FeedForward,
    Hyena,
    LatentAttention,
    Mamba1,
    Mamba2,
    Mixer,
    MixtureOfExperts,
    Mlp,
)
from isoflop.architecture.feed_forward import GATED, Activation


class Product(NamedTuple):
    """`rows` rows a token times one of `matrices` matrices of d_in by d_out."""

    d_in: int
    d_out: int
    rows: int = 1
    matrices: int = 1


def mixer_products(mixer: Mixer, d_model: int) -> list[Product]:
    """The projections of a mixer; those that read the same input are one product."""
    match mixer:
        case Attention():
            d_query, d_key = mixer.n_heads * mixer.d_head, mixer.n_kv_heads * mixer.d_head
            return [Product(d_model, d_query + 2 * d_key), Product(d_query, d_model)]
        case LatentAttention():
            return _latent(mixer, d_model)
        case Mamba1():
            small = mixer.dt_rank + 2 * mixer.d_state
            inner = mixer.d_inner
            return [
                Product(d_model, 2 * inner),
                Product(inner, small),
                Product(mixer.dt_rank, inner),
                Product(inner, d_model),
            ]
        case Mamba2():
            return [
                Product(d_model, mixer.d_inner + mixer.d_convolved + mixer.n_heads),
                Product(mixer.d_inner, d_model),
            ]
        case S4D():
            return [Product(d_model, mixer.d_inner), Product(mixer.d_inner, 2 * d_model)]
        case Hyena():
            return [Product(d_model, (mixer.order + 1) * d_model), Product(d_model, d_model)]


def feed_forward_products(feed_forward: FeedForward, d_model: int) -> list[Product]:
    """Router, shared experts, and the chosen of the routed ones; gate and up are one product."""
    match feed_forward:
        case Mlp():
            return _mlp(d_model, feed_forward.d_ff, feed_forward.activation)
        case MixtureOfExperts():
            f = feed_forward
            routed = _mlp(d_model, f.d_ff, f.activation)
            shared = _mlp(d_model, f.shared.d_ff, f.activation) if f.shared is not None else []
            gate = [Product(d_model, 1)] if f.shared is not None and f.shared.gated else []
            experts = [product._replace(rows=f.top_k, matrices=f.n_experts) for product in routed]
            return [Product(d_model, f.n_experts), *experts, *shared, *gate]


def _mlp(d_model: int, d_ff: int, activation: Activation) -> list[Product]:
    return [Product(d_model, (2 if activation in GATED else 1) * d_ff), Product(d_ff, d_model)]


def _latent(m: LatentAttention, d_model: int) -> list[Product]:
    d_query = m.n_heads * (m.d_nope + m.d_rope)
    queries = [Product(d_model, d_query)]
    if m.q_rank is not None:
        queries = [Product(d_model, m.q_rank), Product(m.q_rank, d_query)]
    return [
        *queries,
        Product(d_model, m.kv_rank + m.d_rope),
        Product(m.kv_rank, m.n_heads * (m.d_nope + m.d_value)),
        Product(m.n_heads * m.d_value, d_model),
    ]
