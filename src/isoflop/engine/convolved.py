"""Paged inputs of Hyena's long convolutions, and its short convolution's windows in slots.

T packed token of the step, S token of one sequence so far, N convolution, M d_model, C channel of what is mixed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from isoflop.engine.pages import Lane, Lanes
from isoflop.engine.states import Strand, Strands
from isoflop.engine.store import PlainStore
from isoflop.model.hyena import HyenaState


@dataclass
class PagedInputs(HyenaState):
    """The state of one sequence, whose inputs lie in pages."""

    store: PlainStore = field(kw_only=True)
    to_T: Tensor = field(kw_only=True)
    at_S: Tensor = field(kw_only=True)

    def append(self, n: int, z_BMT: Tensor) -> Tensor:
        start, n_new = self.length, z_BMT.shape[-1]
        done = start + len(self.to_T) - len(self.at_S)  # tokens of this step before these
        self.store.rows_NKD[self.to_T[done : done + n_new], n] = z_BMT[0].t().to(self.store.rows_NKD.dtype)
        return self.store.rows_NKD[self.at_S[: start + n_new], n].t()[None].to(z_BMT.dtype)


class PagedHyena:
    """What a Hyena layer keeps of all sequences; `states` is the module's own, of as many sequences as there are slots,
    without room for inputs."""

    def __init__(self, lanes: Lanes, strands: Strands, inputs: PlainStore, states: HyenaState) -> None:
        self.lanes, self.strands, self.inputs, self.states = lanes, strands, inputs, states
        self._after: dict[int, list[Tensor]] = {}

    def mix(self, function: Callable[[Tensor, Any], Tensor], x_1TC: Tensor) -> Tensor:
        """function(x, state) of each sequence's tokens, [1, T, C]."""
        self._after.clear()
        strands = self.strands.singles + self.strands.others
        parts = [self._one(function, x_1TC, *pair) for pair in zip(strands, self.lanes.lanes, strict=True)]
        return torch.cat(parts, dim=1)

    def keep(self, slot: int, n_tokens: int) -> None:
        """Of drafted tokens of the last step only the first n_tokens count."""
        if slot in self._after:
            self.states.window[slot] = self._after[slot][n_tokens - 1]

    def copy(self, slot: int | None, to: int) -> None:
        """Copy a slot, or clear one."""
        self.states.window[to] = 0 if slot is None else self.states.window[slot]

    @property
    def nbytes(self) -> int:
        return int(self.states.window.nbytes)

    @property
    def stores(self) -> tuple[PlainStore, ...]:
        return (self.inputs,)

    def _one(self, function: Callable[[Tensor, Any], Tensor], x_1TC: Tensor, strand: Strand, lane: Lane) -> Tensor:
        window, s = self.states.window[strand.slot : strand.slot + 1], self.states
        to_T, x = self.lanes.at_T[lane.begin : lane.end], x_1TC[:, lane.begin : lane.end]
        state = PagedInputs(window, s.inputs, s.filters, lane.start, store=self.inputs, to_T=to_T, at_S=lane.at_S)
        if not strand.drafts:
            return function(x, state)
        n_sure, parts = x.shape[1] - strand.drafts, []
        after = [window[0]] * (n_sure - 1)
        for piece in (x[:, :n_sure], *x[:, n_sure:].split(1, dim=1)):
            parts.append(function(piece, state))
            after.append(window[0].clone())
        self._after[strand.slot] = after
        return torch.cat(parts, dim=1)
