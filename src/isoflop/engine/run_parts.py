"""What a call for many layers (model/kernels/layers.py) is told of their modules: where everything lies now, and marks
by which it is seen whether it still lies there.

M d_model.
"""

import operator
from typing import Any

import torch
from torch import Tensor, nn

from isoflop.engine.pages import PagedLatents
from isoflop.engine.states import Slots
from isoflop.model.experts import MixtureOfExperts
from isoflop.model.kernels import experts, latent, mamba2
from isoflop.model.kernels import layers as kernels
from isoflop.model.kernels.room import is_settled, settled
from isoflop.model.kernels.rows import KINDS
from isoflop.model.latent import LatentAttention
from isoflop.model.linear import Linear
from isoflop.model.mamba2 import Mamba2, Mamba2State
from isoflop.model.mlp import Mlp
from isoflop.model.norm import RmsNorm
from isoflop.model.quantized import QuantizedLinear
from isoflop.model.quantized_experts import QuantizedExperts

SHORTEST = torch.zeros(1)  # what a matrix is asked about


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

    def matrix(self, of: nn.Module, name: str) -> kernels.Matrix | None:
        """What multiplies by a linear map; None if that is not one that our kernels read as it lies."""
        linear = self.part(of, name)
        settle(linear)
        if type(linear) is QuantizedLinear:
            linear.packed(SHORTEST)
            packed = self.part(linear, "_packed")
            return None if packed is None else kernels.of_few_bits(packed)
        if type(linear) is not Linear:
            return None
        weight, bias = self.part(linear, "weight"), self.part(linear, "bias")
        plain = weight.is_contiguous() and weight.device.type == "cpu" and (torch.float32, weight.dtype) in KINDS
        if not plain or not (bias is None or bias.dtype is torch.float32):
            return None
        return kernels.as_it_lies(weight.detach(), bias)

    def norm(self, of: nn.Module, name: str) -> Tensor | None:
        """The weights of an RMS norm, if that is what it is."""
        norm = self.part(of, name)
        return self.plain(norm, "weight") if type(norm) is RmsNorm else None

    def plain(self, of: nn.Module, name: str) -> Tensor | None:
        """A parameter of contiguous fp32 on a CPU; None where it is something else."""
        found = self.part(of, name)
        if not isinstance(found, Tensor) or found.dtype is not torch.float32 or found.device.type != "cpu":
            return None
        return found.detach() if found.is_contiguous() else None


def settle(linear: nn.Module | None) -> None:
    """A matrix that is read at every step into memory for such: one after the other, so there are no two models."""
    if type(linear) is Linear and linear.weight.device.type == "cpu" and not is_settled(linear.weight):
        linear.weight.data = settled(linear.weight.data)


def mamba2_of(marks: Marks, mixer: Mamba2, norm: Tensor, state: Slots) -> kernels.OtherMixing | None:
    """None, as below, where anything is not in fp32."""
    states, convolution = state.states, marks.part(mixer, "convolution")
    first, out = marks.matrix(mixer, "zxbcdt"), marks.matrix(mixer, "out")
    of_heads = [marks.plain(mixer, name) for name in ("dt_bias", "A_log", "D", "norm_weight")]
    kernel, bias = marks.plain(convolution, "kernel"), marks.part(convolution, "bias")
    fp32 = isinstance(states, Mamba2State) and states.window.dtype is states.written.dtype is torch.float32
    if (
        not fp32
        or first is None
        or out is None
        or kernel is None
        or (bias is not None and bias.dtype is not kernel.dtype)
    ):
        return None
    if not mamba2.available() or any(x is None for x in of_heads):
        return None
    weights = mamba2.Weights(kernel, bias, *of_heads)
    part = mamba2.part(mixer.mixer, weights, states.window, states.written)
    m = mixer.mixer
    return kernels.OtherMixing(first, out, norm, (m.d_inner + m.d_convolved + m.n_heads, m.d_inner), part)


def latent_of(
    marks: Marks, mixer: LatentAttention, norm: Tensor, state: PagedLatents, group: int, rope: int, d_rotated: int
) -> kernels.OtherMixing | None:
    """`rope`: which of a step's turns, -1 for none, of `d_rotated` dimensions."""
    m, first, out = mixer.mixer, marks.matrix(mixer, "kv_down"), marks.matrix(mixer, "out")
    kv_norm, key_value = marks.norm(mixer, "kv_norm"), _key_value(marks, mixer)
    down = None if m.q_rank is None else marks.matrix(mixer, "q_down")
    q_norm = None if m.q_rank is None else marks.norm(mixer, "q_norm")
    up = marks.matrix(mixer, "q" if m.q_rank is None else "q_up")
    lacks = m.q_rank is not None and (down is None or q_norm is None)
    if lacks or first is None or out is None or kv_norm is None or key_value is None or up is None:
        return None
    if not latent.available():
        return None
    layout = "half" if mixer.rope is None else mixer.rope.layout
    weights = latent.Weights(down, up, q_norm, kv_norm, key_value)
    pages = latent.Pages(state.latents.stored, state.size)
    part = latent.part(m, weights, mixer.scale, (d_rotated, layout), pages)
    widths = m.kv_rank + m.d_rope, m.n_heads * m.d_value
    return kernels.OtherMixing(first, out, norm, widths, part, group, rope)


def _key_value(marks: Marks, mixer: LatentAttention) -> Tensor | None:
    """Of fp32; of a quantized matrix the dense copy that the module keeps."""
    if marks.matrix(mixer, "kv_up") is None:
        return None
    if type(mixer.kv_up) is Linear:
        return marks.plain(mixer.kv_up, "weight")
    dense = mixer.dense_up(torch.float32)
    marks.part(mixer, "_kept")
    return dense.contiguous()


def experts_of(marks: Marks, module: MixtureOfExperts, norm: Tensor) -> kernels.OtherFeedForward | None:
    """Of few rows."""
    f = module.feed_forward
    if not experts.takes(f):
        return None
    router, first, second = (
        marks.matrix(module, "router"),
        _stack(marks, module, module.first),
        _stack(marks, module, "down"),
    )
    bias = marks.plain(module, "selection_bias") if f.selection_bias else None
    shared = None if f.shared is None else _shared(marks, marks.part(module, "shared"))
    if router is None or first is None or second is None:
        return None
    if (f.selection_bias and bias is None) or (f.shared is not None and shared is None):
        return None
    weights = experts.Weights(router, bias, first, second, shared)
    return kernels.OtherFeedForward(norm, experts.part(f, norm.shape[0], weights))


def _stack(marks: Marks, module: MixtureOfExperts, name: str) -> experts.Stack | None:
    weight = getattr(module, name)
    bias = marks.plain(module, f"{name}_bias") if module.feed_forward.bias else None
    if module.feed_forward.bias and bias is None:
        return None
    if isinstance(weight, QuantizedExperts):
        marks.part(module, name)
        each = [marks.matrix(weight.experts, str(i)) for i in range(len(weight.experts))]
        found = [matrix for matrix in each if matrix is not None]
        return experts.Stack(found, bias) if len(found) == len(each) else None
    if weight.device.type == "cpu" and not is_settled(weight):
        weight.data = settled(weight.data)
    stack = marks.plain(module, name)
    return None if stack is None else experts.Stack(stack, bias)


def _shared(marks: Marks, mlp: Mlp) -> tuple[kernels.Matrix, kernels.Matrix] | None:
    up, down = marks.matrix(mlp, "gate_up" if mlp.gated else "up"), marks.matrix(mlp, "down")
    return None if up is None or down is None else (up, down)
