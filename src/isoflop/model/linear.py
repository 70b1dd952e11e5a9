"""A linear map whose weight stays in full precision; the cast to the activations' type happens inside."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.model.kernels import rows

# Below this width torch's default library is as fast; above, oneDNN multiplies fp32 a tenth faster on a CPU with
# AVX-512 (docs/decisions.md, "Which matrix product on a CPU").
ONEDNN_FROM = 64
# Where nothing is compiled, smaller products (rows * d_in * d_out) do not earn what the function around it costs, 80 us
# forward and backward.
ONEDNN_PRODUCT = 2**24


class Linear(nn.Module):
    """y = x @ weight.T + bias; weight [d_out, d_in], bias [d_out] or none. Filled by train/init.py, not here."""

    def __init__(self, d_in: int, d_out: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight, self.bias
        if rows.multiplies(x, weight):
            return rows.linear(x, weight, bias)
        if weight.dtype is not x.dtype:  # a cast that changes nothing would still take a tenth of a small product
            weight = weight.to(x.dtype)
        if bias is not None and bias.dtype is not x.dtype:
            bias = bias.to(x.dtype)
        return linear(x, weight, bias)

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight, [d_out, d_in], as the product reads it."""
        return self.weight.to(dtype)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., d_in] @ weight [d_out, d_in].T + bias [d_out]."""
    d_out, d_in = weight.shape
    least = 0 if torch.compiler.is_compiling() else ONEDNN_PRODUCT
    if x.numel() * d_out < least or min(d_in, d_out) < ONEDNN_FROM:
        return F.linear(x, weight, bias)
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    multiply = _OneDnnLinear.apply if torch.is_grad_enabled() else _multiply
    out: Tensor = multiply(x.reshape(-1, d_in), weight, bias)
    return out.view(*x.shape[:-1], d_out)


class _OneDnnLinear(torch.autograd.Function):
    """The product and the gradient of its input by oneDNN; that of the weight, where oneDNN is slower, by default."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI)
        return _multiply(x_NI, weight_OI, bias_O)

    @staticmethod
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        x_NI, weight_OI = ctx.saved_tensors
        grad_bias_O = grad_NO.sum(0) if ctx.needs_input_grad[2] else None
        return _multiply(grad_NO, weight_OI.t(), None), grad_NO.t() @ x_NI, grad_bias_O


def _multiply(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    multiply = _onednn if has_data(x_NI) else torch.ops.isoflop.onednn_linear
    return multiply(x_NI, weight_OI, bias_O)


def has_data(x: Tensor) -> bool:
    """Whether numbers can be looked at: not while compiling, on the meta device, or in fake tensors. What has none
    needs operators that know their shapes; what has some is spared a way through torch's dispatcher and back."""
    return not torch.compiler.is_compiling() and type(x) in (Tensor, nn.Parameter) and not x.is_meta


# The operator is torch's own, but its shape function and its gradient are missing: it was made for inference.
_LIBRARY = torch.library.Library("isoflop", "FRAGMENT")
_LIBRARY.define("onednn_linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor")


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _onednn_shape(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


_LIBRARY.impl("onednn_linear", _onednn, "CPU")
torch.library.register_fake("isoflop::onednn_linear", _onednn_shape, lib=_LIBRARY)
