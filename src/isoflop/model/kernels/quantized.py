"""Rows times matrices of few bits: quantized.cpp where it can run. M rows, O out, I in, G groups, K columns with every
group filled up to a multiple of 8."""

import ctypes
import functools
import struct
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.model.kernels.build import library
from isoflop.model.kernels.room import settled

BYTES, HALVES, LOOKUP, FLOAT8 = range(4)  # quantized.h's Kind
SCALE_TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2}
LOOKUP_ZERO = 128
BAND, STEP = 32, 8  # rows of a band, columns of a step
WIDEST = 2**17  # columns of a group whose whole numbers cannot overflow
_MATRIX = struct.Struct("6q8q")  # quantized.h's Matrix: 6 pointers, 8 sizes


class Layout(NamedTuple):
    """How a matrix is kept: its kind, what all codes stand above where there are no zeros, columns of a group."""

    kind: int
    zero: int
    group: int


class Packed:
    """A matrix in the kernel's order (see quantized.h), which `unpacked` gives back; codes come one a byte."""

    def __init__(
        self,
        layout: Layout,
        codes_OI: Tensor,
        scales_OG: Tensor,
        zeros_OG: Tensor | None,
        order_I: Tensor | None,
        in_scales_I: Tensor | None,
        bias_O: Tensor | None,
    ) -> None:
        self.layout, self.shape, self.groups = layout, codes_OI.shape, scales_OG.shape[1]
        self.width = layout.group + -layout.group % STEP
        self.codes = settled(_pack_codes(self._filled(codes_OI), layout.kind))
        self.scales = settled(_pack_groups(scales_OG))
        self.zeros = None if zeros_OG is None else settled(_pack_groups(zeros_OG))
        self.order = None if order_I is None else order_I.contiguous()
        in_scales = None if in_scales_I is None else in_scales_I.float().contiguous()
        self.in_scales = in_scales if in_scales is None or order_I is None else in_scales[order_I]
        self.bias = None if bias_O is None else bias_O.float().contiguous()
        self.call = ctypes.create_string_buffer(self._struct())

    def __getstate__(self) -> dict[str, Any]:
        state = {name: value for name, value in vars(self).items() if name != "call"}
        return state | {name: value.clone() for name, value in state.items() if isinstance(value, Tensor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.call = ctypes.create_string_buffer(self._struct())  # of where the copies lie

    @property
    def nbytes(self) -> int:
        tensors = self.codes, self.scales, self.zeros, self.order, self.in_scales, self.bias
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def _struct(self) -> bytes:
        tensors = self.codes, self.scales, self.zeros, self.order, self.in_scales, self.bias
        pointers = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        kind, zero, group = self.layout
        sizes = *self.shape, group, self.groups, self.width, kind, SCALE_TYPES[self.scales.dtype], zero
        return _MATRIX.pack(*pointers, *sizes)

    def _filled(self, codes_OI: Tensor) -> Tensor:
        """[O, K], O a multiple of BAND."""
        d_out, d_in = codes_OI.shape
        whole = F.pad(codes_OI, (0, self.groups * self.layout.group - d_in, 0, -d_out % BAND))
        return F.pad(whole.unflatten(1, (self.groups, self.layout.group)), (0, self.width - self.layout.group)).flatten(
            1
        )

    def unpacked(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Codes [O, I], scales [O, G] and zeros [O, G] or none, as they came."""
        d_out, d_in = self.shape
        filled = _unpack_codes(self.codes, self.layout.kind).unflatten(1, (self.groups, self.width))[
            ..., : self.layout.group
        ]
        zeros_OG = None if self.zeros is None else _unpack_groups(self.zeros, d_out)
        return filled.flatten(1)[:d_out, :d_in].contiguous(), _unpack_groups(self.scales, d_out), zeros_OG


def _pack_codes(codes_OK: Tensor, kind: int) -> Tensor:
    bands_BNK = codes_OK.unflatten(0, (-1, BAND))
    if kind == FLOAT8:
        return bands_BNK.transpose(1, 2).contiguous()
    if kind == BYTES:  # band, vector, output, four columns, column
        return bands_BNK.unflatten(2, (-1, 4)).unflatten(1, (2, 16)).permute(0, 3, 1, 2, 4).contiguous()
    halves = bands_BNK.unflatten(2, (-1, 2, 4)).unflatten(1, (2, 16))
    both = halves[..., 0, :] | halves[..., 1, :] << 4
    return both.permute(0, 3, 1, 2, 4).contiguous()


def _unpack_codes(codes: Tensor, kind: int) -> Tensor:
    if kind == FLOAT8:
        return codes.transpose(1, 2).flatten(0, 1)
    if kind == BYTES:
        return codes.permute(0, 2, 3, 1, 4).flatten(3).flatten(0, 2)
    both = codes.permute(0, 2, 3, 1, 4)
    return torch.stack((both & 15, both >> 4), dim=-2).flatten(3).flatten(0, 2)


def _pack_groups(x_OG: Tensor) -> Tensor:
    return F.pad(x_OG, (0, 0, 0, -len(x_OG) % BAND)).unflatten(0, (-1, BAND)).transpose(1, 2).contiguous()


def _unpack_groups(x: Tensor, d_out: int) -> Tensor:
    return x.transpose(1, 2).flatten(0, 1)[:d_out].contiguous()


def available() -> bool:
    """Whether the kernel can be had here; the first call compiles it."""
    return _function() is not None


def linear(x_MI: Tensor, w: Packed) -> Tensor:
    """x times the matrix, [M, O]; contiguous fp32."""
    n_rows = x_MI.shape[0]  # len(x_MI) would take as long as all the rest
    y_MO = x_MI.new_empty(n_rows, w.shape[0])
    function = _function()
    assert function is not None
    function(w.call, x_MI.data_ptr(), None, 0.0, None, y_MO.data_ptr(), n_rows, torch.get_num_threads())
    return y_MO


@functools.cache
def _function() -> Any:
    kernels = library("quantized")
    if kernels is None:
        return None
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    kernels.quantized_linear.argtypes = pointer, pointer, pointer, ctypes.c_double, pointer, pointer, size, size
    kernels.quantized_linear.restype = None
    return kernels.quantized_linear
