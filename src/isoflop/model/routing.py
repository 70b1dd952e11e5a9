"""Which experts a token goes to, with what weight, and what the router did. B sequences, T position, N = B * T tokens,
E experts, K top_k, R = N * K routed rows, G groups of experts, P experts a group."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from isoflop.architecture import MixtureOfExperts

TINY = 1e-20  # keeps a sum of sigmoids that all underflowed from being divided by


class RouterStats(NamedTuple):
    """What the router did with one batch; scalars, but for `load_E`: the share of routed rows each expert was given.

    balance_loss: 1 when even (Fedus et al. 2021, eq. 4). sequence_balance_loss: 0 where its coefficient is. z_loss:
    mean squared logsumexp of the logits. entropy: of a token's scores, mean, nats. dropped: share of rows over
    capacity."""

    balance_loss: Tensor
    z_loss: Tensor
    load_E: Tensor
    entropy: Tensor
    sequence_balance_loss: Tensor
    dropped: Tensor


class Choice(NamedTuple):
    """All scores, and the weights and indices of the experts that were chosen."""

    score_NE: Tensor
    weight_NK: Tensor
    expert_NK: Tensor


def route(
    logits_NE: Tensor, f: MixtureOfExperts, bias_E: Tensor | None = None, n_sequences: int = 1
) -> tuple[Tensor, Tensor, RouterStats]:
    """The weights [N, K] and indices [N, K] of each token's experts, and the router's statistics and losses; the N
    tokens are `n_sequences` sequences of equal length, one after the other."""
    chosen = choose(logits_NE, f, bias_E)
    return chosen.weight_NK, chosen.expert_NK, statistics(logits_NE, chosen, f, n_sequences)


def choose(logits_NE: Tensor, f: MixtureOfExperts, bias_E: Tensor | None = None) -> Choice:
    """Scores, and the experts that are best by score plus bias. The bias (`selection_bias`, DeepSeek-V3, arXiv
    2412.19437, eq. 16) counts for the choice only, so the weights' gradient does not see it."""
    score_NE = logits_NE.softmax(-1) if f.router == "softmax" else logits_NE.sigmoid()
    with torch.no_grad():
        merit_NE = score_NE if bias_E is None else score_NE + bias_E
        expert_NK = _within_best_groups(merit_NE, f).topk(f.top_k, dim=-1).indices
    weight_NK = score_NE.gather(1, expert_NK)
    if f.renormalize:
        weight_NK = weight_NK / (weight_NK.sum(-1, keepdim=True) + TINY)
    if f.routed_scale != 1:
        weight_NK = weight_NK * f.routed_scale
    return Choice(score_NE, weight_NK, expert_NK)


def _within_best_groups(merit_NE: Tensor, f: MixtureOfExperts) -> Tensor:
    """Minus infinity for experts outside the token's best groups (DeepSeek-V2, arXiv 2405.04434, section 2.2.2)."""
    if f.top_groups == f.n_groups:
        return merit_NE
    merit_NGP = merit_NE.unflatten(-1, (f.n_groups, -1))
    group_NG = merit_NGP.amax(-1) if f.group_score == "best" else merit_NGP.topk(2, dim=-1).values.sum(-1)
    best = group_NG.topk(f.top_groups, dim=-1).indices
    allowed_NG = torch.zeros_like(group_NG, dtype=torch.bool).scatter(1, best, True)
    return merit_NGP.masked_fill(~allowed_NG[..., None], -torch.inf).flatten(1)


def statistics(logits_NE: Tensor, chosen: Choice, f: MixtureOfExperts, n_sequences: int) -> RouterStats:
    """Statistics of a batch. Where a loss wants probabilities, sigmoid scores are divided by their sum (arXiv
    2412.19437, eq. 19)."""
    p_NE = chosen.score_NE
    if f.router == "sigmoid":
        p_NE = p_NE / (p_NE.sum(-1, keepdim=True) + TINY)
    counts_E = expert_counts(chosen.expert_NK, f.n_experts)
    load_E = counts_E / chosen.expert_NK.numel()
    limit = capacity(f, len(p_NE))
    over_E = torch.zeros_like(counts_E) if limit is None else (counts_E - limit).clamp_min(0)
    return RouterStats(
        balance_loss=f.n_experts * (load_E * p_NE.mean(0)).sum(),
        z_loss=logits_NE.logsumexp(-1).square().mean(),
        load_E=load_E,
        entropy=-(p_NE * p_NE.clamp_min(TINY).log()).sum(-1).mean(),
        sequence_balance_loss=_sequence_balance(p_NE, chosen, f, n_sequences),
        dropped=over_E.sum() / chosen.expert_NK.numel(),
    )


def _sequence_balance(p_NE: Tensor, chosen: Choice, f: MixtureOfExperts, n_sequences: int) -> Tensor:
    """arXiv 2412.19437, eq. 17 to 20, the mean over sequences. Its loads are those of the scores alone (eq. 18),
    whatever the selection bias and the groups did to the choice."""
    if not f.sequence_balance_coef:
        return p_NE.new_zeros(())
    expert_BR = chosen.score_NE.topk(f.top_k, dim=-1).indices.view(n_sequences, -1)
    zeros_BE = torch.zeros(n_sequences, f.n_experts, dtype=p_NE.dtype, device=p_NE.device)
    load_BE = zeros_BE.scatter_add(1, expert_BR, torch.ones_like(expert_BR, dtype=p_NE.dtype)) / expert_BR.shape[1]
    p_BE = p_NE.unflatten(0, (n_sequences, -1)).mean(1)
    return f.n_experts * (load_BE * p_BE).sum(-1).mean()


def expert_counts(expert_NK: Tensor, n_experts: int) -> Tensor:
    """How many rows each expert got, [E], int64."""
    expert_R = expert_NK.flatten()
    zeros_E = torch.zeros(n_experts, dtype=torch.int64, device=expert_R.device)
    return zeros_E.scatter_add(0, expert_R, torch.ones_like(expert_R))


def capacity(f: MixtureOfExperts, tokens: int) -> int | None:
    """Rows an expert takes of a batch of so many tokens; None where it takes all. (Rounded first: 1.1 * 10 is 11.)"""
    if f.capacity_factor is None:
        return None
    return math.ceil(round(f.capacity_factor * tokens * f.top_k / f.n_experts, 9))
