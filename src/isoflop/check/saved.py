"""Counting what autograd keeps of a forward for its backward: the real modules on the meta device, every tensor saved,
each storage once. Parameters, buffers and the tokens themselves are there anyway and not counted."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from isoflop.architecture import Decoder
from isoflop.check.places import Part, Places
from isoflop.check.products import kinds_of, on_meta
from isoflop.model import DecoderModel
from isoflop.model.norm import LayerNorm, RmsNorm

PARTS = ("norms", "mixers", "feed_forwards", "head")


def count_saved(decoder: Decoder, batch: int, context: int) -> dict[str, int]:
    """Bytes saved by one forward and loss of B x T tokens, by the part that first saves them. Equal layers save the
    same: one of each kind runs."""
    kinds, times = kinds_of(decoder)
    model, places = on_meta(kinds), Places()
    tokens_BT = torch.empty(batch, context, dtype=torch.long, device="meta")
    held: dict[int, tuple[Part, torch.UntypedStorage]] = {}

    def keep(x: Tensor) -> Tensor:
        held.setdefault(x.untyped_storage()._cdata, (places.now(), x.untyped_storage()))
        return x

    with torch.device("meta"), places.watching(_parts(model)), saved_tensors_hooks(keep, lambda x: x):
        loss = model.loss(tokens_BT, tokens_BT).total
    for x in (tokens_BT, *model.parameters(), *model.buffers()):
        held.pop(x.untyped_storage()._cdata, None)
    counted = dict.fromkeys(PARTS, 0)
    for part, storage in held.values():
        if storage.device.type == "meta":  # numbers that scale a tensor lie on the CPU
            counted[part.name] += storage.nbytes() * (1 if part.layer is None else times[part.layer])
    del loss
    return counted


def _parts(model: DecoderModel) -> Iterator[tuple[nn.Module, Part]]:
    for i, layer in enumerate(model.layers):
        yield from ((child, Part(i, "norms")) for child in layer.children() if isinstance(child, RmsNorm | LayerNorm))
        if layer.mixer is not None:
            yield layer.mixer, Part(i, "mixers")
        if layer.feed_forward is not None:
            yield layer.feed_forward, Part(i, "feed_forwards")
