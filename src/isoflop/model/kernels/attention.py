"""Causal attention over windows, chunks, caps, sinks and slopes, at memory linear in the context.

B batch, T query, S key, H query head, K key/value head, G = H / K heads that share one, D width of queries and keys,
E width of values, N = H + 2K heads of one fused projection.
"""

import math
import struct
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from isoflop.model.kernels.build import library

BLOCK = 128  # queries of a block of the torch implementation
EVERYTHING = 1 << 40  # a window, or a chunk, that holds every key

_OPTIONS = "float scale, int start, int? window, int? chunk, float? softcap, Tensor? slopes, Tensor? sinks"
_LIBRARY = torch.library.Library("isoflop", "FRAGMENT")
_LIBRARY.define(f"attention(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"attention_gradient(Tensor grad, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(
    f"fused_attention_gradient(Tensor grad, Tensor out, Tensor lse, Tensor qkv, int heads, int kv_heads, {_OPTIONS})"
    " -> (Tensor, Tensor)"
)


@dataclass(frozen=True)
class Options:
    """Query t stands at position start + t. It sees key s if s <= position, position - s < window, and both lie in the
    same chunk. Its score is scale * q.k, capped to softcap * tanh(score / softcap), less slopes_H * (position - s)
    (ALiBi); sinks_H are scores that only the softmax's denominator knows. Sinks learn, slopes do not."""

    scale: float
    start: int = 0
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    slopes_H: Tensor | None = None
    sinks_H: Tensor | None = None

    @property
    def causal_only(self) -> bool:
        rest = (self.window, self.chunk, self.softcap, self.slopes_H, self.sinks_H)
        return self.start == 0 and all(x is None for x in rest)

    def tuple(self) -> tuple[Any, ...]:
        return self.scale, self.start, self.window, self.chunk, self.softcap, self.slopes_H, self.sinks_H


def attention(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKE: Tensor,
    *,
    scale: float,
    start: int = 0,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    slopes_H: Tensor | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """softmax(scores) v, [B, T, H, E]; see Options. S >= start + T keys, of which those beyond are not seen; K divides
    H. Our kernel for fp32 on a CPU, for any strides whose last is 1; torch for the rest."""
    options = Options(scale, start, window, chunk, softcap, slopes_H, sinks_H)
    _check(q_BTHD, k_BSKD, v_BSKE, options)
    if not _native(q_BTHD, k_BSKD, v_BSKE):
        return torch_attention(q_BTHD, k_BSKD, v_BSKE, options)
    out: Tensor = _Attention.apply(q_BTHD, k_BSKD, v_BSKE, *options.tuple())
    return out


def fused_attention(
    qkv_BTND: Tensor,
    n_heads: int,
    n_kv_heads: int,
    *,
    scale: float,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    slopes_H: Tensor | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """`attention` of one tensor's first H heads with its next K as keys and its last K as values, [B, T, H, D]: the
    gradient is one tensor too, written once."""
    options = Options(scale, 0, window, chunk, softcap, slopes_H, sinks_H)
    q, k, v = qkv_BTND.split((n_heads, n_kv_heads, n_kv_heads), dim=2)
    _check(q, k, v, options)
    if not _native(q, k, v):
        return torch_attention(q, k, v, options)
    out: Tensor = _FusedAttention.apply(qkv_BTND, n_heads, n_kv_heads, *options.tuple())
    return out


def _check(q: Tensor, k: Tensor, v: Tensor, options: Options) -> None:
    assert k.shape[1] == v.shape[1] >= options.start + q.shape[1], "fewer keys than positions"
    assert q.shape[3] == k.shape[3] and k.shape[2] == v.shape[2] and q.shape[2] % k.shape[2] == 0
    assert options.window is None or options.window > 0
    assert options.chunk is None or options.chunk > 0
    assert options.softcap is None or options.softcap > 0


def _native(*tensors: Tensor) -> bool:
    return all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors) and available()


@torch.compiler.assume_constant_result  # type: ignore[misc]
def available() -> bool:
    """Whether the kernel can be had here; the first call compiles it."""
    return library("attention") is not None


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *options: Any) -> Tensor:
        out, lse = torch.ops.isoflop.attention(q, k, v, *options)
        ctx.save_for_backward(out, lse, q, k, v, *options[-2:])
        ctx.options = options[:-2]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, slopes, sinks = ctx.saved_tensors
        dq, dk, dv, dsinks = torch.ops.isoflop.attention_gradient(grad, *saved, *ctx.options, slopes, sinks)
        return dq, dk, dv, *(None,) * 6, None if sinks is None else dsinks.sum(0)


class _FusedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, kv_heads: int, *options: Any) -> Tensor:
        out, lse = torch.ops.isoflop.attention(*qkv.split((heads, kv_heads, kv_heads), dim=2), *options)
        ctx.save_for_backward(out, lse, qkv, *options[-2:])
        ctx.options = heads, kv_heads, *options[:-2]
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *saved, slopes, sinks = ctx.saved_tensors
        dqkv, dsinks = torch.ops.isoflop.fused_attention_gradient(grad, *saved, *ctx.options, slopes, sinks)
        return dqkv, *(None,) * 8, None if sinks is None else dsinks.sum(0)


# ---- the operations


def _forward(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    q, k, v, slopes, sinks = _dense(q), _dense(k), _dense(v), _dense(options[-2]), _dense(options[-1])
    out, lse = _forward_shape(q, k, v)
    pointers = (q, k, v, slopes, sinks, out, lse, None, None, None, None, None)
    _call("attention_forward", pointers, (q, k, v, None, None, None, None), q, k, v, options)
    return out, lse


def _gradient(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, dsinks = _gradient_shape(grad, out, lse, q, k, v)
    if (seen := options[1] + q.shape[1]) < k.shape[1]:
        dk[:, seen:], dv[:, seen:] = 0, 0
    _backward(grad, out, lse, (q, k, v), (dq, dk, dv), dsinks, options)
    return dq, dk, dv, dsinks


def _fused_gradient(
    grad: Tensor, out: Tensor, lse: Tensor, qkv: Tensor, heads: int, kv_heads: int, *options: Any
) -> tuple[Tensor, Tensor]:
    dqkv, dsinks = _fused_gradient_shape(grad, out, lse, qkv)
    split = (heads, kv_heads, kv_heads)
    _backward(grad, out, lse, qkv.split(split, dim=2), dqkv.split(split, dim=2), dsinks, options)
    return dqkv, dsinks


def _backward(grad: Tensor, out: Tensor, lse: Tensor, qkv: Any, dqkv: Any, dsinks: Tensor, options: Any) -> None:
    q, k, v = (_dense(x) for x in qkv)
    grad, out, slopes, sinks = _dense(grad), out.contiguous(), _dense(options[-2]), _dense(options[-1])
    pointers = (q, k, v, slopes, sinks, out, lse, grad, *dqkv, None if sinks is None else dsinks)
    _call("attention_backward", pointers, (q, k, v, grad, *dqkv), q, k, v, options)


def _dense(x: Any) -> Any:
    """x with steps of one along its last dimension; as it is, if it has them."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _call(name: str, pointers: Any, strided: Any, q: Tensor, k: Tensor, v: Tensor, options: Any) -> None:
    """Pack the arguments as attention.cpp's `Call`, and run."""
    scale, start, window, chunk, softcap, _, _ = options
    strides = [n for x in strided for n in ((0, 0, 0) if x is None else x.stride()[:3])]
    call = struct.pack(
        "43q2d",
        *[0 if x is None else x.data_ptr() for x in pointers],
        *strides,
        *q.shape[:3],
        k.shape[2],
        q.shape[3],
        v.shape[3],
        start,
        window or EVERYTHING,
        chunk or EVERYTHING,
        torch.get_num_threads(),
        scale,
        softcap or 0.0,
    )
    getattr(library("attention"), name)(call)


def _forward_shape(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    batch, context, heads = q.shape[:3]
    return q.new_empty(batch, context, heads, v.shape[-1]), q.new_empty(batch, heads, context)


def _gradient_shape(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), lse.new_empty(lse.shape[:2])


def _fused_gradient_shape(grad: Tensor, out: Tensor, lse: Tensor, qkv: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), lse.new_empty(lse.shape[:2])


_LIBRARY.impl("attention", _forward, "CPU")
_LIBRARY.impl("attention_gradient", _gradient, "CPU")
_LIBRARY.impl("fused_attention_gradient", _fused_gradient, "CPU")
torch.library.register_fake("isoflop::attention", _forward_shape, lib=_LIBRARY)
torch.library.register_fake("isoflop::attention_gradient", _gradient_shape, lib=_LIBRARY)
torch.library.register_fake("isoflop::fused_attention_gradient", _fused_gradient_shape, lib=_LIBRARY)


# ---- plain torch


def torch_attention(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKE: Tensor, options: Options) -> Tensor:
    """What `attention` computes, on any device and dtype, differentiable by autograd."""
    if options.causal_only:
        return _sdpa(q_BTHD, k_BSKD, v_BSKE, options.scale)
    context = q_BTHD.shape[1]
    if context <= BLOCK:
        return _block(q_BTHD, k_BSKD, v_BSKE, 0, options)
    blocks = []
    for t in range(0, context, BLOCK):  # recomputed in the backward, else it would keep the scores of every block
        q = q_BTHD[:, t : t + BLOCK]
        blocks.append(checkpoint(_block, q, k_BSKD, v_BSKE, t, options, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(blocks, dim=1)


def _sdpa(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKE: Tensor, scale: float) -> Tensor:
    context = q_BTHD.shape[1]
    q, k, v = (x[:, :context].transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKE))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped).transpose(1, 2)


def _block(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKE: Tensor, t: int, options: Options) -> Tensor:
    """Queries from t on, with the keys that any of them sees."""
    o, n = options, q_BTHD.shape[1]
    position_T = torch.arange(o.start + t, o.start + t + n, device=q_BTHD.device)
    first = max(0, o.start + t + 1 - (o.window or EVERYTHING), (o.start + t) // (o.chunk or EVERYTHING) * (o.chunk or 0))
    key_S = torch.arange(first, o.start + t + n, device=q_BTHD.device)
    k, v = (x[:, first : o.start + t + n].permute(0, 2, 3, 1).unsqueeze(2) for x in (k_BSKD, v_BSKE))  # [B, K, 1, D, S]
    q_BKGTD = q_BTHD.unflatten(2, (k.shape[1], -1)).permute(0, 2, 3, 1, 4)
    distance_TS = position_T[:, None] - key_S
    seen_TS = (distance_TS >= 0) & (distance_TS < (o.window or EVERYTHING))
    if o.chunk is not None:
        seen_TS = seen_TS & (position_T[:, None] // o.chunk == key_S // o.chunk)
    score = ((q_BKGTD * o.scale) @ k).float() if q_BTHD.dtype != torch.float64 else (q_BKGTD * o.scale) @ k
    if o.softcap is not None:
        score = o.softcap * torch.tanh(score / o.softcap)
    if o.slopes_H is not None:
        score = score - o.slopes_H.to(score.dtype).view(k.shape[1], -1, 1, 1) * distance_TS
    score = score.masked_fill(~seen_TS, -math.inf)
    total = score.logsumexp(-1, keepdim=True)
    if o.sinks_H is not None:
        total = torch.logaddexp(total, o.sinks_H.to(score.dtype).view(k.shape[1], -1, 1, 1))
    mixed_BKGTE = (score - total).exp().to(v.dtype) @ v.transpose(-1, -2)
    return mixed_BKGTE.permute(0, 3, 1, 2, 4).flatten(2, 3)
