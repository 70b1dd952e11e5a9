"""One token of each of several sequences through latent attention, as a part of kernels/layers.py, and what of it
other steps need by itself: latent.cpp. N row, H head, X what keys and values take of a latent, R kv_rank, P d_rope, V
d_value."""

import ctypes
import functools
import struct
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isoflop import architecture
from isoflop.model.kernels import paged
from isoflop.model.kernels.build import library
from isoflop.model.kernels.layers import Matrix, Part, address, linear
from isoflop.model.kernels.plain import EVERYTHING
from isoflop.model.kernels.rows import unrecorded

_MIXER = struct.Struct("9q8qd")  # latent.cpp's `Latent`, up to the rows
_HEADS = struct.Struct("5qq")  # latent.cpp's `Heads`


class Weights(NamedTuple):
    """What lies before the last matrix, beside what makes latents: `down` and its norm where queries have a latent of
    their own; `key_value` fp32, contiguous."""

    down: Matrix | None
    up: Matrix
    q_norm: Tensor | None
    kv_norm: Tensor
    key_value_HXR: Tensor


class Pages(NamedTuple):
    """Where latents lie, and tokens of a page."""

    stored: paged.Stored
    tokens: int


def available() -> bool:
    """Whether the kernel can be had here; the first call compiles it."""
    return library("latent") is not None


def part(m: architecture.LatentAttention, w: Weights, scale: float, turns: tuple[int, str], pages: Pages) -> Part:
    """The mixer, over latents in pages; it says where its tensors lie and does not keep them. `turns`: how many
    dimensions turn, and in which layout."""
    functions = address("paged", "paged_attention"), address("rows", "rows_norm")
    norms = 0 if w.q_norm is None else w.q_norm.data_ptr(), w.kv_norm.data_ptr()
    pairs, interleaved = (turns[0] + 1) // 2, int(turns[1] != "half")
    sizes = m.n_heads, m.d_nope, m.d_rope, m.d_value, m.kv_rank, m.q_rank or 0, pairs, interleaved
    head = _MIXER.pack(
        *linear(w.down), *linear(w.up), *functions, *norms, w.key_value_HXR.data_ptr(), *sizes, m.norm_eps
    )
    return Part(address("latent", "latent_mix"), ctypes.create_string_buffer(head + _rows(m, scale, pages)), w)


def meets(x: Tensor, key_value_HXR: Tensor) -> bool:
    """Whether `into_latents` and `out_of_latents` can take these: fp32, nothing recorded."""
    return unrecorded(x) and x.dtype is torch.float32 is key_value_HXR.dtype and available()


def into_latents(m: architecture.LatentAttention, q_NHD: Tensor, key_value_HXR: Tensor) -> Tensor:
    """Queries that meet latents as they are, [N, H, R + P]; a row's bits do not depend on the rows beside it."""
    return _headwise("latent_into", m, q_NHD, key_value_HXR, m.kv_rank + m.d_rope)


def out_of_latents(m: architecture.LatentAttention, mixed_NHR: Tensor, key_value_HXR: Tensor) -> Tensor:
    """Values of mixed latents, [N, H, V], likewise."""
    return _headwise("latent_out", m, mixed_NHR, key_value_HXR, m.d_value)


def _headwise(name: str, m: architecture.LatentAttention, x: Tensor, key_value_HXR: Tensor, width: int) -> Tensor:
    x, matrix = x.contiguous(), key_value_HXR.contiguous()
    y = x.new_empty(*x.shape[:-1], width)
    heads = _HEADS.pack(m.n_heads, m.d_nope, m.d_rope, m.d_value, m.kv_rank, matrix.data_ptr())
    n_rows = x.shape[:-2].numel()
    _function(name)(heads, x.data_ptr(), y.data_ptr(), n_rows, torch.get_num_threads())
    return y


@functools.cache
def _function(name: str) -> Any:
    kernels = library("latent")
    assert kernels is not None
    function, pointer, size = getattr(kernels, name), ctypes.c_void_p, ctypes.c_int64
    function.argtypes, function.restype = (ctypes.c_char_p, pointer, pointer, size, size), None
    return function


def _rows(m: architecture.LatentAttention, scale: float, pages: Pages) -> bytes:
    """paged.h's `Rows`: one head of keys, whose first columns are values; already turned."""
    latents, scales = pages.stored.codes.data_ptr(), pages.stored.scales
    pointers = *[0] * 8, latents, 0 if scales is None else scales.data_ptr(), *[0] * 6
    width = m.kv_rank + m.d_rope
    sizes = *[0] * 5, m.n_heads, 1, width, m.kv_rank, 0, 0, pages.tokens, paged.KINDS[pages.stored.kind]
    return paged.ROWS.pack(*pointers, *sizes, EVERYTHING, EVERYTHING, 0, scale, 0.0, 0.0)
