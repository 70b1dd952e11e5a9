"""Recurrent states of one layer in slots. N slot, T packed token of the step, C channel of what is mixed.

Sequences that bring one token are mixed as one batch; one that brings several on its own; of one that brings drafts,
token after token, the states after each are remembered until it is known how many were accepted.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class Strand:
    """The new tokens of one sequence: rows begin .. end - 1, the slot of its states, how many are drafts."""

    begin: int
    end: int
    slot: int
    drafts: int


@dataclass
class Strands:
    """Of a step: sequences that bring one token, whose rows come first, and the others. `at_N`: the former's slots."""

    singles: list[Strand] = field(default_factory=list)
    others: list[Strand] = field(default_factory=list)
    at_N: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))

    @property
    def run(self) -> slice | None:
        """The singles' slots, where they follow each other."""
        slots = [strand.slot for strand in self.singles]
        return slice(slots[0], slots[-1] + 1) if slots == list(range(slots[0], slots[0] + len(slots))) else None


class Slots:
    """States of all sequences: a mixer's own state (Mamba2State, ..) of as many sequences as there are slots."""

    def __init__(self, strands: Strands, states: Any) -> None:
        self.strands, self.states = strands, states
        self._names = [f.name for f in fields(states) if isinstance(getattr(states, f.name), Tensor)]
        self._after: dict[int, list[Any]] = {}

    def mix(self, function: Callable[[Tensor, Any], Tensor], x_1TC: Tensor) -> Tensor:
        """function(x, state) of each sequence's tokens, [1, T, C]."""
        parts, n = [], len(self.strands.singles)
        self._after.clear()
        if n:
            parts.append(self._singles(function, x_1TC[0, :n, None])[None, :, 0])
        for strand in self.strands.others:
            x = x_1TC[:, strand.begin : strand.end]
            parts.append(self._drafted(function, x, strand) if strand.drafts else function(x, self._view(strand.slot)))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def keep(self, slot: int, n_tokens: int) -> None:
        """Of drafted tokens of the last step only the first n_tokens count: the states are those after them."""
        if slot in self._after:
            self._write(slice(slot, slot + 1), self._after[slot][n_tokens - 1])

    def copy(self, slot: int | None, to: int) -> None:
        """Copy a slot, or clear one."""
        for tensor in self.tensors:
            if slot is None:
                tensor[to].zero_()
            else:
                tensor[to] = tensor[slot]

    @property
    def tensors(self) -> list[Tensor]:
        return [getattr(self.states, name) for name in self._names]

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors)

    def _singles(self, function: Callable[[Tensor, Any], Tensor], x_N1C: Tensor) -> Tensor:
        run = self.strands.run
        if run is not None:
            return function(x_N1C, self._at(run))
        state = self._at(self.strands.at_N)
        y_N1C = function(x_N1C, state)
        self._write(self.strands.at_N, state)
        return y_N1C

    def _drafted(self, function: Callable[[Tensor, Any], Tensor], x_1TC: Tensor, strand: Strand) -> Tensor:
        """The tokens before the drafts at once, then the drafts one by one."""
        state, n_sure = self._view(strand.slot), x_1TC.shape[1] - strand.drafts
        parts, after = [], [None] * (n_sure - 1)
        for x in (x_1TC[:, :n_sure], *x_1TC[:, n_sure:].split(1, dim=1)):
            parts.append(function(x, state))
            after.append(self._clone(state))
        self._after[strand.slot] = after
        return torch.cat(parts, dim=1)

    def _view(self, slot: int) -> Any:
        return self._at(slice(slot, slot + 1))

    def _at(self, where: Any) -> Any:
        return replace(self.states, **{name: getattr(self.states, name)[where] for name in self._names})

    def _clone(self, state: Any) -> Any:
        return replace(state, **{name: getattr(state, name).clone() for name in self._names})

    def _write(self, where: Any, state: Any) -> None:
        for name in self._names:
            getattr(self.states, name)[where] = getattr(state, name)
