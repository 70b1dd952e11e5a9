"""Layers that a step goes through in one call (model/kernels/layers.cpp): what the call is told of them, kept from step
to step, and made anew when anything that it points to is found changed.

T packed token, M d_model.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.engine.pages import Lanes, PagedKeyValues
from isoflop.model import DecoderModel
from isoflop.model.attention import Attention
from isoflop.model.kernels import layers as kernels
from isoflop.model.kernels.room import is_settled, settled
from isoflop.model.kernels.rows import KINDS, unrecorded
from isoflop.model.layer import LayerModel
from isoflop.model.linear import Linear
from isoflop.model.mlp import Mlp
from isoflop.model.norm import RmsNorm
from isoflop.model.quantized import QuantizedLinear

SHORTEST = torch.zeros(1)  # what a matrix is asked about


@dataclass
class Run:
    """Layers up to `end`, as the call takes them."""

    end: int
    layers: bytes
    n: int


class Marks:
    """Where things were found, and what keeps them alive: whether they are still there is soon seen."""

    def __init__(self) -> None:
        self.holders: list[dict[str, Any]] = []
        self.names: list[str] = []
        self.found: list[Any] = []
        self.tensors: list[Tensor] = []
        self.addresses: list[int] = []
        self.kept: list[Tensor] = []

    def part(self, of: nn.Module, name: str) -> Any:
        """A module, parameter or plain attribute of a module."""
        holder = next(d for d in (of._modules, of._parameters, of._buffers, vars(of)) if name in d)
        found = holder[name]
        self.holders.append(holder)
        self.names.append(name)
        self.found.append(found)
        if isinstance(found, Tensor):
            self.tensors.append(found)
            self.addresses.append(found.data_ptr())
            self.kept.append(found.detach())
        return found

    @property
    def fresh(self) -> bool:
        """A few hundred looks, without a loop of Python's own."""
        same = all(map(operator.is_, map(dict.get, self.holders, self.names), self.found))
        return same and list(map(Tensor.data_ptr, self.tensors)) == self.addresses


class Runs:
    """Those of one model over one engine's caches (model.packed.Runs)."""

    def __init__(self, model: DecoderModel, states: Sequence[Any], groups: Sequence[Lanes]) -> None:
        self.model, self.states, self.groups = model, states, groups
        self._newest = 0
        self._make()

    def begin(self, newest: int) -> "Runs | None":
        """Self, where our kernel keeps keys and values. `newest`: the arrival of the last request to come: with
        each new one it is seen whether anything has changed (asked every step, that would take a thirtieth of it)."""
        if newest != self._newest and not self._marks.fresh:
            self._make()
        self._newest = newest
        if not self._runs or not all(group.in_place for group in self.groups):
            return None
        sizes = [(group.n_short, len(group.lanes_L4)) for group in self.groups]  # the same of every group
        self._places = kernels.Places(
            [group.where_N2.ctypes.data for group in self.groups],
            [group.lanes_L4.ctypes.data for group in self.groups],
            *(sizes[0] if sizes else (0, 0)),
        )
        return self

    def forward(self, i: int, x_1TM: Tensor, turns: Sequence[tuple[Tensor, Tensor]]) -> int:
        """See model.packed.Runs."""
        run = self._runs.get(i)
        if run is None or x_1TM.dtype is not torch.float32 or not unrecorded(x_1TM):
            return i
        kernels.run(run.layers, run.n, x_1TM[0], self._places, turns)
        return run.end

    def _make(self) -> None:
        self._marks = Marks()
        self._kept: list[Any] = []
        self._runs: dict[int, Run] = {}
        if not kernels.available():
            return
        _settle(self.model.head)  # no part of a run, and as much to read as many layers
        begun, parts = 0, []
        for i in range(len(self.model.layers)):
            found = self._layer(i)
            if found is not None:
                parts.append(found)
            if parts and (found is None or i + 1 == len(self.model.layers)):
                end = begun + len(parts)
                self._runs[begun] = Run(end, b"".join(parts), len(parts))
            if found is None:
                begun, parts = i + 1, []

    def _layer(self, i: int) -> bytes | None:
        """What the call is told of a layer; None if that is not one it knows."""
        layer = self._marks.part(self.model.layers, str(i))
        if not layer.plain:
            return None
        mixing, feed_forward = None, None
        if self._marks.part(layer, "mixer") is not None:
            mixing = self._mixing(layer, i)
            if mixing is None:
                return None
        if self._marks.part(layer, "feed_forward") is not None:
            feed_forward = self._feed_forward(layer)
            if feed_forward is None:
                return None
        self._kept += [mixing, feed_forward]
        return kernels.layer(mixing, feed_forward, self.model.decoder.norm.eps)

    def _mixing(self, layer: LayerModel, i: int) -> kernels.Mixing | None:
        mixer, state, rope = layer.mixer, self.states[i], self.model.rope_of_layer[i]
        if type(mixer) is not Attention or not isinstance(state, PagedKeyValues):
            return None
        m = mixer.mixer
        if m.qk_norm not in ("none", "head") or m.clip_qkv is not None or m.temperature is not None:
            return None
        qkv, out, norm = self._matrix(mixer, "qkv"), self._matrix(mixer, "out"), self._norm(layer, "mixer_norm")
        head_norms = (self._norm(mixer, "q_norm"), self._norm(mixer, "k_norm")) if m.qk_norm == "head" else None
        if qkv is None or out is None or norm is None or (head_norms is not None and None in head_norms):
            return None
        for name in ("sinks", "slopes"):
            self._marks.part(mixer, name)
        keys, values = state.keys.stored, state.values.stored
        d_rotated = 0 if rope is None else self.model.ropes[rope].d_rotated
        layout = None if mixer.rope is None else mixer.rope.layout
        group = next(g for g, lanes in enumerate(self.groups) if lanes is state.lanes)
        return kernels.Mixing(
            qkv, out, norm, mixer.options, (m.n_heads, m.n_kv_heads, m.d_head), layout, head_norms, state.size, keys,
            values, group, -1 if rope is None else rope, d_rotated,
        )  # fmt: skip

    def _feed_forward(self, layer: LayerModel) -> kernels.FeedForward | None:
        mlp = layer.feed_forward
        if type(mlp) is not Mlp or mlp.feed_forward.activation not in kernels.ACTIVATIONS:
            return None
        up, down = self._matrix(mlp, "gate_up" if mlp.gated else "up"), self._matrix(mlp, "down")
        norm, f = self._norm(layer, "feed_forward_norm"), mlp.feed_forward
        if up is None or down is None or norm is None:
            return None
        return kernels.FeedForward(up, down, norm, ((2 if mlp.gated else 1) * f.d_ff, f.d_ff), f.activation)

    def _matrix(self, of: nn.Module, name: str) -> kernels.Matrix | None:
        linear = self._marks.part(of, name)
        _settle(linear)
        if type(linear) is QuantizedLinear:
            linear.packed(SHORTEST)
            packed = self._marks.part(linear, "_packed")
            return None if packed is None else kernels.of_few_bits(packed)
        if type(linear) is not Linear:
            return None
        weight, bias = self._marks.part(linear, "weight"), self._marks.part(linear, "bias")
        plain = weight.is_contiguous() and weight.device.type == "cpu" and (torch.float32, weight.dtype) in KINDS
        if not plain or not (bias is None or bias.dtype is torch.float32):
            return None
        return kernels.as_it_lies(weight.detach(), bias)

    def _norm(self, of: nn.Module, name: str) -> Tensor | None:
        norm = self._marks.part(of, name)
        if type(norm) is not RmsNorm:
            return None
        weight: Tensor = self._marks.part(norm, "weight")
        return weight.detach() if weight.dtype is torch.float32 and weight.device.type == "cpu" else None


def _settle(linear: nn.Module | None) -> None:
    """A matrix that is read at every step into memory for such: one after the other, so there are no two models."""
    if type(linear) is Linear and linear.weight.device.type == "cpu" and not is_settled(linear.weight):
        linear.weight.data = settled(linear.weight.data)
