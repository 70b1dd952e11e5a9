"""scan.cpp for torch. B batch, T position, I d_inner, N d_state, C chunk."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from isoflop.model.kernels.build import library

SHARES = 8  # tasks a sequence is cut into: fixed, so that sums are the same on any machine


class Saved(NamedTuple):
    """What the backward reads of the forward: its inputs, and the state that each chunk found."""

    x_BTI: Tensor
    dt_BTI: Tensor
    a_IN: Tensor
    b_BTN: Tensor
    c_BTN: Tensor
    found_CBIN: Tensor


def available(x: Tensor) -> bool:
    """Whether the kernel takes these tensors: fp32 on a CPU, with a compiler at hand (the first call compiles)."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and library("scan") is not None


def scan(
    x_BTI: Tensor, dt_BTI: Tensor, a_IN: Tensor, b_BTN: Tensor, c_BTN: Tensor, state_BIN: Tensor, length: int
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the last state, and the state that each chunk of `length` tokens finds, [C, B, I, N]."""
    inputs = [z.contiguous() for z in (x_BTI, dt_BTI, a_IN, b_BTN, c_BTN, state_BIN)]
    assert all(z.dtype is torch.float32 for z in inputs), [z.dtype for z in inputs]
    y_BTI, last_BIN = torch.empty_like(inputs[0]), torch.empty_like(inputs[5])
    found_CBIN = last_BIN.new_empty(-(-x_BTI.shape[1] // length), *last_BIN.shape)
    _call("scan_forward", (*inputs, y_BTI, last_BIN, found_CBIN), (*x_BTI.shape, a_IN.shape[1], length))
    return y_BTI, last_BIN, found_CBIN


def scan_gradient(grad_y_BTI: Tensor, grad_state_BIN: Tensor, saved: Saved, length: int) -> tuple[Tensor, ...]:
    """Gradients of x, dt, a, b, c and of the state before the first token."""
    inputs = [z.contiguous() for z in (*saved, grad_y_BTI, grad_state_BIN)]
    assert all(z.dtype is torch.float32 for z in inputs), [z.dtype for z in inputs]
    x, dt, _, b, c, _, _, last = inputs
    grads = (
        torch.empty_like(x),
        torch.empty_like(dt),
        torch.empty_like(last),
        b.new_empty(SHARES, *b.shape),
        c.new_empty(SHARES, *c.shape),
        torch.empty_like(last),
    )
    _call("scan_backward", (*inputs, *grads), (*x.shape, saved.a_IN.shape[1], length, SHARES))
    return grads[0], grads[1], grads[2].sum(0), grads[3].sum(0), grads[4].sum(0), grads[5]


def _call(name: str, tensors: tuple[Tensor, ...], sizes: tuple[int, ...]) -> None:
    pointers = [ctypes.c_void_p(z.data_ptr()) for z in tensors]
    numbers = [ctypes.c_int64(n) for n in (*sizes, torch.get_num_threads())]
    getattr(library("scan"), name)(*pointers, *numbers)
