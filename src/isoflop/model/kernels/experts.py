"""A few rows times the matrices of their experts: experts.cpp. R rows, M in, F out, E experts."""

import functools
import struct
from typing import Any

import torch
from torch import Tensor

from isoflop.model.kernels.build import library

_CALL = struct.Struct("9q")  # experts.cpp's `Call`: 5 pointers, 4 sizes


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
