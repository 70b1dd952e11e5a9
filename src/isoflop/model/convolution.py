"""Causal depthwise convolution. B batch, T position, C channel, K width of the kernel, S = T + K - 1
position with the past."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.model.kernels import convolution as kernel


class CausalConvolution(nn.Module):
    """y_t = bias + sum_k kernel_k x_(t - K + 1 + k), each channel on its own; kernel [C, K], its last column meets x_t.
    It is no matrix: optimizers that scale or orthogonalise matrices leave it alone."""

    def __init__(self, channels: int, width: int, bias: bool) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.empty(channels, width))
        self.bias = nn.Parameter(torch.empty(channels)) if bias else None

    def forward(self, x_BTC: Tensor, window_BKC: Tensor | None = None) -> Tensor:
        """[B, T, C]. The window holds the last K inputs, zeros before the first, moves on in place; None: no past."""
        kernel_KC = self.kernel.t().to(x_BTC.dtype)
        bias_C = kernel_KC.new_zeros(kernel_KC.shape[1]) if self.bias is None else self.bias.to(x_BTC.dtype)
        if window_BKC is None and _native(x_BTC):
            convolved: Tensor = kernel.convolve(x_BTC, kernel_KC, bias_C)
            return convolved
        shifted: Tensor = _Shifts.apply(_with_past(x_BTC, window_BKC, len(kernel_KC)), kernel_KC, bias_C)
        return shifted


def _native(x_BTC: Tensor) -> bool:
    """On the meta device too, where the operator is its shapes: what is counted there is what a CPU would run."""
    device = x_BTC.device.type
    return bool(x_BTC.dtype == torch.float32 and (device == "meta" or (device == "cpu" and kernel.available())))


def _with_past(x_BTC: Tensor, window_BKC: Tensor | None, width: int) -> Tensor:
    """[B, S, C]: the K - 1 inputs before, then those of x, of which the window keeps the last K."""
    if window_BKC is None:
        return F.pad(x_BTC, (0, 0, width - 1, 0))
    x_BSC = torch.cat((window_BKC[:, 1:].to(x_BTC.dtype), x_BTC), dim=1)
    with torch.no_grad():
        window_BKC.copy_(torch.cat((window_BKC[:, :1].to(x_BTC.dtype), x_BSC), dim=1)[:, -width:])
    return x_BSC


class _Shifts(torch.autograd.Function):
    """The convolution as K shifted products, on any device and in any precision, in the layout [B, T, C] that the
    matrices on either side use: on a CPU a third of the time of torch's grouped conv1d, forward and backward."""

    @staticmethod
    def forward(ctx: Any, x_BSC: Tensor, weight_KC: Tensor, bias_C: Tensor) -> Tensor:
        ctx.save_for_backward(x_BSC, weight_KC)
        width = len(weight_KC)
        n_outputs = x_BSC.shape[1] - width + 1
        out_BTC = torch.addcmul(bias_C, x_BSC[:, :n_outputs], weight_KC[0])
        for k in range(1, width):
            out_BTC.addcmul_(x_BSC[:, k : k + n_outputs], weight_KC[k])
        return out_BTC

    @staticmethod
    def backward(ctx: Any, grad_BTC: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x_BSC, weight_KC = ctx.saved_tensors
        n_outputs = grad_BTC.shape[1]
        grad_x_BSC = torch.zeros_like(x_BSC)
        grad_weight = []
        for k, weight_C in enumerate(weight_KC):
            grad_x_BSC[:, k : k + n_outputs].addcmul_(grad_BTC, weight_C)
            grad_weight.append((x_BSC[:, k : k + n_outputs] * grad_BTC).sum((0, 1)))
        return grad_x_BSC, torch.stack(grad_weight), grad_BTC.sum((0, 1))
