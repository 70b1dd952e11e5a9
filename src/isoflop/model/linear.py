"""A linear map whose weight stays in full precision; the cast to the activations' type happens inside."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Below this width torch's default library is as fast; above, oneDNN multiplies fp32 a tenth faster on a CPU with
# AVX-512 (docs/decisions.md, "Which matrix product on a CPU").
ONEDNN_FROM = 64
# Few rows are not worth its set-up: one row of 128 x 256 takes it four times as long.
ONEDNN_ROWS = 128


class Linear(nn.Module):
    """y = x @ weight.T + bias; weight [d_out, d_in], bias [d_out] or none. Filled by train/init.py, not here."""

    def __init__(self, d_in: int, d_out: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        y = linear(x, self.weight.to(x.dtype))
        return y if self.bias is None else y + self.bias.to(x.dtype)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., d_in] @ weight [d_out, d_in].T."""
    rows = x.numel() // max(1, x.shape[-1])
    if x.device.type == "cpu" and x.dtype == torch.float32 and min(weight.shape) >= ONEDNN_FROM and rows >= ONEDNN_ROWS:
        out: Tensor = _OneDnnLinear.apply(x.reshape(-1, x.shape[-1]), weight)
        return out.view(*x.shape[:-1], -1)
    return F.linear(x, weight)


class _OneDnnLinear(torch.autograd.Function):
    """The product and the gradient of its input by oneDNN; that of the weight, where oneDNN is slower, by default."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return torch.ops.isoflop.onednn_linear(x_NI, weight_OI)

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor, Tensor]:
        x_NI, weight_OI = ctx.saved_tensors
        return torch.ops.isoflop.onednn_linear(grad_NO, weight_OI.t()), grad_NO.t() @ x_NI


# The operator is torch's own, but its shape function and its gradient are missing: it was made for inference.
_LIBRARY = torch.library.Library("isoflop", "FRAGMENT")
_LIBRARY.define("onednn_linear(Tensor x, Tensor weight) -> Tensor")


def _onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _onednn_shape(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


_LIBRARY.impl("onednn_linear", _onednn, "CPU")
torch.library.register_fake("isoflop::onednn_linear", _onednn_shape, lib=_LIBRARY)
