"""How many parameters a decoder has, under each convention in use."""

from collections import Counter

import msgspec

from isoflop.architecture import NORMS_A_BRANCH, Decoder, Layer, Learned
from isoflop.cost.attention import norm_parameters
from isoflop.cost.feed_forward import feed_forward_parameters
from isoflop.cost.mixer import mixer_parameters
from isoflop.cost.part import Part


class Parameters(msgspec.Struct, frozen=True):
    """Counts of parameters; buffers (the selection bias of experts, tables of rotations) are none.

    total: all. active: those one token uses (its own experts only). active_no_input_embedding: active, without the
    input table unless it is also the output table, and without learned positions. non_embedding: total without input
    and output tables, learned positions and the output's bias. matmul: those of the matrices that multiply a token's
    activations, the output table among them, norms, biases and convolution kernels not: half the FLOPs per token of a
    forward pass outside mixing.
    """

    total: int
    active: int
    active_no_input_embedding: int
    non_embedding: int
    matmul: int


def parameters(decoder: Decoder) -> Parameters:
    """Exact counts, equal to the module's own."""
    body = _body(decoder)
    table = decoder.vocab_size * decoder.d_model
    positions = decoder.max_context * decoder.d_model if isinstance(decoder.position, Learned) else 0
    head_bias = decoder.vocab_size if decoder.head_bias else 0
    tables = (table if decoder.tie_embeddings else 2 * table) + positions + head_bias
    return Parameters(
        total=body.total + tables,
        active=body.active + tables,
        active_no_input_embedding=body.active + table + head_bias,
        non_embedding=body.total,
        matmul=body.matmul + table,
    )


def layer_parameters(layer: Layer, decoder: Decoder) -> Part:
    """Parameters of one layer: mixer, feed-forward and their norms."""
    norms = _branch_norms(layer, decoder) * norm_parameters(decoder.norm, decoder.d_model)
    parts = [Part(norms, norms, 0)]
    if layer.mixer is not None:
        parts.append(mixer_parameters(layer.mixer, decoder))
    if layer.feed_forward is not None:
        parts.append(feed_forward_parameters(layer.feed_forward, decoder.d_model))
    return Part(*map(sum, zip(*parts, strict=True)))


def _branch_norms(layer: Layer, decoder: Decoder) -> int:
    """Norms of the stream's width that a layer brings; a parallel layer may share one between both branches."""
    branches = (layer.mixer is not None) + (layer.feed_forward is not None)
    return NORMS_A_BRANCH[decoder.placement] * (1 if layer.parallel == "shared-norm" else branches)


def _body(decoder: Decoder) -> Part:
    """All but the tables: layers, and the norms before and after them."""
    ends = (decoder.embedding_norm + decoder.final_norm) * norm_parameters(decoder.norm, decoder.d_model)
    layers = [(layer_parameters(layer, decoder), n) for layer, n in Counter(decoder.layers).items()]
    total, active, matmul = (sum(n * part[i] for part, n in layers) for i in range(3))
    return Part(total + ends, active + ends, matmul)
