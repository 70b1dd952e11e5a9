"""Decoder layers over rows in one call: layers.cpp. N row, M d_model."""

import ctypes
import functools
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isoflop.model.kernels import paged, quantized, rows
from isoflop.model.kernels.build import library
from isoflop.model.kernels.plain import Options

ACTIVATIONS = "relu", "relu2", "silu", "gelu-tanh", "swiglu", "geglu-tanh"  # layers.cpp's Activation
_HALF = struct.Struct("2q2q")  # the two matrices of a half: function and matrix each
_LAYER = struct.Struct("3qd11q")  # layers.cpp's Layer, from the norms on to the feed-forward
_STEP = struct.Struct("10q")  # layers.cpp's Step


class Matrix(NamedTuple):
    """What multiplies rows: the address of a function, and what it takes for the matrix, which it does not keep."""

    function: int
    call: Any

    @property
    def address(self) -> int:
        return ctypes.addressof(self.call)


def of_few_bits(packed: quantized.Packed) -> Matrix:
    return Matrix(address("quantized", "quantized_linear"), packed.call)


def as_it_lies(weight_OI: Tensor, bias_O: Tensor | None) -> Matrix:
    """Of fp32 or bf16, with a bias of fp32."""
    return Matrix(address("rows", "rows_linear"), ctypes.create_string_buffer(rows.matrix(weight_OI, bias_O)))


class Part(NamedTuple):
    """A mixer, or a feed-forward, that another library computes: the address of a function of part.h, what it is told,
    and what that points to and must be kept."""

    function: int
    call: Any
    kept: Any

    @property
    def address(self) -> int:
        return ctypes.addressof(self.call)


def linear(matrix: Matrix | None) -> tuple[int, int]:
    """part.h's Linear."""
    return (0, 0) if matrix is None else (matrix.function, matrix.address)


class Mixing(NamedTuple):
    """The first half of a layer: attention over pages."""

    qkv: Matrix
    out: Matrix
    norm: Tensor
    options: Options
    heads: tuple[int, int, int]  # of queries, of keys; their width
    layout: str | None  # of the turns, where there are any
    head_norms: tuple[Tensor, Tensor] | None
    page_tokens: int
    keys: paged.Stored
    values: paged.Stored
    group: int  # which of a step's tables of pages
    rope: int  # which of a step's turns
    d_rotated: int


class OtherMixing(NamedTuple):
    """The first half of a layer whose mixer is no attention over keys and values."""

    first: Matrix
    out: Matrix
    norm: Tensor
    widths: tuple[int, int]  # after the first matrix, before the last
    part: Part
    group: int = -1
    rope: int = -1


class OtherFeedForward(NamedTuple):
    """The second half of a layer that is not two matrices."""

    norm: Tensor
    part: Part


class FeedForward(NamedTuple):
    """The second half of a layer."""

    up: Matrix
    down: Matrix
    norm: Tensor
    widths: tuple[int, int]  # before the activation, after it
    activation: str


def layer(
    mixing: Mixing | OtherMixing | None, feed_forward: FeedForward | OtherFeedForward | None, eps: float
) -> bytes:
    """A layer as `run` takes it; it says where its tensors lie and does not keep them."""
    m, f = mixing, feed_forward
    attends = m if isinstance(m, Mixing) else None
    matrices = f if isinstance(f, FeedForward) else None
    first = None if m is None else m.qkv if isinstance(m, Mixing) else m.first
    head = _half(first, m and m.out) + _half(matrices and matrices.up, matrices and matrices.down)
    norms = 0 if m is None else m.norm.data_ptr(), 0 if f is None else f.norm.data_ptr()
    group, rope = (0, -1) if m is None else (m.group, m.rope)
    widths = (0, 0) if matrices is None else matrices.widths
    activation = 0 if matrices is None else ACTIVATIONS.index(matrices.activation)
    parts = *_part(m), *_part(f)
    attend = address("paged", "paged_attention")
    return (
        head
        + _LAYER.pack(*norms, attend, eps, group, rope, *_widths(m), *widths, activation, *parts)
        + (bytes(paged.ROWS.size) if attends is None else _rows(attends, eps))
    )


def _widths(m: Mixing | OtherMixing | None) -> tuple[int, int]:
    match m:
        case None:
            return 0, 0
        case Mixing(heads=(n_heads, n_kv_heads, width)):
            return (n_heads + 2 * n_kv_heads) * width, n_heads * width
        case OtherMixing(widths=widths):
            return widths


def _part(half: Any) -> tuple[int, int]:
    other = isinstance(half, OtherMixing | OtherFeedForward)
    return (half.part.function, half.part.address) if other else (0, 0)


class Places(NamedTuple):
    """Where a step's rows are, for each group of layers: addresses of the places of rows that are met one by one, and
    of the lanes of the others; how many there are of either."""

    where: list[int]
    lanes: list[int]
    alone: int
    n_lanes: int
    slots: Tensor | None = None  # of each row, int64, where each brings one token


def run(layers: Any, n: int, x_NM: Tensor, places: Places, turns: Sequence[tuple[Tensor, Tensor]]) -> None:
    """x of contiguous fp32, through n layers, in place."""
    tables = [_addresses(x) for x in (places.where, places.lanes, [x.data_ptr() for pair in turns for x in pair])]
    sizes = *x_NM.shape, places.alone, places.n_lanes, torch.get_num_threads()
    slots = _pointer(places.slots)
    _function()(layers, n, _STEP.pack(x_NM.data_ptr(), *map(ctypes.addressof, tables), slots, *sizes))


def _addresses(of: list[int]) -> Any:
    return (ctypes.c_int64 * len(of))(*of)


def available() -> bool:
    """Whether the kernels can be had here; the first call compiles them."""
    return all(library(name) is not None for name in ("layers", "paged", "quantized", "rows"))


def _half(first: Matrix | None, second: Matrix | None) -> bytes:
    if first is None or second is None:
        return bytes(_HALF.size)
    return _HALF.pack(first.function, first.address, second.function, second.address)


def _rows(m: Mixing, eps: float) -> bytes:
    o, (n_heads, n_kv_heads, width) = m.options, m.heads
    marks = _pointer(o.slopes_H), _pointer(o.sinks_H)
    stored = m.keys.codes.data_ptr(), _pointer(m.keys.scales), m.values.codes.data_ptr(), _pointer(m.values.scales)
    norms = (0, 0) if m.head_norms is None else [x.data_ptr() for x in m.head_norms]
    sizes = n_heads, n_kv_heads, width, width, (m.d_rotated + 1) // 2, int(m.layout != "half")
    kept = m.page_tokens, paged.KINDS[m.keys.kind], *paged.reach(o), 0
    parts = *[0] * 6, *marks, *stored, 0, 0, *norms, *[0] * 5, *sizes, *kept
    return paged.ROWS.pack(*parts, o.scale, o.softcap or 0.0, eps)


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


@functools.cache
def address(name: str, function: str) -> int:
    """Of a function of a library that can be had."""
    kernels = library(name)
    assert kernels is not None
    return ctypes.cast(getattr(kernels, function), ctypes.c_void_p).value or 0


@functools.cache
def _function() -> Any:
    kernels = library("layers")
    assert kernels is not None
    kernels.run_layers.argtypes = ctypes.c_void_p, ctypes.c_int64, ctypes.c_char_p
    kernels.run_layers.restype = None
    return kernels.run_layers
