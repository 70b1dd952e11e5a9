"""FLOPs of a decoder, by convention and by part. A multiply and an add are two; matrix products, convolutions and the
products of recurrences are counted, elementwise work (norms, activations, softmax, rotations: under a percent at any
usual width) is not.

    6nd       6 * matmul parameters to train a token, 2 to run one: no mixing at all (Kaplan et al. 2020)
    palm      adds attention as if every token saw the whole context (Chowdhery et al. 2022, appendix B), whatever the
              mask, the window or the packing
    exact     adds attention over the keys each token may see: what the mathematics needs
    hardware  exact, and what is computed again where activations are recomputed

Recurrences mix in time that grows with the tokens alone; all conventions but `6nd` count them alike. A sequence may be
packed with several documents that do not see each other: `packed` holds their lengths.
"""

from collections import Counter
from typing import NamedTuple, get_args

import msgspec

from isoflop.architecture import Decoder, FeedForward, Mixer, MixtureOfExperts
from isoflop.cost.feed_forward import feed_forward_parameters
from isoflop.cost.mixer import mixer_mixing, mixer_parameters
from isoflop.cost.part import Convention, Mixing

CONVENTIONS: tuple[Convention, ...] = get_args(Convention)

# Backward computes a gradient for each of the two factors of every product of the forward.
BACKWARD_OVER_FORWARD = 2


class Flops(msgspec.Struct, frozen=True):
    """FLOPs a token, the mean over a sequence of `context` tokens; decode: the token that follows `context` others."""

    train_per_token: float
    prefill_per_token: float
    decode_per_token: float


class PartFlops(msgspec.Struct, frozen=True):
    """FLOPs a token of one part of the decoder, as in `Flops`; train is forward and backward together."""

    forward_per_token: float
    backward_per_token: float
    decode_per_token: float


class _Products(NamedTuple):
    """Forward FLOPs of a part: of a whole sequence, and of the token that follows it."""

    sequence: float
    decode: float


def flops(
    decoder: Decoder,
    context: int,
    convention: Convention,
    recompute: bool = False,
    packed: tuple[int, ...] | None = None,
    early_exit: bool = False,
) -> Flops:
    """FLOPs per token at a context length. `recompute` (hardware only): every layer's forward runs twice. With
    `packed`, decode is of the token that follows the last document. With `early_exit`, training reads the stream
    through the head once more, after some of the layers; `6nd` counts each matrix once, and so not that."""
    _check(context, convention, recompute, packed)
    parts = _products(decoder, context, convention, packed)
    forward, decode = (sum(part[i] for part in parts.values()) for i in range(2))
    train = _train(parts, recompute, early_exit and convention != "6nd")
    return Flops(train / context, forward / context, decode)


def flops_by_part(
    decoder: Decoder,
    context: int,
    convention: Convention,
    recompute: bool = False,
    packed: tuple[int, ...] | None = None,
) -> dict[str, PartFlops]:
    """The same FLOPs, by part: `mixer_matrices`, `mixing`, `feed_forward` (shared and chosen experts), `router`, `head`
    (the output table). Recomputation is part of the backward."""
    _check(context, convention, recompute, packed)
    parts = _products(decoder, context, convention, packed)
    return {
        name: PartFlops(
            forward_per_token=part.sequence / context,
            backward_per_token=(BACKWARD_OVER_FORWARD + (recompute and name != "head")) * part.sequence / context,
            decode_per_token=part.decode,
        )
        for name, part in parts.items()
    }


def train_flops(
    decoder: Decoder, context: int, tokens: int, convention: Convention = "exact", early_exit: bool = False
) -> float:
    """FLOPs to train on `tokens` tokens in sequences of `context`, with an `early_exit` as in `flops`."""
    _check(context, convention, False, None)
    parts = _products(decoder, context, convention, None)
    return _train(parts, False, early_exit and convention != "6nd") * tokens / context


def _train(parts: dict[str, _Products], recompute: bool, early_exit: bool) -> float:
    """Forward and backward FLOPs of a sequence."""
    forward, head = sum(part.sequence for part in parts.values()), parts["head"].sequence
    again = forward - head if recompute else 0
    return (1 + BACKWARD_OVER_FORWARD) * (forward + head * early_exit) + again


def _products(
    decoder: Decoder, context: int, convention: Convention, packed: tuple[int, ...] | None
) -> dict[str, _Products]:
    mixers = Counter(layer.mixer for layer in decoder.layers if layer.mixer is not None)
    feed_forwards = Counter(layer.feed_forward for layer in decoder.layers if layer.feed_forward is not None)
    d_model = decoder.d_model
    matrices = sum(n * mixer_parameters(mixer, decoder).matmul for mixer, n in mixers.items())
    router = sum(n * router_matmul(part, d_model) for part, n in feed_forwards.items())
    linear = sum(n * feed_forward_parameters(part, d_model).matmul for part, n in feed_forwards.items())
    documents = packed if packed is not None and convention != "palm" else (context,)
    mixing = [(_mixing(mixer, d_model, documents, convention), n) for mixer, n in mixers.items()]
    return {
        "mixer_matrices": _of_matrices(matrices, context),
        "mixing": _Products(sum(n * m.sequence for m, n in mixing), sum(n * m.decode for m, n in mixing)),
        "feed_forward": _of_matrices(linear - router, context),
        "router": _of_matrices(router, context),
        "head": _of_matrices(decoder.vocab_size * d_model, context),
    }


def _of_matrices(matmul: int, context: int) -> _Products:
    return _Products(2 * matmul * context, 2 * matmul)


def router_matmul(feed_forward: FeedForward, d_model: int) -> int:
    """Parameters of the matrix that scores the experts."""
    return feed_forward.n_experts * d_model if isinstance(feed_forward, MixtureOfExperts) else 0


def _mixing(mixer: Mixer, d_model: int, documents: tuple[int, ...], convention: Convention) -> Mixing:
    """Over documents that do not see each other; the decoded token follows the last."""
    each = {length: mixer_mixing(mixer, d_model, length, convention) for length in set(documents)}
    return Mixing(sum(each[length].sequence for length in documents), each[documents[-1]].decode)


def _check(context: int, convention: Convention, recompute: bool, packed: tuple[int, ...] | None) -> None:
    if context < 1:
        raise ValueError(f"context = {context} must be at least 1")
    if recompute and convention != "hardware":
        raise ValueError(f"recompute changes only the hardware convention, not {convention}")
    if packed is not None and (min(packed, default=0) < 1 or sum(packed) != context):
        raise ValueError(
            f"packed = {packed} must be lengths of at least 1 that add up to context = {context}, not {sum(packed)}"
        )
