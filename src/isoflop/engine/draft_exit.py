"""Drafts of the model's own first layers, read by its own last norm and head (early exit: Elhoushi et al. 2024,
LayerSkip, arXiv 2404.16710; Zhang et al. 2024, arXiv 2309.08168).

What those layers keep of a token is what the model itself keeps of it. Where that lies in pages, drafting goes through
the engine's own caches: nothing is kept twice, and there is no prompt to catch up with. A recurrent state cannot be
moved on and stay; where there is any among those layers they are a small model like any other, with its own caches.
"""

import copy
from collections.abc import Sequence as Many
from dataclasses import replace

import msgspec
from torch import Tensor, nn

from isoflop.architecture import Attention, LatentAttention
from isoflop.engine.draft_model import draft_model
from isoflop.engine.engine import Engine
from isoflop.engine.rolling import Roll, relative_cost, roll
from isoflop.engine.sequence import Sequence, Work
from isoflop.engine.speculate import Drafter, Proposal
from isoflop.model import DecoderModel


def first_layers(model: DecoderModel, n: int) -> DecoderModel:
    """The model without the layers after the first n; modules are shared. Raises ValueError."""
    n_layers = model.decoder.n_layers
    if not 1 <= n < n_layers:
        raise ValueError(f"early exit after {n} of {n_layers} layers: must be from 1 to {n_layers - 1}")
    view = copy.copy(model)
    view._modules = model._modules | {"layers": nn.ModuleList(list(model.layers)[:n])}
    view.rope_of_layer = model.rope_of_layer[:n]
    view.decoder = msgspec.structs.replace(model.decoder, layers=model.decoder.layers[:n])
    return view


def early_exit(engine: Engine, n: int) -> Drafter:
    """Drafts of the first n layers of an engine's model. Raises ValueError."""
    view = first_layers(engine.model, n)
    if all(isinstance(layer.mixer, Attention | LatentAttention | None) for layer in view.decoder.layers):
        return EarlyExit(engine, view)
    return draft_model(engine, view)


class EarlyExit:
    """Through the engine's own pages: the verifying pass writes there again what drafting wrote."""

    def __init__(self, engine: Engine, view: DecoderModel) -> None:
        self.engine, self.view = engine, view
        self.cost = relative_cost(view, engine.model.decoder)

    def propose(self, asked: Many[tuple[Sequence, int]]) -> list[Proposal]:
        """See Drafter. One for whom there is no room is sent back to the line, and guessed for when it returns."""
        scheduler = self.engine.scheduler
        rolls: dict[str, Roll] = {}
        for sequence, most in asked:
            k = min(most, scheduler.chunk)
            if sequence in scheduler.running and scheduler.make_room(sequence, k):
                stand = replace(sequence, tokens=list(sequence.tokens))
                rolls[sequence.id] = Roll(sequence, stand, k)
        if rolls:
            self.engine.memory.obey(self.engine.holdings.orders)
            roll(self._forward, list(rolls.values()), lambda _: None)
        return [rolls[sequence.id].proposal if sequence.id in rolls else Proposal() for sequence, _ in asked]

    def forget(self, sequence: Sequence) -> None:
        """See Drafter."""

    def _forward(self, works: list[Work]) -> Tensor:
        return self.engine.memory.forward(works, self.view)
