"""Counting the FLOPs of a decoder: its real modules, run on the meta device, where a trillion parameters take no memory
and no time. Equal layers do equal work, so one of each kind runs and counts as often as it occurs."""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from isoflop.architecture import Attention, Decoder, Layer
from isoflop.check.definitions import by_definition
from isoflop.check.ledger import Ledger
from isoflop.check.places import Part
from isoflop.model import DecoderModel
from isoflop.model.hyena import HyenaFilters

PARTS = ("mixer_matrices", "mixing", "feed_forward", "router", "head")


class Counted(NamedTuple):
    """FLOPs by part of one forward and of its backward, and the parameters of the matrices that a token met, its
    experts' in proportion."""

    forward: dict[str, int]
    backward: dict[str, int]
    matmul_parameters: int


def kinds_of(decoder: Decoder) -> tuple[Decoder, list[int]]:
    """A decoder with one layer of each kind, and how often each occurs."""
    counts = Counter(decoder.layers)
    return msgspec.structs.replace(decoder, layers=tuple(counts)), list(counts.values())


def seeing_everything(decoder: Decoder) -> Decoder:
    """The decoder without windows and chunks: what the palm convention counts."""

    def widened(layer: Layer) -> Layer:
        if not isinstance(layer.mixer, Attention):
            return layer
        return msgspec.structs.replace(layer, mixer=msgspec.structs.replace(layer.mixer, window=None, chunk=None))

    return msgspec.structs.replace(decoder, layers=tuple(widened(layer) for layer in decoder.layers))


def on_meta(decoder: Decoder) -> DecoderModel:
    """The module without memory."""
    with torch.device("meta"):
        return DecoderModel(decoder)


def count_sequence(decoder: Decoder, context: int, whole: bool = False, recompute: bool = False) -> Counted:
    """One sequence of `context` tokens, forward and backward. `recompute`: the backward runs every layer's forward
    again, as torch's checkpointing does."""
    kinds, times = kinds_of(seeing_everything(decoder) if whole else decoder)
    model = on_meta(kinds)
    ledger = Ledger(model, whole)
    if recompute:
        for layer in model.layers:
            _checkpointed(layer)
    with (
        torch.device("meta"),
        set_checkpoint_early_stop(False),  # the whole forward again, not only up to what was last saved
        by_definition(ledger),
        ledger.places.watching(_parts(model)),
        ledger,
    ):
        logits_BTV = model(_tokens(context))
        ledger.in_backward = True
        logits_BTV.sum().backward()
    return _summed(ledger, times, context)


def count_decoded_token(decoder: Decoder, context: int, whole: bool = False) -> Counted:
    """The token that follows `context` others, with what the layers kept of them."""
    kinds, times = kinds_of(seeing_everything(decoder) if whole else decoder)
    model = on_meta(kinds)
    ledger = Ledger(model, whole)
    with torch.device("meta"), torch.no_grad():
        state = model.new_state(1, context + 1)
        model(_tokens(context), state)
        with by_definition(ledger), ledger.places.watching(_parts(model)), ledger:
            model(_tokens(1), state)
    return _summed(ledger, times, 1)


def _tokens(context: int) -> Tensor:
    return torch.empty(1, context, dtype=torch.long, device="meta")


def _checkpointed(layer: nn.Module) -> None:
    forward = layer.forward
    layer.forward = lambda *args: checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False)


def _parts(model: DecoderModel) -> Iterator[tuple[nn.Module, Part]]:
    """Which module does which part; of nested ones the inner counts."""
    for i, layer in enumerate(model.layers):
        if layer.mixer is not None:
            yield layer.mixer, Part(i, "mixer_matrices")
            yield from ((m, Part(i, "mixing")) for m in layer.mixer.modules() if isinstance(m, HyenaFilters))
        if layer.feed_forward is not None:
            yield layer.feed_forward, Part(i, "feed_forward")
            if hasattr(layer.feed_forward, "router"):
                yield layer.feed_forward.router, Part(i, "router")


def _summed(ledger: Ledger, times: list[int], n_tokens: int) -> Counted:
    def of(book: Counter[Part], name: str) -> int:
        return sum(n * (1 if at.layer is None else times[at.layer]) for at, n in book.items() if at.name == name)

    met = 0
    for at, numel, groups, rows in ledger.weights.values():
        if at.name != "mixing":
            share, rest = divmod(numel * rows, n_tokens * groups) if groups > 1 else (numel, 0)
            assert rest == 0, f"{rows} rows of {n_tokens} tokens among {groups} experts"
            met += share * (1 if at.layer is None else times[at.layer])
    return Counted(
        forward={part: of(ledger.forward, part) for part in PARTS},
        backward={part: of(ledger.backward, part) for part in PARTS},
        matmul_parameters=met,
    )
