"""Counting numbers and bytes that a decoder's modules hold, on the meta device."""

import msgspec
import torch

from isoflop.architecture import Decoder, Layer, MixtureOfExperts
from isoflop.check.products import kinds_of, on_meta
from isoflop.model import DecoderModel
from isoflop.model.decoder import DecodeState


def count_parameters(decoder: Decoder) -> dict[str, int]:
    """Numbers in the tensors of the whole module. What one token uses is counted in a module that has no experts but as
    many as a token chooses, with a router that still scores all."""
    model = on_meta(decoder)
    tables = {name: p.numel() for name, p in model.named_parameters() if name.split(".")[0] in _TABLES}
    total, active = _numel(model), _numel(on_meta(_with_chosen_experts(decoder))) + _routers_cut(decoder)
    unread = 0 if decoder.tie_embeddings else tables["embedding"]
    return {
        "total": total,
        "active": active,
        "active_no_input_embedding": active - unread - tables.get("positions", 0),
        "non_embedding": total - sum(tables.values()),
    }


def count_state_bytes(decoder: Decoder, capacity: int, dtype: torch.dtype) -> int:
    """Bytes of the tensors that decoding one sequence of `capacity` tokens allocates."""
    kinds, times = kinds_of(decoder)
    state = on_meta(kinds).new_state(1, capacity, dtype)
    return sum(DecodeState([layer]).nbytes * n for layer, n in zip(state.layers, times, strict=True))


_TABLES = ("embedding", "positions", "head", "head_bias")


def _numel(model: DecoderModel) -> int:
    return sum(p.numel() for p in model.parameters())


def _with_chosen_experts(decoder: Decoder) -> Decoder:
    def cut(layer: Layer) -> Layer:
        f = layer.feed_forward
        if not isinstance(f, MixtureOfExperts):
            return layer
        few = msgspec.structs.replace(f, n_experts=f.top_k, n_groups=1, top_groups=1, group_score="best")
        return msgspec.structs.replace(layer, feed_forward=few)

    return msgspec.structs.replace(decoder, layers=tuple(cut(layer) for layer in decoder.layers))


def _routers_cut(decoder: Decoder) -> int:
    """Numbers of the routers that `_with_chosen_experts` leaves out: a row, and a bias if there are any, an expert."""
    sparse = [layer.feed_forward for layer in decoder.layers if isinstance(layer.feed_forward, MixtureOfExperts)]
    return sum((f.n_experts - f.top_k) * (decoder.d_model + f.router_bias) for f in sparse)
