"""One forward over the new tokens of several sequences, packed in one row of a batch of one.

T packed token, C rotated pair.

Projections, norms and feed-forwards see rows only. A mixer that looks at other tokens asks what it is given as its
state: the state of one batch of equally long sequences (`Whole`, here: KeyValues, Mamba2State, ..) or an engine's view
of many sequences of different lengths. Both have the methods their mixer calls: `attend` for attention, plain and
latent, `mix` for whatever runs along a sequence.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

import torch
from torch import Tensor


class Runs(Protocol):
    """Layers that can be gone through in one call."""

    def forward(self, i: int, x_1TM: Tensor, turns: Sequence[tuple[Tensor, Tensor]]) -> int:
        """Take x through as many layers from the i-th on as one call can, in place; returns the first that is left."""
        ...


@dataclass
class Packed:
    """What a decoder is told of packed tokens: themselves, where each stands in its own sequence, for each of the
    decoder's ropes the turns of each token, [T, C], each layer's state, which layers need no call of their own, and the
    type of what flows between layers (None: the model's)."""

    tokens_T: Tensor
    positions_T: Tensor
    layers: Sequence[Any]
    turns: Sequence[tuple[Tensor, Tensor]] = field(default_factory=tuple)
    runs: Runs | None = None
    dtype: torch.dtype | None = None


class Whole:
    """The state of a batch of sequences that all bring the same number of tokens."""

    def mix(self, function: Callable[[Tensor, Self], Tensor], x_BTC: Tensor) -> Tensor:
        """function(x, state), as an engine's view would call it for each sequence."""
        return function(x_BTC, self)
