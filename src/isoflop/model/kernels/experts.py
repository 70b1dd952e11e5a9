"""A few rows times the matrices of their experts, and a whole sparse feed-forward as a part of kernels/layers.py:
experts.cpp. R rows, M in, F out, E experts."""

import ctypes
import functools
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isoflop import architecture
from isoflop.architecture.feed_forward import GATED
from isoflop.model.kernels.build import library
from isoflop.model.kernels.layers import ACTIVATIONS, Matrix, Part, address, linear

_CALL = struct.Struct("9q")  # experts.cpp's `Call`: 5 pointers, 4 sizes
_EXPERTS = struct.Struct("14q11qd")  # experts.cpp's `Experts`
_LINEAR = struct.Struct("2q")


def multiplies_rows(x_RM: Tensor, weight_EMF: Tensor) -> bool:
    """Whether `rows_of_experts` can take these: fp32 on a CPU with a compiler, nothing recorded, compiled or faked."""
    plain = type(x_RM) is Tensor and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
    fp32 = x_RM.dtype == weight_EMF.dtype == torch.float32
    return plain and fp32 and x_RM.device.type == "cpu" and weight_EMF.is_contiguous() and _function() is not None


def rows_of_experts(x_RM: Tensor, weight_EMF: Tensor, bias_EF: Tensor | None, expert_R: Tensor) -> Tensor:
    """x[r] @ weight[expert[r]] + bias[expert[r]], [R, F]; expert_R int64, each below E."""
    function = _function()
    assert function is not None
    x_RM, expert_R = x_RM.contiguous(), expert_R.contiguous()
    y_RF = x_RM.new_empty(len(x_RM), weight_EMF.shape[2])
    bias = 0 if bias_EF is None else bias_EF.data_ptr()
    pointers = x_RM.data_ptr(), weight_EMF.data_ptr(), bias, expert_R.data_ptr(), y_RF.data_ptr()
    function(_CALL.pack(*pointers, *x_RM.shape, y_RF.shape[1], torch.get_num_threads()))
    return y_RF


@functools.cache
def _function() -> Any:
    kernels = library("experts")
    return None if kernels is None else kernels.rows_of_experts


class Stack(NamedTuple):
    """One of the two stacks of matrices, fp32 [E, in, out] or a matrix of few bits an expert; and their biases."""

    weight: Tensor | Sequence[Matrix]
    bias: Tensor | None


class Weights(NamedTuple):
    """Of a sparse feed-forward; `shared` are the two matrices of what every token goes through."""

    router: Matrix
    selection_bias: Tensor | None
    first: Stack
    second: Stack
    shared: tuple[Matrix, Matrix] | None


def takes(f: architecture.MixtureOfExperts) -> bool:
    """Whether `part` computes such a feed-forward."""
    plain = f.top_groups == f.n_groups and f.capacity_factor is None and f.activation in ACTIVATIONS
    return plain and not (f.shared is not None and f.shared.gated) and _function() is not None


def part(f: architecture.MixtureOfExperts, d_model: int, w: Weights) -> Part:
    """The feed-forward of a few rows; it says where its tensors lie and does not keep them."""
    first, second = _stack(w.first), _stack(w.second)
    pointers = *linear(w.router), address("rows", "rows_norm"), _pointer(w.selection_bias)
    stacks = *_pointers(w.first, first), *_pointers(w.second, second)
    shared = (0, 0, 0, 0) if w.shared is None else (*linear(w.shared[0]), *linear(w.shared[1]))
    widened = 2 if f.activation in GATED else 1
    d_shared = 0 if f.shared is None else f.shared.d_ff
    sizes = d_model, f.n_experts, f.top_k, widened * f.d_ff, f.d_ff, widened * d_shared, d_shared
    how = ACTIVATIONS.index(f.activation), f.router == "sigmoid", f.renormalize, f.weigh == "input"
    call = ctypes.create_string_buffer(_EXPERTS.pack(*pointers, *stacks, *shared, *sizes, *how, f.routed_scale))
    return Part(address("experts", "experts_feed"), call, (w, first, second))


def _stack(stack: Stack) -> Any:
    """experts.cpp's Linear of each expert; None where their matrices lie next to each other."""
    if isinstance(stack.weight, Tensor):
        return None
    return ctypes.create_string_buffer(b"".join(_LINEAR.pack(*linear(matrix)) for matrix in stack.weight))


def _pointers(stack: Stack, linears: Any) -> tuple[int, int, int]:
    weight = stack.weight.data_ptr() if isinstance(stack.weight, Tensor) else 0
    return weight, _pointer(stack.bias), 0 if linears is None else ctypes.addressof(linears)


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()
