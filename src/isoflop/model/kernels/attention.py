"""Causal attention over windows, chunks, caps, sinks and slopes: attention.cpp where it can run, else plain torch.

B batch, T query, S key, H query head, K key/value head, D width of queries and keys, E width of values, N = H + 2K
heads of one fused projection.
"""

import functools
import struct
from typing import Any

import torch
from torch import Tensor

from isoflop.model.kernels.build import library
from isoflop.model.kernels.plain import EVERYTHING, Options, torch_attention

_CALL = struct.Struct("43q2d")  # attention.cpp's `Call`: 12 pointers, 7 x 3 strides, 10 sizes, scale and cap

_OPTIONS = "float scale, int start, int? window, int? chunk, float? softcap, Tensor? slopes, Tensor? sinks"
_LIBRARY = torch.library.Library("isoflop", "FRAGMENT")
_LIBRARY.define(f"attention(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"attention_gradient(Tensor grad, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)
_LIBRARY.define(f"fused_attention(Tensor qkv, int heads, int kv_heads, {_OPTIONS}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"fused_attention_gradient(Tensor grad, Tensor out, Tensor lse, Tensor qkv, int heads, int kv_heads, {_OPTIONS})"
    " -> (Tensor, Tensor)"
)


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
    out: Tensor = torch.ops.isoflop.attention(q_BTHD, k_BSKD, v_BSKE, *options.tuple())[0]
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
    out: Tensor = torch.ops.isoflop.fused_attention(qkv_BTND, n_heads, n_kv_heads, *options.tuple())[0]
    return out


def _check(q: Tensor, k: Tensor, v: Tensor, options: Options) -> None:
    assert k.shape[1] == v.shape[1] >= options.start + q.shape[1], "fewer keys than positions"
    assert q.shape[3] == k.shape[3] and k.shape[2] == v.shape[2] and q.shape[2] % k.shape[2] == 0
    assert options.window is None or options.window > 0
    assert options.chunk is None or options.chunk > 0
    assert options.softcap is None or options.softcap > 0


def _native(*tensors: Tensor) -> bool:
    """On the meta device too, where the operator is its shapes: what is counted there is what a CPU would run."""
    devices = {x.device.type for x in tensors}
    return all(x.dtype == torch.float32 for x in tensors) and (
        devices == {"meta"} or (devices == {"cpu"} and available())
    )


@torch.compiler.assume_constant_result
def available() -> bool:
    """Whether the kernel can be had here; the first call compiles it."""
    return library("attention") is not None


# ---- the operations


def _forward(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    q, k, v, slopes, sinks = _dense(q), _dense(k), _dense(v), _dense(options[5]), _dense(options[6])
    out, lse = _forward_shape(q, k, v)
    inputs = q.data_ptr(), k.data_ptr(), v.data_ptr(), _pointer(slopes), _pointer(sinks), out.data_ptr(), lse.data_ptr()
    strides = *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *(0,) * 12
    _functions()[0](_CALL.pack(*inputs, 0, 0, 0, 0, 0, *strides, *_sizes(q, k, v, options)))
    return out, lse


def _gradient(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, dsinks = _gradient_shape(grad, out, lse, q, k, v, *options)
    if (seen := options[1] + q.shape[1]) < k.shape[1]:
        dk[:, seen:], dv[:, seen:] = 0, 0
    _backward(grad, out, lse, q, k, v, dq, dk, dv, dsinks, options)
    return dq, dk, dv, dsinks


def _fused_forward(qkv: Tensor, heads: int, kv_heads: int, *options: Any) -> tuple[Tensor, Tensor]:
    return _forward(*qkv.split((heads, kv_heads, kv_heads), 2), *options)


def _fused_gradient(
    grad: Tensor, out: Tensor, lse: Tensor, qkv: Tensor, heads: int, kv_heads: int, *options: Any
) -> tuple[Tensor, Tensor]:
    dqkv, dsinks = _fused_gradient_shape(grad, out, lse, qkv, heads, kv_heads, *options)
    q, k, v = qkv.split((heads, kv_heads, kv_heads), 2)
    dq, dk, dv = dqkv.split((heads, kv_heads, kv_heads), 2)
    _backward(grad, out, lse, q, k, v, dq, dk, dv, dsinks, options)
    return dqkv, dsinks


def _backward(
    grad: Tensor,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    dsinks: Tensor,
    options: Any,
) -> None:
    q, k, v, slopes, sinks = _dense(q), _dense(k), _dense(v), _dense(options[5]), _dense(options[6])
    grad, out, lse = _dense(grad), out.contiguous(), lse.contiguous()
    inputs = q.data_ptr(), k.data_ptr(), v.data_ptr(), _pointer(slopes), _pointer(sinks), out.data_ptr(), lse.data_ptr()
    outputs = grad.data_ptr(), dq.data_ptr(), dk.data_ptr(), dv.data_ptr(), dsinks.data_ptr()
    strides = *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *grad.stride()[:3]
    strides = *strides, *dq.stride()[:3], *dk.stride()[:3], *dv.stride()[:3]
    _functions()[1](_CALL.pack(*inputs, *outputs, *strides, *_sizes(q, k, v, options)))


def _dense(x: Any) -> Any:
    """x with steps of one along its last dimension; as it is, if it has them."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _sizes(q: Tensor, k: Tensor, v: Tensor, options: Any) -> tuple[Any, ...]:
    scale, start, window, chunk, softcap, _, _ = options
    batch, context, heads, width = q.shape
    reach = window or EVERYTHING, chunk or EVERYTHING
    threads = torch.get_num_threads()
    return batch, context, heads, k.shape[2], width, v.shape[3], start, *reach, threads, scale, softcap or 0.0


@functools.cache
def _functions() -> tuple[Any, Any]:
    kernels = library("attention")
    assert kernels is not None
    return kernels.attention_forward, kernels.attention_backward


def _forward_shape(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    batch, context, heads, _ = q.shape
    return q.new_empty(batch, context, heads, v.shape[3]), q.new_empty(batch, heads, context)


def _fused_shape(qkv: Tensor, heads: int, kv_heads: int, *options: Any) -> tuple[Tensor, Tensor]:
    batch, context, _, width = qkv.shape
    return qkv.new_empty(batch, context, heads, width), qkv.new_empty(batch, heads, context)


def _gradient_shape(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), _sinks_shape(lse, options)


def _fused_gradient_shape(grad: Tensor, out: Tensor, lse: Tensor, qkv: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    return qkv.new_empty(qkv.shape), _sinks_shape(lse, options)


def _sinks_shape(lse: Tensor, options: Any) -> Tensor:
    return lse.new_empty(0) if options[-1] is None else lse.new_empty(lse.shape[:2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, slopes, sinks = inputs
    ctx.rest = [x for x in tensors if not isinstance(x, Tensor)]
    ctx.save_for_backward(*output, *(x for x in tensors if isinstance(x, Tensor)), slopes, sinks)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    out, lse, q, k, v, slopes, sinks = ctx.saved_tensors
    dq, dk, dv, dsinks = torch.ops.isoflop.attention_gradient(grad, out, lse, q, k, v, *ctx.rest, slopes, sinks)
    return dq, dk, dv, *(None,) * 6, None if sinks is None else dsinks.sum(0)


def _differentiate_fused(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    out, lse, qkv, slopes, sinks = ctx.saved_tensors
    dqkv, dsinks = torch.ops.isoflop.fused_attention_gradient(grad, out, lse, qkv, *ctx.rest, slopes, sinks)
    return dqkv, *(None,) * 8, None if sinks is None else dsinks.sum(0)


for _name, _kernel, _shape in (
    ("attention", _forward, _forward_shape),
    ("attention_gradient", _gradient, _gradient_shape),
    ("fused_attention", _fused_forward, _fused_shape),
    ("fused_attention_gradient", _fused_gradient, _fused_gradient_shape),
):
    _LIBRARY.impl(_name, _kernel, "CPU")
    torch.library.register_fake(f"isoflop::{_name}", _shape, lib=_LIBRARY)
torch.library.register_autograd("isoflop::attention", _differentiate, setup_context=_save, lib=_LIBRARY)
torch.library.register_autograd("isoflop::fused_attention", _differentiate_fused, setup_context=_save, lib=_LIBRARY)
