"""Rows to their experts and back. N tokens, M columns, E experts, K top_k, R = N * K routed rows.

Both ways and both gradients are gathers, or sums of K gathered rows (`embedding_bag`): several times as fast on a CPU
as adding rows to where they belong, and the same order of addends always."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Rows(NamedTuple):
    """Row r of the sorted rows is choice `order_R[r]` of the flattened [N, K] choices, thus of token order_R[r] // K;
    the choice (n, k) is row `place_NK[n, k]`. Expert e has the rows from ends_E[e - 1] up to ends_E[e]; `expert_R`
    says so row by row. Rows from ends_E[-1] on are over the capacity of their experts: `kept_NK` is false there; it is
    None where there is no limit."""

    order_R: Tensor
    place_NK: Tensor
    ends_E: Tensor
    expert_R: Tensor
    kept_NK: Tensor | None

    def served(self, x_RM: Tensor) -> Tensor:
        """Zero, and without gradient, where a row is over the capacity, whatever it was."""
        if self.kept_NK is None:
            return x_RM
        inside_R = torch.arange(len(x_RM), device=x_RM.device) < self.ends_E[-1]
        return torch.where(inside_R[:, None], x_RM, 0)


def sort_rows(expert_NK: Tensor, counts_E: Tensor, capacity: int | None, n_sequences: int) -> Rows:
    """Rows by expert, those of one expert by token. Each expert keeps the first `capacity`, the others come last."""
    expert_R, kept_NK = expert_NK.flatten(), None
    key_R = expert_R
    if capacity is not None:
        kept_NK = _within_capacity(expert_NK, counts_E, capacity, n_sequences)
        key_R = expert_R.masked_fill(~kept_NK.flatten(), len(counts_E))
        counts_E = counts_E.clamp_max(capacity)
    order_R, place_R = _order(key_R)
    ends_E = counts_E.cumsum(0).to(torch.int32)
    return Rows(order_R, place_R.view_as(expert_NK), ends_E, expert_R[order_R], kept_NK)


def _within_capacity(expert_NK: Tensor, counts_E: Tensor, capacity: int, n_sequences: int) -> Tensor:
    """Which choices find room. First come those of the sequences' first positions, then of their second, ...: so no
    token can be dropped for the sake of a later one."""
    expert_TBK = expert_NK.unflatten(0, (n_sequences, -1)).transpose(0, 1)
    expert_R = expert_TBK.reshape(-1)
    _, place_R = _order(expert_R)
    start_E = counts_E.cumsum(0) - counts_E
    kept_R = place_R - start_E[expert_R] < capacity
    return kept_R.view(expert_TBK.shape).transpose(0, 1).reshape(expert_NK.shape)


def _order(key_R: Tensor) -> tuple[Tensor, Tensor]:
    """The stable sorting permutation and its inverse."""
    order_R = key_R.argsort(stable=True)
    return order_R, torch.empty_like(order_R).scatter(0, order_R, torch.arange(len(order_R), device=order_R.device))


def dispatch(x_NM: Tensor, rows: Rows) -> Tensor:
    """Every token's values at each of its rows, [R, M]."""
    if not torch.is_grad_enabled():
        return _gathered(x_NM, rows.order_R, rows.place_NK)
    out: Tensor = _Dispatch.apply(x_NM, rows.order_R, rows.place_NK)
    return out


def combine(y_RM: Tensor, weight_NK: Tensor, rows: Rows) -> Tensor:
    """The weighted sum of every token's rows, [N, M]."""
    if not torch.is_grad_enabled():
        return _weighted_sums(y_RM, weight_NK, rows.place_NK)
    out: Tensor = _Combine.apply(y_RM, weight_NK, rows.order_R, rows.place_NK)
    return out


def _gathered(x_NM: Tensor, order_R: Tensor, place_NK: Tensor) -> Tensor:
    return x_NM.index_select(0, order_R // place_NK.shape[1])


def _weighted_sums(y_RM: Tensor, weight_NK: Tensor, place_NK: Tensor) -> Tensor:
    return F.embedding_bag(place_NK, y_RM, mode="sum", per_sample_weights=weight_NK)


class _Dispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NM: Tensor, order_R: Tensor, place_NK: Tensor) -> Tensor:
        ctx.save_for_backward(place_NK)
        return _gathered(x_NM, order_R, place_NK)

    @staticmethod
    def backward(ctx: Any, grad_RM: Tensor) -> tuple[Tensor, None, None]:
        (place_NK,) = ctx.saved_tensors
        return F.embedding_bag(place_NK, grad_RM, mode="sum"), None, None


class _Combine(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y_RM: Tensor, weight_NK: Tensor, order_R: Tensor, place_NK: Tensor) -> Tensor:
        ctx.save_for_backward(y_RM, weight_NK, order_R, place_NK)
        return _weighted_sums(y_RM, weight_NK, place_NK)

    @staticmethod
    def backward(ctx: Any, grad_NM: Tensor) -> tuple[Tensor, Tensor, None, None]:
        y_RM, weight_NK, order_R, place_NK = ctx.saved_tensors
        grad_RM = _gathered(grad_NM, order_R, place_NK)
        weight_R = weight_NK.flatten().index_select(0, order_R)
        dweight_R = (grad_RM * y_RM).sum(-1)
        return grad_RM * weight_R[:, None], dweight_R[place_NK], None, None
