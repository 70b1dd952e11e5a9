"""The tensors behind a plan of memory, and one packed forward over what sequences bring to a step.

T packed token, R row whose logits are wanted, S token of one sequence within reach, V vocabulary.
"""

from collections.abc import Sequence as Many
from itertools import accumulate, chain
from typing import Any

import torch
from torch import Tensor

from isoflop import architecture
from isoflop.engine.convolved import PagedHyena
from isoflop.engine.holdings import Orders
from isoflop.engine.pages import Lane, Lanes, PagedKeyValues, PagedLatents
from isoflop.engine.plan import Plan
from isoflop.engine.runs import Runs
from isoflop.engine.scoring import score
from isoflop.engine.sequence import Sequence, Work
from isoflop.engine.states import Slots, Strand, Strands
from isoflop.engine.store import DTYPES, PlainStore, build_store
from isoflop.model import DecoderModel
from isoflop.model.kernels.layers import available as layers_available
from isoflop.model.kernels.paged import KINDS, available
from isoflop.model.packed import Packed

Paged = PagedKeyValues | PagedLatents | PagedHyena
Slotted = Slots | PagedHyena
Rows = tuple[int, int, Work]  # of what a sequence brings, the first packed row and the one after the last


class Memory:
    """All caches of a model, and forwards through them."""

    def __init__(self, model: DecoderModel, plan: Plan) -> None:
        self.model, self.plan = model, plan
        self.device = model.embedding.device
        in_place = self.device.type == "cpu" and plan.dtype in KINDS and available()
        self.lanes = [Lanes(in_place) for _ in plan.groups]
        self.strands = Strands()
        group_of = {layer: g for g, group in enumerate(plan.groups) for layer in group.layers}
        self.layers = [self._layer(i, group_of.get(i)) for i in range(len(model.layers))]
        self._paged = {i: x for i, x in enumerate(self.layers) if isinstance(x, Paged)}
        self._slotted = [x for x in self.layers if isinstance(x, Slotted)]
        self._runs: dict[DecoderModel, Runs] = {}
        self._between = torch.float32 if self.device.type == "cpu" and _widens(model) else None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        stores = [store for paged in self._paged.values() for store in paged.stores]
        return sum(store.nbytes for store in stores) + sum(slots.nbytes for slots in self._slotted)

    def obey(self, orders: Orders) -> None:
        """Copy and clear what was ordered."""
        size = self.plan.page_tokens
        for g, first, to in orders.pages:
            for i in self.plan.groups[g].layers:
                for store in self._paged[i].stores:
                    store.copy(first * size, to * size, size)
        for slot, new in orders.slots:
            for slots in self._slotted:
                slots.copy(slot, new)
        orders.pages.clear()
        orders.slots.clear()

    def keep(self, sequence: Sequence, n_tokens: int) -> None:
        """Of what the sequence brought to the last step, drafts among it, only the first n_tokens count."""
        if sequence.slot is not None:
            for slots in self._slotted:
                slots.keep(sequence.slot, n_tokens)

    def forward(self, works: Many[Work], model: DecoderModel | None = None) -> Tensor:
        """Logits [R, V], float32, of the wanted rows, in order; prompts that are to be scored are. Sequences with fewer
        tokens must come first. `model`: one that has the first layers of the model alone."""
        model = model or self.model
        if model not in self._runs:
            self._runs[model] = Runs(model, self.layers, self.lanes)
        rows = _rows(works)
        self._lay(rows)
        tokens = list(chain.from_iterable(work.tokens for work in works))
        positions_T = self._tensor(list(chain.from_iterable(work.positions for work in works)))
        packed = Packed(
            tokens_T=self._tensor(tokens),
            positions_T=positions_T,
            layers=self.layers,
            turns=self._turns(works, positions_T),
            runs=self._runs[model].begin(max(work.sequence.arrival for work in works), self._slots(works)),
            dtype=self._between,
        )
        x_TM = model.packed(packed)
        self._score(rows, x_TM, model)
        wanted = [row for _, end, work in rows for row in range(end - work.n_wanted, end)]
        return model.read(x_TM if len(wanted) == len(tokens) else x_TM.index_select(0, self._tensor(wanted)))

    def _score(self, rows: list[Rows], x_TM: Tensor, model: DecoderModel) -> None:
        for begin, _, work in rows:
            if work.sequence.scores is not None:
                score(work.sequence, x_TM[begin : begin + work.n], model.read)

    # ---- where things lie

    def _lay(self, rows: list[Rows]) -> None:
        size = self.plan.page_tokens
        self.strands.singles, self.strands.others = [], []
        lanes: list[list[Lane]] = [[] for _ in self.lanes]
        for begin, end, work in rows:
            s = work.sequence
            for g, group in enumerate(self.plan.groups):
                first = group.reach.first(s.n_computed)
                lanes[g].append(Lane(begin, end, s.n_computed, first, s.tables[g], size, self.device))
            if s.slot is not None:
                strand = Strand(begin, end, s.slot, len(work.drafts))
                (self.strands.singles if work.n_tokens == 1 else self.strands.others).append(strand)
        for shared, own in zip(self.lanes, lanes, strict=True):
            shared.fill(own)
        self.strands.at_N = self._tensor([strand.slot for strand in self.strands.singles])

    def _slots(self, works: Many[Work]) -> Tensor | None:
        """Of recurrent states, where each sequence brings one token."""
        return self.strands.at_N if all(work.n_tokens == 1 for work in works) else None

    def _turns(self, works: Many[Work], positions_T: Tensor) -> list[tuple[Tensor, Tensor]]:
        """cos and sin of each token, for each rope of the model."""
        turns = []
        for i, rope in enumerate(self.model.ropes):
            lengths = [(w.n_tokens, w.sequence.turns[i], w.sequence.n_computed + w.n_tokens) for w in works]
            turns.append(rope.of_tokens(positions_T, lengths))
        return turns

    def _tensor(self, numbers: list[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.device)

    # ---- what a layer keeps

    def _layer(self, i: int, g: int | None) -> Paged | Slotted | None:
        mixer, layers = self.model.decoder.layers[i].mixer, self.model.layers
        module: Any = layers[i].mixer
        match mixer:
            case None:
                return None
            case architecture.Attention() as m:
                assert g is not None
                keys, values = (
                    build_store(self._places(g), m.n_kv_heads, m.d_head, self.plan.dtype, self.device) for _ in "kv"
                )
                return PagedKeyValues(self.lanes[g], self.plan.page_tokens, keys, values)
            case architecture.LatentAttention() as m:
                assert g is not None
                latents = build_store(self._places(g), 1, m.kv_rank + m.d_rope, self.plan.dtype, self.device)
                return PagedLatents(self.lanes[g], self.plan.page_tokens, latents)
            case architecture.Hyena() as m:
                assert g is not None
                d_model, rest = self.model.decoder.d_model, DTYPES[self.plan.rest]
                inputs = PlainStore(self._places(g), m.order, d_model, rest, self.device)
                states = module.new_state(self.plan.n_slots, 0, rest, self.device)
                states.filters = module.made_filters(self.model.decoder.max_context)
                return PagedHyena(self.lanes[g], self.strands, inputs, states)
            case _:
                return Slots(self.strands, module.new_state(self.plan.n_slots, 0, DTYPES[self.plan.rest], self.device))

    def _places(self, g: int) -> int:
        return self.plan.n_pages[g] * self.plan.page_tokens


def _rows(works: Many[Work]) -> list[Rows]:
    ends = list(accumulate(work.n_tokens for work in works))
    return list(zip([0, *ends], ends, works, strict=False))


def _widens(model: DecoderModel) -> bool:
    """Whether rows between matrices of bf16 are fp32: our kernels round them as they meet one, which is the more exact
    and, as there are no others for the rest of a layer, the faster."""
    layers = model.decoder.layers
    plain = all(isinstance(x.mixer, architecture.Attention) for x in layers if x.mixer is not None)
    plain &= all(isinstance(x.feed_forward, architecture.Mlp) for x in layers if x.feed_forward is not None)
    return plain and model.dtype is torch.bfloat16 and layers_available()
