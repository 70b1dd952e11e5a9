"""One token of each of several sequences through Mamba-2, as a part of kernels/layers.py: mamba2.cpp. C channel of the
convolution, K its width, H head, G group of heads, N d_state, R head of a group, P d_head."""

import ctypes
import math
import struct
from typing import NamedTuple

from torch import Tensor

from isoflop import architecture
from isoflop.model.kernels.build import library
from isoflop.model.kernels.layers import Part, address

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
    pointers = [0 if x is None else x.data_ptr() for x in (*w, windows_BKC, written_BGNRP)]
    sizes = m.n_heads, m.d_head, m.n_groups, m.d_state, m.d_convolved, m.d_conv, m.norm_groups
    limits = m.norm_eps, m.dt_min, math.inf if m.dt_max is None else m.dt_max
    call = ctypes.create_string_buffer(_MIXER.pack(*pointers, *sizes, *limits))
    return Part(address("mamba2", "mamba2_mix"), call, None)
