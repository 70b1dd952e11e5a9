"""Feed-forwards from their definitions, one token at a time: slow and obvious. M d_model, N tokens, E experts."""

import math
from fractions import Fraction

import torch
from torch import Tensor, nn

from isoflop.architecture import MixtureOfExperts, Mlp


def activation_by_definition(h: Tensor, kind: str) -> Tensor:
    """From the papers' formulas; GELU by the error function, its approximation by tanh."""
    gate, up = h.chunk(2, dim=-1) if "glu" in kind else (h, torch.ones_like(h))
    if kind == "swiglu-clamped":
        gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
        return gate / (1 + torch.exp(-1.702 * gate)) * (up + 1)
    if kind.startswith("relu"):
        return (h * (h > 0)) ** (2 if kind == "relu2" else 1)
    if kind.endswith("-tanh"):
        return up * gate / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
    if kind in ("gelu", "geglu"):
        return up * gate / 2 * (1 + torch.erf(gate / math.sqrt(2)))
    return up * gate / (1 + torch.exp(-gate))


def mlp_by_definition(x: Tensor, f: Mlp | MixtureOfExperts, weights: dict[str, Tensor]) -> Tensor:
    """One token through matrices [in, out] called first and down, and biases first_bias and down_bias or none."""
    h = x @ weights["first"] + weights.get("first_bias", 0.0)
    return activation_by_definition(h, f.activation) @ weights["down"] + weights.get("down_bias", 0.0)


def mixture_by_tokens(x_BTM: Tensor, module: nn.Module) -> tuple[Tensor, list[list[int]], int]:
    """A mixture of experts with each token on its own, earlier positions first: outputs [B, T, M], chosen experts, how
    many rows were dropped."""
    f: MixtureOfExperts = module.feed_forward
    p = dict(module.named_parameters())
    p |= {
        name.replace(first, "first"): p[name]
        for first in ("gate_up", "up")
        for name in (first, f"{first}_bias")
        if name in p
    }
    limit = x_BTM.numel() * f.top_k if f.capacity_factor is None else _limit(f, x_BTM.shape[:2].numel())
    taken, dropped, chosen, out = [0] * f.n_experts, 0, [], []
    for x_M in x_BTM.transpose(0, 1).flatten(0, 1):
        logits_E = p["router.weight"] @ x_M + (p["router.bias"] if f.router_bias else 0.0)
        score_E = logits_E.softmax(-1) if f.router == "softmax" else 1 / (1 + torch.exp(-logits_E))
        merit_E = score_E.detach() + (module.selection_bias if f.selection_bias else 0.0)
        best = _best_experts(merit_E.tolist(), f)
        total = sum(score_E[e] for e in best) if f.renormalize else 1.0
        y_M = torch.zeros_like(x_M)
        for e in best:
            taken[e] += 1
            if taken[e] > limit:
                dropped += 1
                continue
            weight = f.routed_scale * score_E[e] / total
            own = {name: p[name][e] for name in ("first", "first_bias", "down", "down_bias") if name in p}
            y_M = y_M + (
                weight * mlp_by_definition(x_M, f, own)
                if f.weigh == "output"
                else mlp_by_definition(weight * x_M, f, own)
            )
        out.append(y_M + _shared_by_definition(x_M, f, p))
        chosen.append(best)
    return torch.stack(out).unflatten(0, (-1, len(x_BTM))).transpose(0, 1), chosen, dropped


def _limit(f: MixtureOfExperts, tokens: int) -> int:
    return math.ceil(Fraction(str(f.capacity_factor)) * tokens * f.top_k / f.n_experts)


def _best_experts(merit: list[float], f: MixtureOfExperts) -> list[int]:
    size = f.n_experts // f.n_groups
    groups = [range(g * size, (g + 1) * size) for g in range(f.n_groups)]
    counted = 1 if f.group_score == "best" else 2
    groups.sort(key=lambda group: -sum(sorted((merit[e] for e in group), reverse=True)[:counted]))
    allowed = [e for group in groups[: f.top_groups] for e in group]
    return sorted(allowed, key=lambda e: -merit[e])[: f.top_k]


def _shared_by_definition(x_M: Tensor, f: MixtureOfExperts, p: dict[str, Tensor]) -> Tensor | float:
    if f.shared is None:
        return 0.0
    first = "shared.gate_up" if "shared.gate_up.weight" in p else "shared.up"
    weights = {"first": p[f"{first}.weight"].T, "down": p["shared.down.weight"].T}
    if f.bias:
        weights |= {"first_bias": p[f"{first}.bias"], "down_bias": p["shared.down.bias"]}
    y_M = mlp_by_definition(x_M, f, weights)
    return torch.sigmoid(p["shared_gate.weight"][0] @ x_M) * y_M if f.shared.gated else y_M
