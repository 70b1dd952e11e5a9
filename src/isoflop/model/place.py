"""Where the tokens of one forward stand. T position, C rotated pair, H query head, M d_model."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from isoflop import architecture


class Place(NamedTuple):
    """What a mixer is told of its tokens' positions: that of the first, the turns of its rope, if it has one, and, of
    packed tokens of several sequences, every position."""

    start: int
    cos_TC: Tensor | None = None
    sin_TC: Tensor | None = None
    positions_T: Tensor | None = None

    def positions(self, n_tokens: int, device: torch.device) -> Tensor:
        """Where each of the tokens stands in its sequence, [T]."""
        if self.positions_T is not None:
            return self.positions_T
        return torch.arange(self.start, self.start + n_tokens, device=device)


def alibi_slopes(alibi: architecture.Alibi, n_heads: int) -> Tensor:
    """The penalty a position of distance, by head, [H] (see architecture.Alibi)."""
    power = 2 ** math.ceil(math.log2(n_heads))
    slopes = 2.0 ** (-alibi.max_bias * torch.arange(1, power + 1, dtype=torch.float64) / power)
    if power != n_heads:
        slopes = torch.cat((slopes[1::2], slopes[::2]))[:n_heads]
    return slopes.float()


def sinusoids(position: architecture.Sinusoidal, positions_T: Tensor, d_model: int) -> Tensor:
    """Sines, then cosines, of each position, [T, M], float32."""
    pairs = torch.arange(0, d_model, 2, dtype=torch.float64, device=positions_T.device)
    angles = positions_T.double()[:, None] * position.theta ** (-pairs / d_model)
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :d_model].float()
