"""Normalisations."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import architecture
from isoflop.model.kernels import rows


class RmsNorm(nn.Module):
    """See architecture.RmsNorm; normalises the last dimension, of size d."""

    def __init__(self, norm: architecture.RmsNorm, d: int) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = nn.Parameter(torch.ones(d))

    def forward(self, x: Tensor) -> Tensor:
        if rows.norms(x, self.weight):
            return rows.rms_norm(x, self.weight, self.eps)
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.Module):
    """See architecture.LayerNorm; normalises the last dimension, of size d."""

    def __init__(self, norm: architecture.LayerNorm, d: int) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = nn.Parameter(torch.ones(d))
        self.bias = nn.Parameter(torch.zeros(d)) if norm.bias else None

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), bias, self.eps)


def build_norm(norm: architecture.Norm, d: int) -> RmsNorm | LayerNorm:
    """The module of a description, over a last dimension of size d."""
    match norm:
        case architecture.RmsNorm():
            return RmsNorm(norm, d)
        case architecture.LayerNorm():
            return LayerNorm(norm, d)
