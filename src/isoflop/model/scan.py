"""The recurrence of Mamba-1 over a whole sequence (Gu and Dao 2023, arXiv 2312.00752, algorithm 2). B batch, T
position, L position in a chunk, C chunk, I d_inner, N d_state.

Each of I * N states decays at its own, input-dependent rate, so no matrix product does the work, and all states of all
tokens at once would be N times the activations: the forward keeps the state that each chunk of tokens finds, the
backward computes a chunk's states again.
"""

import math

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from isoflop.model.kernels import scan as kernel
from isoflop.model.kernels.rows import unrecorded

MIN_CHUNK = 16

# Operators for autograd and for torch.compile, which would otherwise unroll every step. Defined by hand:
# torch.library.custom_op would import torch._dynamo at its first call, a second of every start.
_LIBRARY = torch.library.Library("isoflop", "FRAGMENT")
_INPUTS = "Tensor x, Tensor dt, Tensor a, Tensor b, Tensor c"
_LIBRARY.define(f"selective_scan({_INPUTS}, Tensor state) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(
    f"selective_scan_gradient(Tensor grad_y, Tensor grad_state, {_INPUTS}, Tensor found)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def selective_scan(
    x_BTI: Tensor, dt_BTI: Tensor, a_IN: Tensor, b_BTN: Tensor, c_BTN: Tensor, state_BIN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t a) h_(t-1) + dt_t x_t b_t, y_t = h_t c_t: y [B, T, I] and the last h [B, I, N], all float32;
    `state` is h before the first token, None is zero."""
    if state_BIN is None:
        state_BIN = x_BTI.new_zeros(x_BTI.shape[0], *a_IN.shape)
    elif x_BTI.shape[1] == 1:
        return _step(x_BTI, dt_BTI, a_IN, b_BTN, c_BTN, state_BIN)
    scan = _scan if unrecorded(x_BTI) else torch.ops.isoflop.selective_scan
    y_BTI, last_BIN, _ = scan(x_BTI, dt_BTI, a_IN, b_BTN, c_BTN, state_BIN)
    return y_BTI, last_BIN


def _step(
    x_B1I: Tensor, dt_B1I: Tensor, a_IN: Tensor, b_B1N: Tensor, c_B1N: Tensor, state_BIN: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence."""
    dt_BI1 = dt_B1I.mT
    state_BIN = torch.exp(dt_BI1 * a_IN) * state_BIN + (dt_BI1 * x_B1I.mT) * b_B1N
    return (state_BIN @ c_B1N.mT).mT, state_BIN


def chunk_of(n_tokens: int) -> int:
    """Length of a chunk: as many states are kept as are computed again at a time."""
    return max(MIN_CHUNK, math.isqrt(n_tokens))


def _scan(
    x_BTI: Tensor, dt_BTI: Tensor, a_IN: Tensor, b_BTN: Tensor, c_BTN: Tensor, state_BIN: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the state that each chunk finds, [chunks, B, I, N]."""
    if kernel.available(x_BTI):
        return kernel.scan(x_BTI, dt_BTI, a_IN, b_BTN, c_BTN, state_BIN, chunk_of(x_BTI.shape[1]))
    return torch_scan(x_BTI, dt_BTI, a_IN, b_BTN, c_BTN, state_BIN)


def torch_scan(
    x_BTI: Tensor, dt_BTI: Tensor, a_IN: Tensor, b_BTN: Tensor, c_BTN: Tensor, state_BIN: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same on any device, in any precision."""
    found, outputs = [], []
    state_BIN = state_BIN.clone()
    for chunk in _chunks(x_BTI.shape[1]):
        found.append(state_BIN)
        x_LBI, dt_LBI, b_LBN, c_LBN = (z[:, chunk].transpose(0, 1) for z in (x_BTI, dt_BTI, b_BTN, c_BTN))
        _, states_LBIN = _states(x_LBI, dt_LBI, a_IN, b_LBN, state_BIN)
        outputs.append((states_LBIN @ c_LBN[..., None])[..., 0])
        state_BIN = states_LBIN[-1].clone()
    return torch.cat(outputs).transpose(0, 1).contiguous(), state_BIN, torch.stack(found)


def _scan_gradient(
    grad_y_BTI: Tensor,
    grad_state_BIN: Tensor,
    x_BTI: Tensor,
    dt_BTI: Tensor,
    a_IN: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    found_CBIN: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, a, b, c and of the state before the first token."""
    saved = kernel.Saved(x_BTI, dt_BTI, a_IN, b_BTN, c_BTN, found_CBIN)
    if kernel.available(x_BTI):
        x, dt, a, b, c, state = kernel.scan_gradient(grad_y_BTI, grad_state_BIN, saved, chunk_of(x_BTI.shape[1]))
    else:
        x, dt, a, b, c, state = torch_scan_gradient(grad_y_BTI, grad_state_BIN, saved)
    return x, dt, a, b, c, state


def torch_scan_gradient(grad_y_BTI: Tensor, grad_state_BIN: Tensor, saved: kernel.Saved) -> tuple[Tensor, ...]:
    """The same on any device, in any precision."""
    x_BTI, dt_BTI, a_IN, b_BTN, c_BTN, found_CBIN = saved
    inputs = (grad_y_BTI, x_BTI, dt_BTI, b_BTN, c_BTN)
    grads = [torch.empty_like(z, memory_format=torch.contiguous_format) for z in (x_BTI, dt_BTI, b_BTN, c_BTN)]
    grad_a_IN, later_BIN = torch.zeros_like(a_IN), grad_state_BIN
    for chunk, found_BIN in reversed(list(zip(_chunks(x_BTI.shape[1]), found_CBIN, strict=True))):
        grad_y_LBI, x_LBI, dt_LBI, b_LBN, c_LBN = (z[:, chunk].transpose(0, 1) for z in inputs)
        decay_LBIN, states_LBIN = _states(x_LBI, dt_LBI, a_IN, b_LBN, found_BIN)
        adjoint_LBIN = grad_y_LBI[..., None] * c_LBN[..., None, :]
        for t in reversed(range(len(adjoint_LBIN))):
            adjoint_LBIN[t] += later_BIN
            later_BIN = decay_LBIN[t] * adjoint_LBIN[t]
        grad_c_LBN = (grad_y_LBI[..., None, :] @ states_LBIN)[..., 0, :]
        before_LBIN = torch.cat((found_BIN[None], states_LBIN[:-1]))
        grad_rate_LBIN = decay_LBIN.mul_(adjoint_LBIN).mul_(before_LBIN)
        grad_written_LBI = (adjoint_LBIN @ b_LBN[..., None])[..., 0]
        grad_b_LBN = ((dt_LBI * x_LBI)[..., None, :] @ adjoint_LBIN)[..., 0, :]
        grad_dt_LBI = torch.einsum("lbin,in->lbi", grad_rate_LBIN, a_IN) + grad_written_LBI * x_LBI
        grad_a_IN += torch.einsum("lbin,lbi->in", grad_rate_LBIN, dt_LBI)
        for grad, of_chunk in zip(grads, (grad_written_LBI * dt_LBI, grad_dt_LBI, grad_b_LBN, grad_c_LBN), strict=True):
            grad[:, chunk] = of_chunk.transpose(0, 1)
    return grads[0], grads[1], grad_a_IN, grads[2], grads[3], later_BIN.clone()


def _chunks(n_tokens: int) -> list[slice]:
    length = chunk_of(n_tokens)
    return [slice(start, min(start + length, n_tokens)) for start in range(0, n_tokens, length)]


def _states(x_LBI: Tensor, dt_LBI: Tensor, a_IN: Tensor, b_LBN: Tensor, found_BIN: Tensor) -> tuple[Tensor, Tensor]:
    """Decays and states of a chunk, [L, B, I, N]."""
    decay_LBIN = (dt_LBI[..., None] * a_IN).exp_()
    states_LBIN = (dt_LBI * x_LBI)[..., None] * b_LBN[..., None, :]
    state_BIN = found_BIN
    for t in range(len(states_LBIN)):
        state_BIN = states_LBIN[t].addcmul_(decay_LBIN[t], state_BIN)
    return decay_LBIN, states_LBIN


def _scan_shapes(
    x_BTI: Tensor, dt_BTI: Tensor, a_IN: Tensor, b_BTN: Tensor, c_BTN: Tensor, state_BIN: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    n_chunks = len(_chunks(x_BTI.shape[1]))
    return x_BTI.new_empty(x_BTI.shape), torch.empty_like(state_BIN), state_BIN.new_empty(n_chunks, *state_BIN.shape)


def _scan_gradient_shapes(
    grad_y_BTI: Tensor,
    grad_state_BIN: Tensor,
    x_BTI: Tensor,
    dt_BTI: Tensor,
    a_IN: Tensor,
    b_BTN: Tensor,
    c_BTN: Tensor,
    found_CBIN: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    x, dt, a, b, c, state = (z.new_empty(z.shape) for z in (x_BTI, dt_BTI, a_IN, b_BTN, c_BTN, found_CBIN[0]))
    return x, dt, a, b, c, state


def _remember(ctx: FunctionCtx, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:5], output[2])


def _differentiate(ctx: torch.autograd.function.BackwardCFunction, *grads: Tensor) -> tuple[Tensor, ...]:
    x_BTI, dt_BTI, a_IN, b_BTN, c_BTN, found_CBIN = ctx.saved_tensors
    grad_y_BTI, grad_state_BIN, _ = grads
    grads_in: tuple[Tensor, ...] = torch.ops.isoflop.selective_scan_gradient(
        grad_y_BTI, grad_state_BIN, x_BTI, dt_BTI, a_IN, b_BTN, c_BTN, found_CBIN
    )
    return grads_in


_LIBRARY.impl("selective_scan", _scan, "CompositeExplicitAutograd")
_LIBRARY.impl("selective_scan_gradient", _scan_gradient, "CompositeExplicitAutograd")
torch.library.register_fake("isoflop::selective_scan", _scan_shapes, lib=_LIBRARY)
torch.library.register_fake("isoflop::selective_scan_gradient", _scan_gradient_shapes, lib=_LIBRARY)
torch.library.register_autograd("isoflop::selective_scan", _differentiate, setup_context=_remember, lib=_LIBRARY)
