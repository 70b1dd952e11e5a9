"""Mamba-2 between its two matrices, where nothing is recorded: one token of each of several sequences, as a part of
kernels/layers.py, or many of one: mamba2.cpp. T token, Z what the first matrix gives, I d_inner, C channel of the
convolution, K its width, H head, G group of heads, N d_state, R head of a group, P d_head."""

import ctypes
import functools
import math
import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isoflop import architecture
from isoflop.model.kernels.build import library
from isoflop.model.kernels.layers import Part, address
from isoflop.model.kernels.rows import unrecorded

_MIXER = struct.Struct("8q7q3d")  # mamba2.cpp's `Mamba2`


class Weights(NamedTuple):
    """What lies between the two matrices, fp32, contiguous."""

    kernel_CK: Tensor
    bias_C: Tensor | None
    dt_bias_H: Tensor
    a_log_H: Tensor
    d_H: Tensor
    norm_I: Tensor


def available() -> bool:
    """Whether the kernel can be had here; the first call compiles it."""
    return library("mamba2") is not None


def part(m: architecture.Mamba2, w: Weights, windows_BKC: Tensor, written_BGNRP: Tensor) -> Part:
    """The mixer, over the states of all slots, fp32; it says where all of them lie and does not keep them."""
    call = ctypes.create_string_buffer(_packed(m, w, windows_BKC, written_BGNRP))
    return Part(address("mamba2", "mamba2_mix"), call, None)


def scans(zxbcdt_BTZ: Tensor, w: Weights, window_BKC: Tensor, written_BGNRP: Tensor) -> bool:
    """Whether `scan` can take these: contiguous fp32, nothing recorded."""
    tensors = zxbcdt_BTZ, *(x for x in w if x is not None), window_BKC, written_BGNRP
    plain = all(x.dtype is torch.float32 and x.is_contiguous() for x in tensors)
    return plain and unrecorded(zxbcdt_BTZ) and available()


def scan(m: architecture.Mamba2, zxbcdt_BTZ: Tensor, w: Weights, window_BKC: Tensor, written_BGNRP: Tensor) -> Tensor:
    """What the last matrix takes, [B, T, I]; the states move on in place."""
    batch, n_tokens, _ = zxbcdt_BTZ.shape
    y_BTI = zxbcdt_BTZ.new_empty(batch, n_tokens, m.d_inner)
    for z_TZ, y_TI, window_KC, written_GNRP in zip(zxbcdt_BTZ, y_BTI, window_BKC, written_BGNRP, strict=True):
        call = _packed(m, w, window_KC, written_GNRP)
        _scan()(call, z_TZ.data_ptr(), y_TI.data_ptr(), n_tokens, torch.get_num_threads())
    return y_BTI


def _packed(m: architecture.Mamba2, w: Weights, windows: Tensor, written: Tensor) -> bytes:
    pointers = [0 if x is None else x.data_ptr() for x in (*w, windows, written)]
    sizes = m.n_heads, m.d_head, m.n_groups, m.d_state, m.d_convolved, m.d_conv, m.norm_groups
    limits = m.norm_eps, m.dt_min, math.inf if m.dt_max is None else m.dt_max
    return _MIXER.pack(*pointers, *sizes, *limits)


@functools.cache
def _scan() -> Any:
    kernels = library("mamba2")
    assert kernels is not None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    kernels.mamba2_scan.argtypes = pointer, pointer, pointer, size, size
    kernels.mamba2_scan.restype = None
    return kernels.mamba2_scan
