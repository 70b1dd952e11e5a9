"""Drafts of a small model with caches of its own, which follow the sequences of the large one.

What the caches know is compared with what was said before each round: guesses that were accepted stay, the others are
rolled back. Pages are rolled back by number; recurrent states by place, as there is a slot for those after each guess.
The caches are never the reason for saying anything else: where they are full, those that were used least lately are
dropped and made anew when they are needed.
"""

from collections import OrderedDict
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import msgspec
import torch

from isoflop.architecture import Decoder
from isoflop.cost.cache import cache
from isoflop.engine.engine import Engine, Options
from isoflop.engine.holdings import Holdings
from isoflop.engine.memory import Memory
from isoflop.engine.plan import plan_memory
from isoflop.engine.rolling import Roll, relative_cost, roll
from isoflop.engine.sequence import Sequence, Work
from isoflop.engine.speculate import Proposal
from isoflop.engine.store import NAMES
from isoflop.model import DecoderModel

MARGIN, LEAST = 2, 1 << 16  # times the bytes that are needed, as the engine's are for some lengths and these for others


@dataclass(eq=False, slots=True)
class Mirror:
    """A sequence as the draft model has it: `own` counts what is settled, `ahead` are the tokens taken in since, the
    first n_said of which were said and the others guesses. `slots`: of the states after what was said, after the first
    guess, and so on."""

    own: Sequence
    slots: list[int]
    ahead: list[int] = field(default_factory=list)
    n_said: int = 0


def draft_model(engine: Engine, model: DecoderModel) -> "ModelDrafter":
    """Guesses of `model` for an engine's model, with caches beside the engine's for about as many sequences. Raises
    ValueError where the vocabularies differ."""
    o, target = engine.options, engine.model.decoder
    n_tokens = min(o.typical or 2048, target.max_context, model.decoder.max_context)
    own, other = (cache(decoder, n_tokens, engine.plan.dtype) for decoder in (model.decoder, target))
    needed = own.bytes_at_context + (o.drafts - 1) * own.state_bytes_per_sequence
    memory = MARGIN * engine.plan.nbytes * needed // other.bytes_at_context + LEAST
    return ModelDrafter(model, target, msgspec.structs.replace(o, memory=memory))


class ModelDrafter:
    """Guesses of `model` for sequences of a `target`; `options` are of its own caches. Raises ValueError where the
    vocabularies differ, or the memory is too small for anything."""

    def __init__(self, model: DecoderModel, target: Decoder, options: Options) -> None:
        if model.decoder.vocab_size != target.vocab_size:
            raise ValueError(
                f"the draft model has {model.decoder.vocab_size} tokens and the model {target.vocab_size}; "
                "they must have the same vocabulary"
            )
        self.model, self.cost, o = model.eval(), relative_cost(model, target), options
        own, n_slots, new = NAMES[model.dtype], o.most_running * o.drafts, o.tokens_per_step
        self.plan = plan_memory(model.decoder, o.memory, o.page_tokens, n_slots, new, o.dtype, own, o.typical)
        self.holdings = Holdings(self.plan, reuse=not self.plan.slot_bytes)
        self.chunk = self.plan.chunk(new)
        self.most = min(o.drafts, self.chunk, self.plan.n_slots if self.plan.slot_bytes else o.drafts)
        with torch.inference_mode():
            self.memory = Memory(model, self.plan)
        self._mirrors: OrderedDict[str, Mirror] = OrderedDict()

    def propose(self, asked: Many[tuple[Sequence, int]]) -> list[Proposal]:
        """See Drafter."""
        found: dict[str, Proposal] = {}
        left = [(s, min(k, self.most)) for s, k in asked if self._fits(s, min(k, self.most))]
        while left:
            rolls = self._together(left)
            left = left[len(rolls) :]
            self._roll(rolls)
            found |= {r.sequence.id: r.proposal for r in rolls}
        return [found.get(sequence.id, Proposal()) for sequence, _ in asked]

    def forget(self, sequence: Sequence) -> None:
        """See Drafter."""
        mirror = self._mirrors.pop(sequence.id, None)
        if mirror is not None:
            self._leave(mirror)

    # ---- who drafts together

    def _fits(self, sequence: Sequence, k: int) -> bool:
        """Whether it would, alone."""
        n, size = len(sequence.tokens) + k, self.plan.page_tokens
        pages = zip(self.plan.groups, self.plan.n_pages, strict=True)
        return n <= self.model.decoder.max_context and all(g.pages(n, self.chunk, size) <= most for g, most in pages)

    def _together(self, left: Many[tuple[Sequence, int]]) -> list[Roll]:
        """As many of the first as have room at once, at least one, brought up to what was said."""
        rolls: list[Roll] = []
        for sequence, k in left:
            kept = {r.sequence.id for r in rolls}
            mirror = self._entered(sequence, kept)
            if mirror is None or not self._caught_up(mirror, k, kept | {sequence.id}):
                break
            rolls.append(Roll(sequence, mirror.own, k))
        assert rolls, "it fits alone"
        return rolls

    def _entered(self, sequence: Sequence, kept: set[str]) -> Mirror | None:
        mirror = self._mirrors.get(sequence.id)
        if mirror is not None and self._synchronised(mirror, sequence.tokens):
            self._mirrors.move_to_end(sequence.id)
            return mirror
        self.forget(sequence)
        n_slots = self.most if self.plan.slot_bytes else 0
        while self.holdings.slots.n_available < n_slots:
            if not self._drop(kept):
                return None
        limit = min(sequence.limit, self.model.decoder.max_context)
        turns = tuple(rope.limited(limit) for rope in self.model.ropes)
        own = Sequence(sequence.request, 0, sequence.row, list(sequence.tokens), limit, turns)
        self.holdings.enter(own, self.holdings.longest_prefix(own))
        slots = [] if own.slot is None else [own.slot, *(self.holdings.slots.take() for _ in range(n_slots - 1))]
        mirror = self._mirrors[sequence.id] = Mirror(own, slots)
        return mirror

    def _synchronised(self, mirror: Mirror, tokens: list[int]) -> bool:
        """Keep of what was taken in what was said then or since, but for the last token, whose logits are wanted. False
        where states would have to stand before something that was said already."""
        own, n = mirror.own, mirror.own.n_computed
        new = tokens[n:]
        pairs = zip(mirror.ahead, new[:-1], strict=False)
        kept = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mirror.ahead), len(new) - 1))
        if mirror.slots:
            if kept < mirror.n_said:
                return False
            i = kept - mirror.n_said
            mirror.slots[0], mirror.slots[i] = mirror.slots[i], mirror.slots[0]
            own.slot = mirror.slots[0]
        own.tokens[n:] = new
        mirror.ahead, mirror.n_said = [], 0
        self.holdings.settle(own, n + kept)
        return True

    def _caught_up(self, mirror: Mirror, k: int, kept: set[str]) -> bool:
        """Take in all but a last chunk, and have room for that and for the guesses; False where there is none."""
        own, most = mirror.own, self.chunk - k + 1
        while own.n_pending > most:
            if not self._room(own, most, kept):
                return False
            self.memory.obey(self.holdings.orders)
            self.memory.forward([Work(own, most, wanted=False)])
            self.holdings.settle(own, own.n_computed + most)
        return self._room(own, own.n_pending + k - 1, kept)

    def _room(self, own: Sequence, n_new: int, kept: set[str]) -> bool:
        while not self.holdings.reserve(own, n_new):
            if not self._drop(kept):
                return False
        return True

    def _drop(self, kept: set[str]) -> bool:
        """Drop the one that was used least lately; False where there is none but those to be kept."""
        id = next((id for id in self._mirrors if id not in kept), None)
        if id is None:
            return False
        self._leave(self._mirrors.pop(id))
        return True

    def _leave(self, mirror: Mirror) -> None:
        for slot in mirror.slots[1:]:
            self.holdings.slots.give(slot)
        self.holdings.leave(mirror.own)

    # ---- drafting

    def _roll(self, rolls: list[Roll]) -> None:
        settled = [(r.stand.n_computed, r.stand.n_pending) for r in rolls]
        roll(self._forward, rolls, self._step)
        for r, (n_settled, n_said) in zip(rolls, settled, strict=True):
            mirror = self._mirrors[r.sequence.id]
            mirror.ahead, mirror.n_said = r.stand.tokens[n_settled:], n_said
            r.stand.n_computed, r.stand.slot = n_settled, next(iter(mirror.slots), None)

    def _forward(self, works: list[Work]) -> torch.Tensor:
        self.memory.obey(self.holdings.orders)
        return self.memory.forward(works)

    def _step(self, r: Roll) -> None:
        """The states after a further guess have their own slot."""
        slots = self._mirrors[r.sequence.id].slots
        if slots:
            i = len(r.tokens)
            self.holdings.orders.slots.append((slots[i - 1], slots[i]))
            r.stand.slot = slots[i]
