"""Grouped matrix products: each group of rows times a matrix of its own. R rows, M in, F out, E groups."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.model.linear import has_data

_LIBRARY = torch.library.Library("isoflop", "FRAGMENT")
_LIBRARY.define("grouped_matmul(Tensor x, Tensor weight, Tensor ends) -> Tensor")
_LIBRARY.define("grouped_weight_gradient(Tensor x, Tensor grad, Tensor ends) -> Tensor")


def grouped_matmul(x_RM: Tensor, weight_EMF: Tensor, ends_E: Tensor) -> Tensor:
    """Rows up to ends_E[0] times weight 0, the next up to ends_E[1] times weight 1, ...; [R, F]. Rows from ends_E[-1]
    on belong to no group: what they and their gradients become is not defined, not even finite. The one seam where a
    grouped kernel can be exchanged."""
    weight_EMF = weight_EMF.to(x_RM.dtype)
    if x_RM.device.type == "cuda":
        return _padded_grouped_mm(x_RM, weight_EMF, ends_E)
    multiply = _GroupedMatmul.apply if torch.is_grad_enabled() else _multiply
    out: Tensor = multiply(x_RM, weight_EMF, ends_E)
    return out


def _padded_grouped_mm(x_RM: Tensor, weight_EMF: Tensor, ends_E: Tensor) -> Tensor:
    """torch's kernel wants rows of a multiple of 16 bytes: other widths are filled with zeros, which change no sum."""
    columns, multiple = weight_EMF.shape[-1], 16 // x_RM.element_size()
    more_in, more_out = -x_RM.shape[-1] % multiple, -columns % multiple
    padded_EMF = F.pad(weight_EMF, (0, more_out, 0, more_in))
    return F.grouped_mm(F.pad(x_RM, (0, more_in)), padded_EMF, offs=ends_E)[:, :columns]


class _GroupedMatmul(torch.autograd.Function):
    """On a CPU. torch's own function could not be compiled around: in 2.13 its shapes refuse fp32, and its backward
    gradients without strides. Only compilers and counters need the operators: a call through torch's dispatcher and
    back takes longer than a small product."""

    @staticmethod
    def forward(ctx: Any, x_RM: Tensor, weight_EMF: Tensor, ends_E: Tensor) -> Tensor:
        ctx.save_for_backward(x_RM, weight_EMF, ends_E)
        return _multiply(x_RM, weight_EMF, ends_E)

    @staticmethod
    def backward(ctx: Any, grad_RF: Tensor) -> tuple[Tensor, Tensor, None]:
        x_RM, weight_EMF, ends_E = ctx.saved_tensors
        dweight = _weight_gradient if has_data(x_RM) else torch.ops.isoflop.grouped_weight_gradient
        return _multiply(grad_RF, weight_EMF.transpose(1, 2), ends_E), dweight(x_RM, grad_RF, ends_E), None


def _multiply(x_RM: Tensor, weight_EMF: Tensor, ends_E: Tensor) -> Tensor:
    multiply = _matmul if has_data(x_RM) else torch.ops.isoflop.grouped_matmul
    out: Tensor = multiply(x_RM, weight_EMF, ends_E)
    return out


# Groups of larger products (rows * in * out, the mean) are multiplied one by one by oneDNN: 3 to 10% faster. torch's
# kernel is such a loop too, in C++: with small groups up to twice as fast as a loop here.
ONEDNN_PRODUCT = 2**23


def groups_of_rows(ends: Tensor) -> Iterator[tuple[int, int, int]]:
    """Expert, first row, end; of those that have rows."""
    start = 0
    for expert, end in enumerate(ends.tolist()):
        if end > start:
            yield expert, start, end
        start = end


def _matmul(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    if x.dtype == torch.float32 and x.shape[0] * weight[0].numel() >= ONEDNN_PRODUCT * len(weight):
        return _by_onednn(x, weight, ends)
    if _torch_takes(x, weight):
        return F.grouped_mm(x.contiguous(), weight, offs=ends)
    return _loop(x, weight, ends)


def _weight_gradient(x: Tensor, grad: Tensor, ends: Tensor) -> Tensor:
    if _torch_takes(x, grad):
        return F.grouped_mm(x.contiguous().t(), grad.contiguous(), offs=ends)
    out = x.new_zeros(len(ends), x.shape[-1], grad.shape[-1])
    for expert, start, end in groups_of_rows(ends):
        torch.mm(x[start:end].t(), grad[start:end], out=out[expert])
    return out


def _torch_takes(x: Tensor, y: Tensor) -> bool:
    """Rows of a multiple of 16 bytes, and not nothing at all."""
    multiple = 16 // x.element_size()
    whole = x.shape[-1] % multiple == 0 and y.shape[-1] % multiple == 0
    return bool(whole and x.dtype == torch.float32 and x.numel() > 0)


def _loop(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    out = x.new_empty(x.shape[0], weight.shape[-1])
    for expert, start, end in groups_of_rows(ends):
        torch.mm(x[start:end], weight[expert], out=out[start:end])
    return out


def _by_onednn(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """A product is copied to its place while it is still in the cache."""
    multiply, out = torch.ops.mkldnn._linear_pointwise, x.new_empty(x.shape[0], weight.shape[-1])
    for expert, start, end in groups_of_rows(ends):
        out[start:end] = multiply(x[start:end], weight[expert].t(), None, "none", [], "")
    return out


def _matmul_shape(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[-1])


def _weight_gradient_shape(x: Tensor, grad: Tensor, ends: Tensor) -> Tensor:
    return x.new_empty(ends.shape[0], x.shape[-1], grad.shape[-1])


_LIBRARY.impl("grouped_matmul", _matmul, "CPU")
_LIBRARY.impl("grouped_weight_gradient", _weight_gradient, "CPU")
torch.library.register_fake("isoflop::grouped_matmul", _matmul_shape, lib=_LIBRARY)
torch.library.register_fake("isoflop::grouped_weight_gradient", _weight_gradient_shape, lib=_LIBRARY)
