"""What a token makes a device do, by the kind of work: products, attention, and what passes through memory.

Elements count what kernels that fuse nothing read and write of activations in a forward: a norm its input and output, a
sum its three, a product its input and output, an activation function what it reads and gives, rotations and attention
queries, keys, values and output. A backward touches twice as much. Kernels that fuse touch less; the fitted efficiency
of the bandwidth absorbs how many do on average. Scans and long convolutions are priced by the elements that they touch
(assumed: no measurement stands behind the number of passes).

Kept elements are what a backward needs, in the half precision of the forward, with attention that keeps queries, keys,
values and its output and no scores (Dao 2023, arXiv 2307.08691).
"""

from collections import Counter
from typing import NamedTuple

from isoflop.architecture import (
    GATED,
    S4D,
    Attention,
    Decoder,
    FeedForward,
    Hyena,
    LatentAttention,
    Layer,
    Mamba1,
    Mamba2,
    Mixer,
    MixtureOfExperts,
)
from isoflop.cost.mixer import mixer_mixing
from isoflop.cost.parameters import layer_parameters, parameters
from isoflop.cost.products import Product, feed_forward_products, mixer_products

SCAN_PASSES = 6  # over what a scan is given: its convolution, decays, states in and out of a chunk, its gate


class LayerWork(NamedTuple):
    """Of one token in the forward of one layer: FLOPs, parameters, elements. `routed`: elements sent to experts and
    back; `keys`: elements of keys and values that others see."""

    product_flops: float
    mixing_flops: float
    weights: float
    expert_weights: float
    elements: float
    kept: float
    routed: float
    keys: float
    branches: float


class Work(NamedTuple):
    """Of one token in the forward of a decoder, the mean over a sequence of `context`; `layers` is the sum over its
    layers, `widest` the largest figure of any. `n_heads` and `n_experts` are the least that any layer splits into, None
    where none has them."""

    context: int
    d_model: int
    vocab_size: int
    n_layers: int
    parameters: int
    head_flops: float
    layers: LayerWork
    widest: LayerWork
    n_heads: int | None
    n_experts: int | None


def work_of(decoder: Decoder, context: int) -> Work:
    """Takes about a millisecond; what is made of it, microseconds. Raises ValueError for a context that it cannot
    take."""
    if not 1 <= context <= decoder.max_context:
        raise ValueError(f"context = {context} must lie between 1 and the architecture's {decoder.max_context} tokens")
    layers = [(_layer(layer, decoder, context), n) for layer, n in Counter(decoder.layers).items()]
    heads = {layer.mixer.n_heads for layer in decoder.layers if isinstance(layer.mixer, Attention | LatentAttention)}
    experts = [layer.feed_forward for layer in decoder.layers]
    counts = {f.n_experts for f in experts if isinstance(f, MixtureOfExperts)}
    return Work(
        context=context,
        d_model=decoder.d_model,
        vocab_size=decoder.vocab_size,
        n_layers=decoder.n_layers,
        parameters=parameters(decoder).total,
        head_flops=2.0 * decoder.vocab_size * decoder.d_model,
        layers=LayerWork(*(sum(n * work[i] for work, n in layers) for i in range(len(LayerWork._fields)))),
        widest=LayerWork(*(max(work[i] for work, _ in layers) for i in range(len(LayerWork._fields)))),
        n_heads=min(heads, default=None),
        n_experts=min(counts, default=None),
    )


def _layer(layer: Layer, decoder: Decoder, context: int) -> LayerWork:
    d = decoder.d_model
    products = (mixer_products(layer.mixer, d) if layer.mixer is not None else []) + (
        feed_forward_products(layer.feed_forward, d) if layer.feed_forward is not None else []
    )
    mixing = mixer_mixing(layer.mixer, d, context, "exact").sequence / context if layer.mixer is not None else 0.0
    elements, kept, keys = _mixed(layer.mixer, d) if layer.mixer is not None else (0, 0, 0)
    fed, fed_kept = _fed(layer.feed_forward, d) if layer.feed_forward is not None else (0, 0)
    branches = (layer.mixer is not None) + (layer.feed_forward is not None)
    moved = sum(product.rows * (product.d_in + product.d_out) for product in products)
    return LayerWork(
        product_flops=sum(2.0 * product.rows * product.d_in * product.d_out for product in products),
        mixing_flops=mixing,
        weights=layer_parameters(layer, decoder).total,
        expert_weights=sum(_expert_weights(product) for product in products),
        elements=moved + elements + fed + branches * 5 * d,
        kept=kept + fed_kept + branches * 2 * d,
        routed=2 * d * layer.feed_forward.top_k if isinstance(layer.feed_forward, MixtureOfExperts) else 0,
        keys=keys,
        branches=branches,
    )


def _expert_weights(product: Product) -> int:
    return product.d_in * product.d_out * product.matrices if product.matrices > 1 else 0


def _mixed(mixer: Mixer, d_model: int) -> tuple[int, int, int]:
    """Elements that a mixer touches and keeps between its products, and the keys and values among them."""
    match mixer:
        case Attention():
            queries, keys = mixer.n_heads * mixer.d_head, 2 * mixer.n_kv_heads * mixer.d_head
            return 4 * queries + 2 * keys, 2 * queries + keys, keys
        case LatentAttention():
            queries, values = mixer.n_heads * (mixer.d_nope + mixer.d_rope), mixer.n_heads * mixer.d_value
            latents = mixer.kv_rank + mixer.d_rope + (mixer.q_rank or 0)
            return 4 * queries + 2 * values + 2 * latents, 2 * queries + 2 * values + 2 * latents, latents
        case Mamba1():
            return SCAN_PASSES * 2 * mixer.d_inner, 6 * mixer.d_inner, 0
        case Mamba2():
            given = mixer.d_inner + mixer.d_convolved
            return SCAN_PASSES * given, 2 * given + mixer.d_inner, 0
        case S4D():
            return SCAN_PASSES * mixer.d_inner, 3 * mixer.d_inner, 0
        case Hyena():
            given = (mixer.order + 1) * d_model
            return SCAN_PASSES * given, 3 * given, given


def _fed(feed_forward: FeedForward, d_model: int) -> tuple[int, int]:
    """Elements that a feed-forward touches and keeps between its products."""
    widened = (3 if feed_forward.activation in GATED else 2) * feed_forward.d_ff
    if not isinstance(feed_forward, MixtureOfExperts):
        return widened, widened
    shared = 0 if feed_forward.shared is None else widened // feed_forward.d_ff * feed_forward.shared.d_ff
    sorting = 2 * d_model  # a row is copied to its expert, and back into a sum
    touched = feed_forward.top_k * (widened + 2 * sorting) + shared
    return touched, feed_forward.top_k * (widened + sorting) + shared
