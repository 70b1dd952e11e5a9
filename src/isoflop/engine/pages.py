"""Paged keys and values, or latents, of one layer. T packed token of the step, N token of a short lane, S token of one
sequence within reach, H query head, K key/value head, D d_head, E width of values, L width of a latent.

Layers of one group share where things lie: `Lanes` says it for the step, and is filled anew before each forward. Where
our kernel runs, one call of it stores all that is new and mixes what each token sees; else, and for the many new tokens
of a latent's sequence, what a sequence sees is copied into one piece.
"""

from array import array
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from isoflop.engine.store import Store
from isoflop.model.kernels.attention import attention
from isoflop.model.kernels.paged import paged_attention
from isoflop.model.kernels.plain import Options
from isoflop.model.rope import Turns, rotate

if TYPE_CHECKING:
    from isoflop.model.latent import LatentAttention

SHORT = 8  # new tokens of a sequence that meet their pages one by one


@dataclass
class Lane:
    """The new tokens of one sequence: rows begin .. end - 1 of the packed ones, the first at `position`. The sequence
    keeps what it sees from `first` on, in `table`'s pages of `size` tokens."""

    begin: int
    end: int
    position: int
    first: int
    table: "array[int]"
    size: int
    device: torch.device

    @property
    def start(self) -> int:
        """Of the first new token among what the sequence keeps within reach."""
        return self.position - self.first

    @cached_property
    def at_S(self) -> Tensor:
        """Where all within reach lies, the new tokens last."""
        pages = torch.tensor(self.table[self.first // self.size :], dtype=torch.long)
        places = (pages[:, None] * self.size + torch.arange(self.size)).flatten()[self.first % self.size :]
        return places[: self.start + self.end - self.begin].to(self.device)


@dataclass
class Lanes:
    """Of a step: the sequences' lanes. Where our kernel runs (`in_place`), the first `n_short` rows are those of lanes
    of few tokens, which it takes one by one."""

    in_place: bool = False
    lanes: list[Lane] = field(default_factory=list)
    n_short: int = 0

    def fill(self, lanes: list[Lane]) -> None:
        """For a new step; lanes of few tokens come first."""
        self.lanes = lanes
        few = [lane.end for lane in lanes if self.in_place and lane.end - lane.begin <= SHORT]
        self.n_short = max(few, default=0)
        for name in ("where_N2", "lanes_L4", "at_T"):
            self.__dict__.pop(name, None)

    @cached_property
    def where_N2(self) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Of each short row, the address of its sequence's table and its position."""
        rows = [
            (lane.table.buffer_info()[0], lane.position + i)
            for lane in self.lanes
            if lane.begin < self.n_short
            for i in range(lane.end - lane.begin)
        ]
        return np.array(rows, dtype=np.int64).reshape(-1, 2)

    @cached_property
    def lanes_L4(self) -> "np.ndarray[Any, np.dtype[np.int64]]":
        """Of each long lane, the address of its sequence's table, its position, its first row and the one after it."""
        rows = [(lane.table.buffer_info()[0], lane.position, lane.begin, lane.end) for lane in self.long]
        return np.array(rows, dtype=np.int64).reshape(-1, 4)

    @cached_property
    def at_T(self) -> Tensor:
        """Where each new token goes."""
        return torch.cat([lane.at_S[lane.start :] for lane in self.lanes])

    @property
    def long(self) -> list[Lane]:
        return [lane for lane in self.lanes if lane.begin >= self.n_short]


class PagedKeyValues:
    """What attention keeps of all sequences."""

    rotates = True

    def __init__(self, lanes: Lanes, size: int, keys: Store, values: Store) -> None:
        self.lanes, self.size, self.keys, self.values = lanes, size, keys, values
        self._stored = keys.stored, values.stored

    def attend(
        self, q_1THD: Tensor, k_1TKD: Tensor, v_1TKD: Tensor, options: Options, turns: Turns | None = None
    ) -> Tensor:
        """Keep the new tokens' keys and values, and mix what each token may see, [1, T, H, D]."""
        if self.lanes.in_place:
            places, width = self.lanes, v_1TKD.shape[3]
            rows = q_1THD, k_1TKD, v_1TKD, places.where_N2, self.size, *self._stored, width, options, turns
            return paged_attention(*rows, places.lanes_L4).to(q_1THD.dtype)
        q, k = (x if turns is None else rotate(x, *turns) for x in (q_1THD, k_1TKD))
        self.keys.write(self.lanes.at_T, k[0])
        self.values.write(self.lanes.at_T, v_1TKD[0])
        return torch.cat([self._one(q, lane, options) for lane in self.lanes.lanes], dim=1)

    def _one(self, q_1THD: Tensor, lane: Lane, o: Options) -> Tensor:
        q = q_1THD[:, lane.begin : lane.end]
        k, v = (store.read(lane.at_S, q.dtype)[None] for store in (self.keys, self.values))
        return attention(q, k, v, o.scale, lane.start, o.window, o.chunk, o.softcap, o.slopes_H, o.sinks_H)

    @property
    def stores(self) -> tuple[Store, ...]:
        return self.keys, self.values


class PagedLatents:
    """What latent attention keeps of all sequences."""

    def __init__(self, lanes: Lanes, size: int, latents: Store) -> None:
        self.lanes, self.size, self.latents = lanes, size, latents

    def attend(self, module: "LatentAttention", q_1THD: Tensor, latent_1TL: Tensor) -> Tensor:
        """Keep the new tokens' latents, and mix what each token may see, [1, T, H, V]."""
        n, parts = self.lanes.n_short, []
        if n:
            parts.append(self._short(module, q_1THD[:, :n], latent_1TL))
        if n < q_1THD.shape[1]:
            self.latents.write(self.lanes.at_T[n:], latent_1TL[0, n:, None])
            parts += [self._one(module, q_1THD, lane) for lane in self.lanes.long]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _short(self, module: "LatentAttention", q_1NHD: Tensor, latent_1TL: Tensor) -> Tensor:
        q_1NHL, options = module.into_latents(q_1NHD), Options(module.scale)
        rows = q_1NHL, latent_1TL[:, :, None], None, self.lanes.where_N2, self.size, self.latents.stored, None
        mixed_1NHR = paged_attention(*rows, module.mixer.kv_rank, options, None)
        return module.out_of_latents(mixed_1NHR.to(q_1NHD.dtype))

    def _one(self, module: "LatentAttention", q_1THD: Tensor, lane: Lane) -> Tensor:
        q = q_1THD[:, lane.begin : lane.end]
        seen_1SL = self.latents.read(lane.at_S, q.dtype)[None, :, 0]
        return module.expanded(q, *module.parts(seen_1SL))  # fewer products than absorbed, for more than a few rows

    @property
    def stores(self) -> tuple[Store, ...]:
        return (self.latents,)
