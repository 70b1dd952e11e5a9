"""What stands between the matrices of a feed-forward. F d_ff, H = 2 F where there is a gate, else F."""

import torch.nn.functional as F
from torch import Tensor

from isoflop.architecture.feed_forward import Activation

# gpt-oss (arXiv 2508.10925): the gate is clamped from above only; with this slope the sigmoid approximates GELU.
CLAMP, SLOPE = 7.0, 1.702


def activate(h_H: Tensor, activation: Activation) -> Tensor:
    """[..., H] to [..., F]; of the gated kinds the first half is the gate, the second what it gates."""
    match activation:
        case "relu":
            return F.relu(h_H)
        case "relu2":
            return F.relu(h_H).square()
        case "gelu":
            return F.gelu(h_H)
        case "gelu-tanh":
            return F.gelu(h_H, approximate="tanh")
        case "silu":
            return F.silu(h_H)
    gate_F, up_F = h_H.chunk(2, dim=-1)
    match activation:
        case "swiglu":
            return F.silu(gate_F) * up_F
        case "geglu":
            return F.gelu(gate_F) * up_F
        case "geglu-tanh":
            return F.gelu(gate_F, approximate="tanh") * up_F
        case "swiglu-clamped":
            gate_F, up_F = gate_F.clamp(max=CLAMP), up_F.clamp(-CLAMP, CLAMP)
            return gate_F * (SLOPE * gate_F).sigmoid() * (up_F + 1)
