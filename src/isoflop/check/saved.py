"""Counting what autograd keeps of a forward for its backward: the real modules on the meta device, every tensor saved,
each storage once. Parameters, buffers and the tokens themselves are there anyway and not counted."""

import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from isoflop.architecture import Decoder
from isoflop.check.places import HEAD, Part, Places
from isoflop.check.products import kinds_of, on_meta
from isoflop.model import DecoderModel
from isoflop.model.norm import LayerNorm, RmsNorm

PARTS = ("norms", "mixers", "feed_forwards", "head")


class _Saved:
    """One tensor that autograd has saved; it lives as long as the step that wants it."""

    def __init__(self, x: Tensor, part: Part) -> None:
        self.x, self.part = x, part


def count_saved(decoder: Decoder, batch: int, context: int) -> dict[str, int]:
    """Bytes saved by one forward and loss of B x T tokens, by the part that first saves them. Equal layers save the
    same: one of each kind runs."""
    kinds, times = kinds_of(decoder)
    model, places = on_meta(kinds), Places()
    tokens_BT = torch.empty(batch, context, dtype=torch.long, device="meta")
    saved: list[weakref.ref[_Saved]] = []
    tables: list[Tensor] = []  # of ropes that are made anew for this length: the layers share them
    for rope in model.ropes:
        rope.register_forward_hook(lambda _, args, out: tables.extend(out))

    def save(x: Tensor) -> _Saved:
        shared = any(x.untyped_storage()._cdata == table.untyped_storage()._cdata for table in tables)
        one = _Saved(x.detach(), HEAD if shared else places.now())  # with its history, it would keep itself alive
        saved.append(weakref.ref(one))
        return one

    with torch.device("meta"), places.watching(_parts(model)), saved_tensors_hooks(save, lambda one: one.x):
        losses = model.loss(tokens_BT, tokens_BT)
    alive = [one for one in (reference() for reference in saved) if one is not None]
    there_anyway = {x.untyped_storage()._cdata for x in (tokens_BT, *model.parameters(), *model.buffers())}
    counted, seen = dict.fromkeys(PARTS, 0), set(there_anyway)
    for one in alive:
        storage = one.x.untyped_storage()
        if storage._cdata not in seen and one.x.is_meta:  # numbers that scale a tensor lie on the CPU
            seen.add(storage._cdata)
            counted[one.part.name] += storage.nbytes() * (1 if one.part.layer is None else times[one.part.layer])
    del losses
    return counted


def _parts(model: DecoderModel) -> Iterator[tuple[nn.Module, Part]]:
    for i, layer in enumerate(model.layers):
        yield from ((child, Part(i, "norms")) for child in layer.children() if isinstance(child, RmsNorm | LayerNorm))
        if layer.mixer is not None:
            yield layer.mixer, Part(i, "mixers")
        if layer.feed_forward is not None:
            yield layer.feed_forward, Part(i, "feed_forwards")
