"""Where the tokens of one forward stand. T position, C rotated pair, H query head, M d_model."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from isoflop import architecture


class Place(NamedTuple):
    """What a mixer is told of its tokens' positions: that of the first, and the turns of its rope, if it has one."""

    start: int
    cos_TC: Tensor | None = None
    sin_TC: Tensor | None = None


def alibi_slopes(alibi: architecture.Alibi, n_heads: int) -> Tensor:
    """The penalty a position of distance, by head, [H] (see architecture.Alibi)."""
    power = 2 ** math.ceil(math.log2(n_heads))
    slopes = 2.0 ** (-alibi.max_bias * torch.arange(1, power + 1, dtype=torch.float64) / power)
    if power != n_heads:
        slopes = torch.cat((slopes[1::2], slopes[::2]))[:n_heads]
    return slopes.float()


def sinusoids(position: architecture.Sinusoidal, start: int, n_positions: int, d_model: int) -> Tensor:
    """Sines, then cosines, of each position, [T, M], float32."""
    frequencies = position.theta ** (-torch.arange(0, d_model, 2, dtype=torch.float64) / d_model)
    angles = torch.arange(start, start + n_positions, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)[:, :d_model].float()
