"""FLOPs of one operator call, from its own arguments and nothing else: what the closed forms of cost/ are held against.

torch knows the products among its own operators; those of our kernels are told here. Attention is counted pair by
pair: every query against each key that the operator's mask lets it see. B batch, T query, S key, H query head, D width
of queries and keys, E width of values, R row, M in, F out.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import flop_registry

import isoflop.model  # noqa: F401 (defines the operators)

Packet = Any  # an operator, whatever its overload: torch._ops.OpOverloadPacket


def flops_of(function: Packet, args: tuple[Any, ...], out: Any, whole: bool) -> int:
    """FLOPs of `function(*args) = out`; `whole`: attention as if each query saw every key. 0 for elementwise work."""
    if function in ATTENTION:
        return ATTENTION[function](args, whole)
    if function in _GROUPED:
        return _GROUPED[function](args)
    formula = flop_registry.get(function)
    return 0 if formula is None else int(formula(*args, out_val=out))


@functools.cache
def visible_pairs(n_queries: int, n_keys: int, start: int, window: int | None, chunk: int | None) -> int:
    """Pairs of a query and a key that it may see, counted query by query: query t stands at p = start + t and sees the
    keys s <= p of its own chunk with p - s < window."""
    at = np.arange(start, start + n_queries)
    first = np.zeros_like(at)
    if window is not None:
        first = np.maximum(first, at - window + 1)
    if chunk is not None:
        first = np.maximum(first, at - at % chunk)
    last = np.minimum(at, n_keys - 1)
    return int(np.maximum(last - first + 1, 0).sum())


def _attention(args: tuple[Any, ...], whole: bool) -> int:
    """Scores and weighted sums: 2 (D + E) for each pair and head."""
    q, k, v, _scale, start, window, chunk = args[:7]
    batch, n_queries, n_heads, width = q.shape
    n_keys = k.shape[1]
    pairs = n_queries * n_keys if whole else visible_pairs(n_queries, n_keys, start, window, chunk)
    return int(2 * batch * n_heads * (width + v.shape[-1]) * pairs)


def _attention_gradient(args: tuple[Any, ...], whole: bool) -> int:
    """Each of the two products has a gradient for both of its factors. The scores that a kernel computes again to save
    memory are its own affair."""
    return 2 * _attention(args[3:], whole)


def _grouped(args: tuple[Any, ...]) -> int:
    """Each row meets one matrix [M, F] of its group."""
    x_RM, weight_EMF = args[:2]
    return int(2 * x_RM.shape[0] * x_RM.shape[1] * weight_EMF.shape[-1])


def _grouped_weight_gradient(args: tuple[Any, ...]) -> int:
    """Each row makes one outer product [M, F]."""
    x_RM, grad_RF = args[:2]
    return int(2 * x_RM.shape[0] * x_RM.shape[1] * grad_RF.shape[1])


def _linear(args: tuple[Any, ...]) -> int:
    x_RM, weight_FM = args[:2]
    return int(2 * x_RM.shape[0] * weight_FM.shape[0] * weight_FM.shape[1])


_OURS = torch.ops.isoflop
ATTENTION: dict[Packet, Callable[[tuple[Any, ...], bool], int]] = {
    _OURS.attention: _attention,
    _OURS.attention_gradient: _attention_gradient,
}
_GROUPED: dict[Packet, Callable[..., int]] = {
    _OURS.grouped_matmul: _grouped,
    _OURS.grouped_weight_gradient: _grouped_weight_gradient,
    _OURS.onednn_linear: _linear,
}
GROUPED = _OURS.grouped_matmul
