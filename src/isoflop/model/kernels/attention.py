"""Causal attention over windows, chunks, caps, sinks and slopes: attention.cpp where it can run, else plain torch.

B batch, T query, S key, H query head, K key/value head, D width of queries and keys, E width of values.
"""

import functools
import struct
from typing import Any

import torch
from torch import Tensor

from isoflop.model.kernels.build import constant_when_compiled, library
from isoflop.model.kernels.plain import EVERYTHING, Options, one_query, torch_attention

_CALL = struct.Struct("43q2d")  # attention.cpp's `Call`: 12 pointers, 7 x 3 strides, 10 sizes, scale and cap

_OPTIONS = "float scale, int start, int? window, int? chunk, float? softcap, Tensor? slopes, Tensor? sinks"
_LIBRARY = torch.library.Library("isoflop", "FRAGMENT")
_LIBRARY.define(f"attention(Tensor q, Tensor k, Tensor v, {_OPTIONS}) -> (Tensor, Tensor)")
_LIBRARY.define(
    f"attention_gradient(Tensor grad, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, {_OPTIONS})"
    " -> (Tensor, Tensor, Tensor, Tensor)"
)


def attention(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKE: Tensor,
    scale: float,
    start: int = 0,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    slopes_H: Tensor | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """softmax(scores) v, [B, T, H, E]; see Options. S >= start + T keys, of which those beyond are not seen; K divides
    H. Our kernel for fp32 on a CPU, for any strides whose last is 1; torch for the rest. The one seam where an
    attention kernel can be exchanged."""
    options = Options(scale, start, window, chunk, softcap, slopes_H, sinks_H)
    _check(q_BTHD, k_BSKD, v_BSKE, options)
    if q_BTHD.shape[1] == 1 and q_BTHD.device.type == "cpu":
        decode = _one if _decodes(q_BTHD, k_BSKD, v_BSKE) else one_query
        return decode(q_BTHD, k_BSKD, v_BSKE, options)
    if not _native(q_BTHD, k_BSKD, v_BSKE):
        return torch_attention(q_BTHD, k_BSKD, v_BSKE, options)
    out: Tensor = torch.ops.isoflop.attention(q_BTHD, k_BSKD, v_BSKE, *options.tuple())[0]
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


def _decodes(*tensors: Tensor) -> bool:
    """Whether the kernel for one query can be called past the dispatcher, which would take as long as a small one:
    nothing is recorded, compiled or faked."""
    real = all(type(x) is Tensor for x in tensors)
    return real and not torch.is_grad_enabled() and not torch.compiler.is_compiling() and _native(*tensors)


@constant_when_compiled
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


def _one(q: Tensor, k: Tensor, v: Tensor, options: Options) -> Tensor:
    """One query, without a gradient."""
    q, k, v, slopes, sinks = _dense(q), _dense(k), _dense(v), _dense(options.slopes_H), _dense(options.sinks_H)
    out = q.new_empty(*q.shape[:3], v.shape[3])
    inputs = q.data_ptr(), k.data_ptr(), v.data_ptr(), _pointer(slopes), _pointer(sinks), out.data_ptr()
    strides = *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *(0,) * 12
    _functions()[2](_CALL.pack(*inputs, 0, 0, 0, 0, 0, 0, *strides, *_sizes(q, k, v, options.tuple())))
    return out


def _gradient(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv, dsinks = _gradient_shape(grad, out, lse, q, k, v, *options)
    if (seen := options[1] + q.shape[1]) < k.shape[1]:
        dk[:, seen:], dv[:, seen:] = 0, 0
    q, k, v, slopes, sinks = _dense(q), _dense(k), _dense(v), _dense(options[5]), _dense(options[6])
    grad, out, lse = _dense(grad), out.contiguous(), lse.contiguous()
    inputs = q.data_ptr(), k.data_ptr(), v.data_ptr(), _pointer(slopes), _pointer(sinks), out.data_ptr(), lse.data_ptr()
    outputs = grad.data_ptr(), dq.data_ptr(), dk.data_ptr(), dv.data_ptr(), dsinks.data_ptr()
    strides = *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *grad.stride()[:3]
    strides = *strides, *dq.stride()[:3], *dk.stride()[:3], *dv.stride()[:3]
    _functions()[1](_CALL.pack(*inputs, *outputs, *strides, *_sizes(q, k, v, options)))
    return dq, dk, dv, dsinks


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
def _functions() -> tuple[Any, Any, Any]:
    kernels = library("attention")
    assert kernels is not None
    return kernels.attention_forward, kernels.attention_backward, kernels.attention_one


def _forward_shape(q: Tensor, k: Tensor, v: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    batch, context, heads, _ = q.shape
    return q.new_empty(batch, context, heads, v.shape[3]), q.new_empty(batch, heads, context)


def _gradient_shape(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, *options: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape), _sinks_shape(lse, options)


def _sinks_shape(lse: Tensor, options: Any) -> Tensor:
    return lse.new_empty(0) if options[-1] is None else lse.new_empty(lse.shape[:2])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *plain, slopes, sinks = inputs
    ctx.plain = plain
    ctx.save_for_backward(*output, q, k, v, slopes, sinks)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, _: None) -> tuple[Tensor | None, ...]:
    out, lse, q, k, v, slopes, sinks = ctx.saved_tensors
    dq, dk, dv, dsinks = torch.ops.isoflop.attention_gradient(grad, out, lse, q, k, v, *ctx.plain, slopes, sinks)
    return dq, dk, dv, *(None,) * 6, None if sinks is None else dsinks.sum(0)


_LIBRARY.impl("attention", _forward, "CPU")
_LIBRARY.impl("attention_gradient", _gradient, "CPU")
torch.library.register_fake("isoflop::attention", _forward_shape, lib=_LIBRARY)
torch.library.register_fake("isoflop::attention_gradient", _gradient_shape, lib=_LIBRARY)
torch.library.register_autograd("isoflop::attention", _differentiate, setup_context=_save, lib=_LIBRARY)
