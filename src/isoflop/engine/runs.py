"""Layers that a step goes through in one call (model/kernels/layers.cpp): what the call is told of them, kept from step
to step, and made anew when anything that it points to is found changed.

Attention and MLPs go together in any step; every layer that is known here where each sequence brings one token.

T packed token, M d_model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from isoflop import architecture
from isoflop.engine.pages import Lanes, PagedKeyValues, PagedLatents
from isoflop.engine.run_parts import Marks, experts_of, latent_of, mamba2_of, settle
from isoflop.engine.states import Slots
from isoflop.model import DecoderModel
from isoflop.model.attention import Attention
from isoflop.model.experts import FEW, MixtureOfExperts
from isoflop.model.kernels import layers as kernels
from isoflop.model.kernels.rows import unrecorded
from isoflop.model.latent import LatentAttention
from isoflop.model.layer import LayerModel
from isoflop.model.mamba2 import Mamba2
from isoflop.model.mlp import Mlp

Mixing = kernels.Mixing | kernels.OtherMixing
FeedForward = kernels.FeedForward | kernels.OtherFeedForward


@dataclass
class Run:
    """Layers up to `end`, as the call takes them."""

    end: int
    layers: bytes
    n: int


class Runs:
    """Those of one model over one engine's caches (model.packed.Runs)."""

    def __init__(self, model: DecoderModel, states: Sequence[Any], groups: Sequence[Lanes]) -> None:
        self.model, self.states, self.groups = model, states, groups
        self._newest = 0
        sparse = [
            f for layer in model.decoder.layers if isinstance(f := layer.feed_forward, architecture.MixtureOfExperts)
        ]
        self._few = min((FEW // f.top_k for f in sparse), default=1 << 40)  # rows that experts take unsorted
        self._make()

    def begin(self, newest: int, slots: Tensor | None) -> "Runs | None":
        """Self, where our kernel keeps keys and values. `newest`: the arrival of the last request to come: with
        each new one it is seen whether anything has changed (asked every step, that would take a thirtieth of it).
        `slots` of recurrent states, where each sequence brings one token, and None where not."""
        if newest != self._newest and not self._marks.fresh:
            self._make()
        self._newest = newest
        if not (self._any or self._alone):
            return None
        sizes = [(group.n_short, len(group.lanes_L4)) for group in self.groups]  # the same of every group
        self._places = kernels.Places(
            [group.where_N2.ctypes.data for group in self.groups],
            [group.lanes_L4.ctypes.data for group in self.groups],
            *(sizes[0] if sizes else (0, 0)),
            slots,
        )
        return self

    def forward(self, i: int, x_1TM: Tensor, turns: Sequence[tuple[Tensor, Tensor]]) -> int:
        """See model.packed.Runs."""
        alone = self._places.slots is not None and x_1TM.shape[1] <= self._few
        run = (self._alone if alone else self._any).get(i)
        if run is None or x_1TM.dtype is not torch.float32 or not unrecorded(x_1TM):
            return i
        kernels.run(run.layers, run.n, x_1TM[0], self._places, turns)
        return run.end

    def _make(self) -> None:
        self._marks = Marks()
        self._kept: list[Any] = []
        self._any: dict[int, Run] = {}
        self._alone: dict[int, Run] = {}
        if not kernels.available() or not all(group.in_place for group in self.groups):
            return
        settle(self.model.head)  # no part of a run, and as much to read as many layers
        found = [self._layer(i) for i in range(len(self.model.layers))]
        self._any = _runs([layer and layer[0] if layer and layer[1] else None for layer in found])
        self._alone = _runs([layer and layer[0] for layer in found])

    def _layer(self, i: int) -> tuple[bytes, bool] | None:
        """What the call is told of a layer, and whether in any step; None if that is not one it knows."""
        layer = self._marks.part(self.model.layers, str(i))
        if not layer.plain:
            return None
        mixing: Mixing | None = None
        feed_forward: FeedForward | None = None
        if self._marks.part(layer, "mixer") is not None:
            mixing = self._mixing(layer, i)
            if mixing is None:
                return None
        if self._marks.part(layer, "feed_forward") is not None:
            feed_forward = self._feed_forward(layer)
            if feed_forward is None:
                return None
        self._kept += [mixing, feed_forward]
        other = isinstance(mixing, kernels.OtherMixing) or isinstance(feed_forward, kernels.OtherFeedForward)
        return kernels.layer(mixing, feed_forward, self.model.decoder.norm.eps), not other

    def _mixing(self, layer: LayerModel, i: int) -> Mixing | None:
        mixer, state, norm = layer.mixer, self.states[i], self._marks.norm(layer, "mixer_norm")
        if norm is None:
            return None
        if type(mixer) is Mamba2 and isinstance(state, Slots):
            return mamba2_of(self._marks, mixer, norm, state)
        if type(mixer) is LatentAttention and isinstance(state, PagedLatents):
            return latent_of(self._marks, mixer, norm, state, self._group(state.lanes), *self._rope(i))
        if type(mixer) is Attention and isinstance(state, PagedKeyValues):
            return self._attention(mixer, norm, state, i)
        return None

    def _attention(self, mixer: Attention, norm: Tensor, state: PagedKeyValues, i: int) -> Mixing | None:
        m, marks = mixer.mixer, self._marks
        if m.qk_norm not in ("none", "head") or m.clip_qkv is not None or m.temperature is not None:
            return None
        qkv, out = marks.matrix(mixer, "qkv"), marks.matrix(mixer, "out")
        head_norms = (marks.norm(mixer, "q_norm"), marks.norm(mixer, "k_norm")) if m.qk_norm == "head" else None
        if qkv is None or out is None or (head_norms is not None and None in head_norms):
            return None
        for name in ("sinks", "slopes"):
            marks.part(mixer, name)
        keys, values = state.keys.stored, state.values.stored
        layout = None if mixer.rope is None else mixer.rope.layout
        return kernels.Mixing(
            qkv, out, norm, mixer.options, (m.n_heads, m.n_kv_heads, m.d_head), layout, head_norms, state.size, keys,
            values, self._group(state.lanes), *self._rope(i),
        )  # fmt: skip

    def _group(self, lanes: Lanes) -> int:
        return next(g for g, own in enumerate(self.groups) if own is lanes)

    def _rope(self, i: int) -> tuple[int, int]:
        """Which turns a layer has, -1 for none, and of how many dimensions."""
        rope = self.model.rope_of_layer[i]
        return (-1, 0) if rope is None else (rope, self.model.ropes[rope].d_rotated)

    def _feed_forward(self, layer: LayerModel) -> FeedForward | None:
        module, marks, norm = layer.feed_forward, self._marks, self._marks.norm(layer, "feed_forward_norm")
        if norm is None:
            return None
        if type(module) is MixtureOfExperts:
            return experts_of(marks, module, norm)
        if type(module) is not Mlp or module.feed_forward.activation not in kernels.ACTIVATIONS:
            return None
        up, down = marks.matrix(module, "gate_up" if module.gated else "up"), marks.matrix(module, "down")
        if up is None or down is None:
            return None
        f = module.feed_forward
        return kernels.FeedForward(up, down, norm, ((2 if module.gated else 1) * f.d_ff, f.d_ff), f.activation)


def _runs(layers: Sequence[bytes | None]) -> dict[int, Run]:
    """Of layers that follow each other, by the first."""
    found: dict[int, Run] = {}
    begun, parts = 0, list[bytes]()
    for i, layer in enumerate(layers):
        if layer is not None:
            parts.append(layer)
        if parts and (layer is None or i + 1 == len(layers)):
            found[begun] = Run(begun + len(parts), b"".join(parts), len(parts))
        if layer is None:
            begun, parts = i + 1, []
    return found
