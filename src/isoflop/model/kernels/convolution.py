"""convolution.cpp for torch. B batch, T position, C channel, K width."""

import ctypes

import torch
from torch import Tensor

from isoflop.model.kernels.build import constant_when_compiled, library
from isoflop.model.kernels.rows import unrecorded

# Defined by hand: torch.library.custom_op would import torch._dynamo at its first call, a second of every start.
_LIBRARY = torch.library.Library("isoflop", "FRAGMENT")
_LIBRARY.define("depthwise_convolution(Tensor x, Tensor kernel, Tensor bias) -> Tensor")
_LIBRARY.define("depthwise_convolution_gradient(Tensor grad, Tensor x, Tensor kernel) -> (Tensor, Tensor, Tensor)")


def convolve(x_BTC: Tensor, kernel_KC: Tensor, bias_C: Tensor) -> Tensor:
    """y_t = bias + sum_k kernel_k x_(t - K + 1 + k), zeros before the first, [B, T, C]; float32 on a CPU."""
    run = _forward if unrecorded(x_BTC) else torch.ops.isoflop.depthwise_convolution
    y_BTC: Tensor = run(x_BTC, kernel_KC, bias_C)
    return y_BTC


@constant_when_compiled
def available() -> bool:
    """Whether the kernel can be had here; the first call compiles it."""
    return library("convolution") is not None


# ---- the operations


def _forward(x_BTC: Tensor, kernel_KC: Tensor, bias_C: Tensor) -> Tensor:
    x_BTC, kernel_KC, y_BTC = _dense(x_BTC), kernel_KC.contiguous(), x_BTC.new_empty(x_BTC.shape)
    sizes = (*x_BTC.shape, len(kernel_KC), *x_BTC.stride()[:2])
    _call("convolution_forward", (x_BTC, kernel_KC, bias_C.contiguous(), y_BTC), sizes)
    return y_BTC


def _gradient(grad_BTC: Tensor, x_BTC: Tensor, kernel_KC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of x, kernel and bias."""
    x_BTC, grad_BTC, kernel_KC = _dense(x_BTC), _dense(grad_BTC), kernel_KC.contiguous()
    grad_x_BTC = x_BTC.new_empty(x_BTC.shape)
    grad_kernel_BKC = kernel_KC.new_empty(len(x_BTC), *kernel_KC.shape)
    grad_bias_BC = kernel_KC.new_empty(len(x_BTC), kernel_KC.shape[1])
    sizes = (*x_BTC.shape, len(kernel_KC), *x_BTC.stride()[:2], *grad_BTC.stride()[:2])
    tensors = (x_BTC, kernel_KC, grad_BTC, grad_x_BTC, grad_kernel_BKC, grad_bias_BC)
    _call("convolution_backward", tensors, sizes)
    return grad_x_BTC, grad_kernel_BKC.sum(0), grad_bias_BC.sum(0)


def _dense(z: Tensor) -> Tensor:
    """z with steps of one along its last dimension; as it is, if it has them."""
    return z if z.stride(-1) == 1 else z.contiguous()


def _call(name: str, tensors: tuple[Tensor, ...], sizes: tuple[int, ...]) -> None:
    pointers = [ctypes.c_void_p(z.data_ptr()) for z in tensors]
    numbers = [ctypes.c_int64(n) for n in (*sizes, torch.get_num_threads())]
    getattr(library("convolution"), name)(*pointers, *numbers)


def _shape(x_BTC: Tensor, kernel_KC: Tensor, bias_C: Tensor) -> Tensor:
    return x_BTC.new_empty(x_BTC.shape)


def _gradient_shapes(grad_BTC: Tensor, x_BTC: Tensor, kernel_KC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return x_BTC.new_empty(x_BTC.shape), kernel_KC.new_empty(kernel_KC.shape), kernel_KC.new_empty(kernel_KC.shape[1:])


def _remember(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate(ctx: torch.autograd.function.BackwardCFunction, grad_BTC: Tensor) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = torch.ops.isoflop.depthwise_convolution_gradient(grad_BTC, *ctx.saved_tensors)
    return grads


_LIBRARY.impl("depthwise_convolution", _forward, "CPU")
_LIBRARY.impl("depthwise_convolution_gradient", _gradient, "CPU")
torch.library.register_fake("isoflop::depthwise_convolution", _shape, lib=_LIBRARY)
torch.library.register_fake("isoflop::depthwise_convolution_gradient", _gradient_shapes, lib=_LIBRARY)
torch.library.register_autograd("isoflop::depthwise_convolution", _differentiate, setup_context=_remember, lib=_LIBRARY)
