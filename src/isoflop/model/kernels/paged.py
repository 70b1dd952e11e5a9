"""paged.cpp for torch: attention over pages.

T token, of which the first N are met one by one, H query head, K key/value head, D width of queries and keys, E of
values.
"""

import functools
import struct
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from isoflop.model.kernels.build import library
from isoflop.model.kernels.plain import EVERYTHING, Options
from isoflop.model.rope import Turns

ROWS = struct.Struct("32q3d")  # paged.h's `Rows`: 16 pointers, 16 sizes, scale, cap and eps
KINDS = {"fp32": 0, "bf16": 1, "int8": 2, "int4": 3}
NO_LANES = np.empty((0, 4), dtype=np.int64)


class Stored(NamedTuple):
    """Where vectors lie (isoflop.engine.store): codes [places, K, ..] and, of integers, scales."""

    kind: str
    codes: Tensor
    scales: Tensor | None


def available() -> bool:
    """Whether the kernel can be had here; the first call compiles it."""
    return library("paged") is not None


def paged_attention(
    q_1THD: Tensor,
    k_1TKD: Tensor,
    v_1TKE: Tensor | None,
    where_N2: "np.ndarray[Any, np.dtype[np.int64]]",
    page_tokens: int,
    keys: Stored,
    values: Stored | None,
    d_value: int,
    options: Options,
    turns: Turns | None,
    lanes_L4: "np.ndarray[Any, np.dtype[np.int64]]" = NO_LANES,
) -> Tensor:
    """[1, R, H, E], float32, of the first R of T tokens. First all R keys (turned) and values are stored, then each row
    mixes what it sees of its own sequence, whose tokens before it lie there already. `where`, of the first N rows: the
    address of its sequence's table of pages (int64), and its position. `lanes`, of those after them: table, position of
    the first row, that row, and the one after the last. Without values, those are the first E columns of the keys, and
    there are no lanes."""
    q, k, v = _dense(q_1THD), _dense(k_1TKD), None if v_1TKE is None else _dense(v_1TKE)
    n, n_lanes, heads, width = len(where_N2), len(lanes_L4), q.shape[2], q.shape[3]
    out = torch.empty(1, int(lanes_L4[-1, 3]) if n_lanes else n, heads, d_value)
    o = options
    cos, sin, layout = (None, None, "half") if turns is None else turns
    pointers = q.data_ptr(), k.data_ptr(), _pointer(v), out.data_ptr(), _pointer(cos), _pointer(sin)
    marks = _pointer(o.slopes_H), _pointer(o.sinks_H), keys.codes.data_ptr(), _pointer(keys.scales)
    stored = (0, 0) if values is None else (values.codes.data_ptr(), _pointer(values.scales))
    rows = q.stride(1), k.stride(1), 0 if v is None else v.stride(1)
    sizes = n, n_lanes, heads, k.shape[2], width, d_value, 0 if cos is None else cos.shape[1], int(layout != "half")
    where = where_N2.ctypes.data, lanes_L4.ctypes.data, 0, 0
    kept = page_tokens, KINDS[keys.kind], *reach(o), torch.get_num_threads()
    _function()(ROWS.pack(*pointers, *marks, *stored, *where, *rows, *sizes, *kept, o.scale, o.softcap or 0.0, 0.0))
    return out


def reach(options: Options) -> tuple[int, int]:
    """Window and chunk, as the kernels take them."""
    return options.window or EVERYTHING, options.chunk or EVERYTHING


def _dense(x: Tensor) -> Tensor:
    """float32, each row's heads next to each other."""
    x = x if x.dtype is torch.float32 else x.float()
    return x if x.stride(3) == 1 and x.stride(2) == x.shape[3] else x.contiguous()


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


@functools.cache
def _function() -> Any:
    kernels = library("paged")
    assert kernels is not None
    return kernels.paged_attention
