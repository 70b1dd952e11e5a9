"""Residual branches of quantized matrices in few calls.

A norm goes with the matrix behind it, a sum with the one before it (model/kernels/quantized.cpp).
B batch, T position, M d_model.

Each function returns None where the branch is not one that the kernels know, or where they cannot run.
"""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isoflop.model.attention import Attention
from isoflop.model.kernels import quantized as kernels
from isoflop.model.mlp import Mlp
from isoflop.model.place import Place
from isoflop.model.quantized import QuantizedLinear, rows_of

if TYPE_CHECKING:
    from isoflop.model.layer import LayerModel


def attention(layer: "LayerModel", x_BTM: Tensor, place: Place, state: Any) -> Tensor | None:
    """x + out(mix(qkv(norm(x)))), [B, T, M]."""
    mixer = layer.mixer
    if type(mixer) is not Attention:
        return None
    qkv, out = _packed(mixer.qkv, x_BTM), _packed(mixer.out, x_BTM)
    if qkv is None or out is None:
        return None
    norm, x_NM = layer.mixer_norm, rows_of(x_BTM)
    heads = kernels.linear(x_NM, qkv, norm.weight, norm.eps)
    mixed = mixer.mix(heads.view(*x_BTM.shape[:2], -1), place, state)
    return kernels.linear(rows_of(mixed), out, add_MO=x_NM).view(x_BTM.shape)


def mlp(layer: "LayerModel", x_BTM: Tensor) -> Tensor | None:
    """x + down(silu(gate) * up) of the normed x, [B, T, M]."""
    module = layer.feed_forward
    if type(module) is not Mlp or module.feed_forward.activation != "swiglu":
        return None
    gate_up, down = _packed(module.gate_up, x_BTM), _packed(module.down, x_BTM)
    if gate_up is None or down is None:
        return None
    norm, x_NM = layer.feed_forward_norm, rows_of(x_BTM)
    return kernels.mlp(x_NM, gate_up, down, norm.weight, norm.eps, x_NM).view(x_BTM.shape)


def _packed(linear: nn.Module, x: Tensor) -> kernels.Packed | None:
    quantized = type(linear) is QuantizedLinear and x.dtype is torch.float32
    return linear.packed(x) if quantized else None
