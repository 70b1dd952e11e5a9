"""Rotary positions. T position, D d_head, C rotated pair."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from isoflop import architecture
from isoflop.architecture import Dynamic, LinearScaling, Llama3Scaling, LongRope, NtkAware, Yarn

# Tables for contexts up to this are made at once, for longer ones when they are needed.
EAGER_POSITIONS = 8192
# Tables of different lengths that are kept, of scalings that follow the length: those of sequences decoded together.
MADE_TABLES = 16


class Turns(NamedTuple):
    """How queries and keys turn: cos and sin of each token, [T, C], float32, and the layout of the pairs."""

    cos_TC: Tensor
    sin_TC: Tensor
    layout: str


class RopeTables(nn.Module):
    """cos and sin of every position for one rope and one number of rotated dimensions, shared by all layers."""

    cos: Tensor
    sin: Tensor

    def __init__(self, rope: architecture.Rope, d_rotated: int, max_context: int) -> None:
        super().__init__()
        self.rope, self.d_rotated = rope, d_rotated
        n_positions = min(max_context, EAGER_POSITIONS)
        if isinstance(rope.scaling, Dynamic | LongRope):  # beyond, the tables are other ones
            n_positions = min(n_positions, rope.scaling.original_max_context)
        cos, sin = rope_tables(rope, d_rotated, n_positions)
        self._made: dict[int, tuple[Tensor, Tensor]] = {}
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, start: int, n_positions: int) -> tuple[Tensor, Tensor]:
        """cos and sin, each [n_positions, C], of the positions from `start` on."""
        end = start + n_positions
        if self.limited(end) is not None:
            cos, sin = rope_tables(self.rope, self.d_rotated, end)
            return cos[start:].to(self.cos.device), sin[start:].to(self.cos.device)
        self._grow(end)
        return self.cos[start:end], self.sin[start:end]

    def of_tokens(self, positions_T: Tensor, lengths: Sequence[tuple[int, int | None, int]]) -> tuple[Tensor, Tensor]:
        """cos and sin, each [T, C], of packed tokens of several sequences: for each sequence in turn, how many tokens
        it brings, `limited` of its greatest length, and one more than the last of its positions."""
        if all(limit is None for _, limit, _ in lengths):
            self._grow(max(end for _, _, end in lengths))
            return self.cos.index_select(0, positions_T), self.sin.index_select(0, positions_T)
        parts, begin = [], 0
        for n, limit, end in lengths:
            self._grow(end if limit is None else 0)
            tables = (self.cos, self.sin) if limit is None else self._of_length(limit)
            parts.append([table.index_select(0, positions_T[begin : begin + n]) for table in tables])
            begin += n
        return torch.cat([cos for cos, _ in parts]), torch.cat([sin for _, sin in parts])

    def limited(self, length: int) -> int | None:
        """Where a sequence of this length turns otherwise than a shorter one: the length for which tables do."""
        scaling = self.rope.scaling
        if not isinstance(scaling, Dynamic | LongRope) or length <= scaling.original_max_context:
            return None
        return length if isinstance(scaling, Dynamic) else 2 ** math.ceil(math.log2(length))

    def _of_length(self, length: int) -> tuple[Tensor, Tensor]:
        """Tables of a sequence whose turns depend on its length."""
        if length not in self._made:
            if len(self._made) == MADE_TABLES:
                del self._made[next(iter(self._made))]
            cos, sin = rope_tables(self.rope, self.d_rotated, length)
            self._made[length] = cos.to(self.cos.device), sin.to(self.cos.device)
        return self._made[length]

    def _grow(self, end: int) -> None:
        if end > len(self.cos):
            with torch.inference_mode(False):  # they outlive whoever asks, and may be trained with
                cos, sin = rope_tables(self.rope, self.d_rotated, 2 ** math.ceil(math.log2(end)))
                self.cos, self.sin = cos.to(self.cos.device), sin.to(self.cos.device)


def rope_tables(rope: architecture.Rope, d_rotated: int, n_positions: int) -> tuple[Tensor, Tensor]:
    """cos and sin, each [n_positions, d_rotated / 2], float32, for `rotate`, in a sequence of n_positions tokens."""
    cos, sin = torch.empty(2, n_positions, (d_rotated + 1) // 2)
    if cos.is_meta:  # where a checkpoint is looked at first; arithmetic there makes torch import sympy: a second
        return cos, sin
    angles = torch.arange(n_positions, dtype=torch.float64)[:, None] * frequencies(rope, d_rotated, n_positions)
    factor = rope.scaling.attention_factor if isinstance(rope.scaling, Yarn | LongRope) else 1.0
    return (angles.cos() * factor).float(), (angles.sin() * factor).float()


def frequencies(rope: architecture.Rope, d_rotated: int, n_positions: int) -> Tensor:
    """Radians a position of each pair, [C], float64, in a sequence of n_positions tokens."""
    plain_C = _plain(rope.theta, d_rotated)
    match rope.scaling:
        case None:
            return plain_C
        case LinearScaling(factor=factor):
            return plain_C / factor
        case NtkAware(factor=factor):
            return _plain(rope.theta * _ntk(factor, d_rotated), d_rotated)
        case Dynamic(factor=factor, original_max_context=original):
            longer = max(n_positions, original)
            return _plain(rope.theta * _ntk(factor * longer / original - (factor - 1), d_rotated), d_rotated)
        case Yarn() as yarn:
            return _yarn(plain_C, rope.theta, yarn)
        case Llama3Scaling() as llama3:
            return _llama3(plain_C, llama3)
        case LongRope() as longrope:
            fits = n_positions <= longrope.original_max_context
            factors = longrope.short_factors if fits else longrope.long_factors
            return plain_C / torch.tensor(factors, dtype=torch.float64)


def rotate(x_BTHD: Tensor, cos_TC: Tensor, sin_TC: Tensor, layout: str = "half") -> Tensor:
    """Turn the first 2 C dimensions of every head by their position's angles; the others pass.

    The members of a pair are a dimension of their own, swapped by a flip: one fused pass where a concatenation of
    halves would be several."""
    d_rotated = 2 * cos_TC.shape[-1]
    if d_rotated < x_BTHD.shape[-1]:
        turned = rotate(x_BTHD[..., :d_rotated], cos_TC, sin_TC, layout)
        return torch.cat((turned, x_BTHD[..., d_rotated:]), dim=-1)
    pair = -2 if layout == "half" else -1
    pairs = x_BTHD.unflatten(-1, (2, -1) if layout == "half" else (-1, 2))
    cos = cos_TC[:, None].to(x_BTHD.dtype).unsqueeze(pair)
    sin = torch.stack((-sin_TC, sin_TC), dim=pair)[:, None].to(x_BTHD.dtype)
    return (pairs * cos + pairs.flip(pair) * sin).flatten(-2)


def _plain(theta: float, d_rotated: int) -> Tensor:
    return theta ** (-torch.arange(0, d_rotated, 2, dtype=torch.float64) / d_rotated)


def _ntk(factor: float, d_rotated: int) -> float:
    """What theta is multiplied with so that the slowest of the pairs slows by `factor`; a single pair does not turn
    any faster for a smaller theta."""
    return float(factor ** (d_rotated / (d_rotated - 2))) if d_rotated > 2 else 1.0


def _yarn(plain_C: Tensor, theta: float, yarn: Yarn) -> Tensor:
    """arXiv 2309.00071, section 3.2: which pairs keep their frequency is told by their turns in the old context."""
    d_rotated = 2 * len(plain_C)

    def pair_of(turns: float) -> float:
        return d_rotated * math.log(yarn.original_max_context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair_of(yarn.beta_fast), pair_of(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, d_rotated - 1)
    width = high - low if high != low else 0.001
    slowed_C = ((torch.arange(len(plain_C), dtype=torch.float64) - low) / width).clamp(0, 1)
    return plain_C * (1 - slowed_C) + plain_C / yarn.factor * slowed_C


def _llama3(plain_C: Tensor, scaling: Llama3Scaling) -> Tensor:
    wavelengths = 2 * math.pi / plain_C
    turns = scaling.original_max_context / wavelengths  # full turns within the original context
    width = scaling.high_freq_factor - scaling.low_freq_factor
    kept = (
        ((turns - scaling.low_freq_factor) / width).clamp(0, 1) if width else (turns >= scaling.low_freq_factor) * 1.0
    )
    return plain_C * (kept + (1 - kept) / scaling.factor)
