"""Paged keys and values, or latents, of one layer. T packed token of the step, S token of one sequence within reach, H
query head, K key/value head, D d_head, L width of a latent.

Layers of one group share where things lie: `Lanes` says it for the step, and is filled anew before each forward.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from isoflop.engine.store import Store
from isoflop.model.kernels.attention import attention
from isoflop.model.kernels.plain import Options

if TYPE_CHECKING:
    from isoflop.model.latent import LatentAttention


@dataclass
class Lane:
    """The new tokens of one sequence: rows begin .. end - 1 of the packed ones, the first at place `start` among those
    that the sequence keeps within reach, which lie at `at_S`."""

    begin: int
    end: int
    start: int
    at_S: Tensor


@dataclass
class Lanes:
    """Of a step: where each new token goes, and each sequence's lane."""

    at_T: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.long))
    lanes: list[Lane] = field(default_factory=list)


class PagedKeyValues:
    """What attention keeps of all sequences."""

    def __init__(self, lanes: Lanes, keys: Store, values: Store) -> None:
        self.lanes, self.keys, self.values = lanes, keys, values

    def attend(self, q_1THD: Tensor, k_1TKD: Tensor, v_1TKD: Tensor, options: Options) -> Tensor:
        """Keep the new tokens' keys and values, and mix what each token may see, [1, T, H, D]."""
        self.keys.write(self.lanes.at_T, k_1TKD[0])
        self.values.write(self.lanes.at_T, v_1TKD[0])
        return torch.cat([self._one(q_1THD, lane, options) for lane in self.lanes.lanes], dim=1)

    def _one(self, q_1THD: Tensor, lane: Lane, o: Options) -> Tensor:
        q = q_1THD[:, lane.begin : lane.end]
        k, v = (store.read(lane.at_S, q.dtype)[None] for store in (self.keys, self.values))
        return attention(q, k, v, o.scale, lane.start, o.window, o.chunk, o.softcap, o.slopes_H, o.sinks_H)

    @property
    def stores(self) -> tuple[Store, ...]:
        return self.keys, self.values


class PagedLatents:
    """What latent attention keeps of all sequences."""

    def __init__(self, lanes: Lanes, latents: Store) -> None:
        self.lanes, self.latents = lanes, latents

    def attend(self, module: "LatentAttention", q_1THD: Tensor, latent_1TL: Tensor) -> Tensor:
        """Keep the new tokens' latents, and mix what each token may see, [1, T, H, V]."""
        self.latents.write(self.lanes.at_T, latent_1TL[0, :, None])
        return torch.cat([self._one(module, q_1THD, lane) for lane in self.lanes.lanes], dim=1)

    def _one(self, module: "LatentAttention", q_1THD: Tensor, lane: Lane) -> Tensor:
        q = q_1THD[:, lane.begin : lane.end]
        seen_1SL = self.latents.read(lane.at_S, q.dtype)[None, :, 0]
        return module.absorbed(q, seen_1SL) if lane.start else module.expanded(q, *module.parts(seen_1SL))

    @property
    def stores(self) -> tuple[Store, ...]:
        return (self.latents,)
