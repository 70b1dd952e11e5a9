"""weights.cpp for torch. B batch, C chunk, G group of heads, H head, L position that reads, S one that is read."""

import ctypes

import torch
from torch import Tensor

from isoflop.model.kernels.build import constant_when_compiled, library
from isoflop.model.kernels.rows import unrecorded

# Defined by hand: torch.library.custom_op would import torch._dynamo at its first call, a second of every start.
_LIBRARY = torch.library.Library("isoflop", "FRAGMENT")
_LIBRARY.define("chunk_weights(Tensor log, Tensor scores) -> Tensor")
_LIBRARY.define("chunk_weights_gradient(Tensor grad, Tensor log, Tensor scores) -> (Tensor, Tensor)")


def chunk_weights(log_BCHL: Tensor, scores_BCGLS: Tensor) -> Tensor:
    """exp(log_L - log_S) times the group's score for S <= L, else 0, [B, C, H, L, S]; log float64, scores float32."""
    weigh = _forward if unrecorded(scores_BCGLS) else torch.ops.isoflop.chunk_weights
    weights_BCHLS: Tensor = weigh(log_BCHL, scores_BCGLS)
    return weights_BCHLS


@constant_when_compiled
def available() -> bool:
    """Whether the kernel can be had here; the first call compiles it."""
    return library("weights") is not None


# ---- the operations


def _forward(log_BCHL: Tensor, scores_BCGLS: Tensor) -> Tensor:
    log_BCHL, scores_BCGLS = log_BCHL.contiguous(), scores_BCGLS.contiguous()
    weights_BCHLS = scores_BCGLS.new_empty(*log_BCHL.shape, log_BCHL.shape[-1])
    _call("weights_forward", (log_BCHL, scores_BCGLS, weights_BCHLS), log_BCHL, scores_BCGLS)
    return weights_BCHLS


def _gradient(grad_BCHLS: Tensor, log_BCHL: Tensor, scores_BCGLS: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of log and scores."""
    grad_BCHLS, log_BCHL, scores_BCGLS = grad_BCHLS.contiguous(), log_BCHL.contiguous(), scores_BCGLS.contiguous()
    grad_log_BCHL, grad_scores_BCGLS = torch.empty_like(log_BCHL), torch.empty_like(scores_BCGLS)
    tensors = (log_BCHL, scores_BCGLS, grad_BCHLS, grad_scores_BCGLS, grad_log_BCHL)
    _call("weights_backward", tensors, log_BCHL, scores_BCGLS)
    return grad_log_BCHL, grad_scores_BCGLS


def _call(name: str, tensors: tuple[Tensor, ...], log_BCHL: Tensor, scores_BCGLS: Tensor) -> None:
    batch, chunks, groups, length, _ = scores_BCGLS.shape
    sizes = (batch * chunks * groups, log_BCHL.shape[2] // groups, length, torch.get_num_threads())
    pointers = [ctypes.c_void_p(z.data_ptr()) for z in tensors]
    getattr(library("weights"), name)(*pointers, *map(ctypes.c_int64, sizes))


def _shape(log_BCHL: Tensor, scores_BCGLS: Tensor) -> Tensor:
    return scores_BCGLS.new_empty(*log_BCHL.shape, log_BCHL.shape[-1])


def _gradient_shapes(grad_BCHLS: Tensor, log_BCHL: Tensor, scores_BCGLS: Tensor) -> tuple[Tensor, Tensor]:
    return log_BCHL.new_empty(log_BCHL.shape), scores_BCGLS.new_empty(scores_BCGLS.shape)


def _remember(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: torch.autograd.function.BackwardCFunction, grad_BCHLS: Tensor) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = torch.ops.isoflop.chunk_weights_gradient(grad_BCHLS, *ctx.saved_tensors)
    return grads


_LIBRARY.impl("chunk_weights", _forward, "CPU")
_LIBRARY.impl("chunk_weights_gradient", _gradient, "CPU")
torch.library.register_fake("isoflop::chunk_weights", _shape, lib=_LIBRARY)
torch.library.register_fake("isoflop::chunk_weights_gradient", _gradient_shapes, lib=_LIBRARY)
torch.library.register_autograd("isoflop::chunk_weights", _differentiate, setup_context=_remember, lib=_LIBRARY)
