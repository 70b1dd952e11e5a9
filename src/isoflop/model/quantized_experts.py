"""Experts of few bits: a matrix of codes for each. R rows, I d_in, O d_out, E experts."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from isoflop.model.grouped import groups_of_rows
from isoflop.model.quantized import QuantizedLinear, QuantizedWeight


class QuantizedExperts(nn.Module):
    """x[r] @ dense(expert of r).T, stands where a stack of experts' matrices [E, I, O] stood. Each expert is a
    QuantizedLinear of its own, so only the experts that have rows are read, and none is ever there in full precision
    but, where our kernel cannot run, the one that multiplies."""

    def __init__(self, weight: QuantizedWeight, n_experts: int) -> None:
        """`weight` has the rows of all experts, one expert's after the other's."""
        super().__init__()
        self.d_out = weight.d_out // n_experts
        self.experts = nn.ModuleList(QuantizedLinear(part) for part in _split(weight, n_experts))

    def sorted_rows(self, x_RI: Tensor, ends_E: Tensor) -> Tensor:
        """As grouped_matmul: rows up to ends_E[0] are of expert 0, and so on, [R, O]."""
        y_RO = x_RI.new_empty(len(x_RI), self.d_out)
        for expert, start, end in groups_of_rows(ends_E):
            y_RO[start:end] = self.experts[expert](x_RI[start:end])
        return y_RO

    def rows(self, x_RI: Tensor, expert_R: Tensor) -> Tensor:
        """Rows in any order, [R, O]: each expert's codes are read once for all of its rows."""
        places: dict[int, list[int]] = {}
        for place, expert in enumerate(expert_R.tolist()):
            places.setdefault(expert, []).append(place)
        y_RO = x_RI.new_empty(len(x_RI), self.d_out)
        for expert, at in places.items():
            own = slice(at[0], at[0] + 1) if len(at) == 1 else torch.tensor(at, device=x_RI.device)
            y_RO[own] = self.experts[expert](x_RI[own])
        return y_RO


def _split(weight: QuantizedWeight, n_experts: int) -> Iterator[QuantizedWeight]:
    """Each expert's matrix, in memory of its own; the order and scales of inputs are everybody's."""
    w = weight
    zeros = [None] * n_experts if w.zeros is None else w.zeros.chunk(n_experts)
    for codes, scales, zero in zip(w.codes.chunk(n_experts), w.scales.chunk(n_experts), zeros, strict=True):
        own = None if zero is None else zero.clone()
        yield QuantizedWeight(w.format, w.d_in, codes.clone(), scales.clone(), own, w.order, w.in_scales)
