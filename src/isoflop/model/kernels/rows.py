"""Rows times a matrix as it lies, and their norm, where nothing is recorded: rows.cpp. M rows, I in, O out.

Sums are of fp32, in one order: what a row gives, or its norm, does not depend on the rows beside it or on the threads,
bit for bit. A matrix of bf16 meets rows of bf16: others are rounded to it first, however many they are. (Autocast, vLLM
and llama.cpp do so too; the error is as large as that which the matrix's own rounding made.)
"""

import ctypes
import functools
import struct

import torch
from torch import Tensor

from isoflop.model.kernels.build import library

_MATRIX = struct.Struct("5q")  # rows.cpp's `Matrix`: 2 pointers, 3 sizes
# Types of rows and matrix that are multiplied here; other mixtures are cast first.
KINDS = {(torch.float32, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)}
MOST_ROWS = 4096  # more are no step of an engine, and torch's product is up to a tenth faster


def unrecorded(x: Tensor) -> bool:
    """Whether x has numbers, on a CPU, of which nothing is recorded, compiled or faked."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    return type(x) is Tensor and x.device.type == "cpu"


def multiplies(x: Tensor, weight_OI: Tensor) -> bool:
    """Whether `linear` can take these, and should."""
    if not unrecorded(x) or (x.dtype, weight_OI.dtype) not in KINDS or x.numel() > MOST_ROWS * weight_OI.shape[1]:
        return False
    return weight_OI.is_contiguous() and weight_OI.device.type == "cpu" and _functions() is not None


def linear(x: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """x [..., I] @ weight.T + bias, [..., O], in x's type, fp32 or bf16."""
    d_out, d_in = weight_OI.shape
    x_MI, bias = x.reshape(-1, d_in).contiguous(), None if bias_O is None else bias_O.float()
    y, n_rows, threads = x.new_empty(*x.shape[:-1], d_out), x_MI.shape[0], torch.get_num_threads()
    kernels, packed = _needed(), matrix(weight_OI, bias)
    if x.dtype == torch.bfloat16:
        kernels.rows_linear_bf16(packed, x_MI.data_ptr(), y.data_ptr(), n_rows, threads)
    else:
        kernels.rows_linear(packed, x_MI.data_ptr(), None, 0.0, None, y.data_ptr(), n_rows, threads)
    return y


def matrix(weight_OI: Tensor, bias_O: Tensor | None) -> bytes:
    """A matrix of fp32 or bf16 as rows.cpp's functions take it; it says where both lie and does not keep them."""
    bf16 = weight_OI.dtype == torch.bfloat16
    bias = 0 if bias_O is None else bias_O.data_ptr()
    return _MATRIX.pack(weight_OI.data_ptr(), bias, weight_OI.shape[1], weight_OI.shape[0], bf16)


def norms(x: Tensor, weight: Tensor) -> bool:
    """Whether `rms_norm` can take these."""
    if not unrecorded(x) or not x.dtype == torch.float32 == weight.dtype:
        return False
    return _functions() is not None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension."""
    x = x.contiguous()
    y, d = torch.empty_like(x), x.shape[-1]
    _needed().rows_norm(x.data_ptr(), weight.data_ptr(), y.data_ptr(), x.numel() // d, d, eps, torch.get_num_threads())
    return y


def _needed() -> ctypes.CDLL:
    kernels = _functions()
    assert kernels is not None
    return kernels


@functools.cache
def _functions() -> ctypes.CDLL | None:
    kernels = library("rows")
    if kernels is None:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    kernels.rows_linear.argtypes = pointer, pointer, pointer, ctypes.c_double, pointer, pointer, size, size
    kernels.rows_linear_bf16.argtypes = pointer, pointer, pointer, size, size
    kernels.rows_norm.argtypes = pointer, pointer, pointer, size, size, ctypes.c_double, size
    kernels.rows_linear.restype = kernels.rows_linear_bf16.restype = kernels.rows_norm.restype = None
    return kernels
