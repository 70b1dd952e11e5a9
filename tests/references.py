"""What the fast paths of the model compute, in plain matrix products: slow, obvious, and counted by torch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_by_rows(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKE: Tensor,
    scale: float | None,
    start: int = 0,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    slopes_H: Tensor | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """Query t, at position p = start + t, against the keys that it may see, one row after the other: exactly the
    products that causality, window and chunk leave."""
    q_BHTD, k_BHSD, v_BHSE = _by_head(q_BTHD, k_BSKD, v_BSKE)
    scale = q_BTHD.shape[-1] ** -0.5 if scale is None else scale
    rows = []
    for t in range(q_BHTD.shape[2]):
        p = start + t
        first = max(0, p - window + 1 if window else 0, p - p % chunk if chunk else 0)
        keys, values = k_BHSD[:, :, first : p + 1], v_BHSE[:, :, first : p + 1]
        scores_BH1S = q_BHTD[:, :, t : t + 1] @ keys.mT * scale
        distance_S = p - torch.arange(first, p + 1, device=keys.device)
        rows.append(_shares(scores_BH1S, distance_S, softcap, slopes_H, sinks_H) @ values)
    return torch.cat(rows, dim=2).transpose(1, 2)


def _shares(
    scores_BHTS: Tensor, distance: Tensor, softcap: float | None, slopes_H: Tensor | None, sinks_H: Tensor | None
) -> Tensor:
    """Softmax of the scores after cap and penalty on distance; a sink takes its share and gives nothing."""
    if softcap is not None:
        scores_BHTS = softcap * torch.tanh(scores_BHTS / softcap)
    if slopes_H is not None:
        scores_BHTS = scores_BHTS - slopes_H[:, None, None] * distance
    if sinks_H is None:
        return scores_BHTS.softmax(-1)
    sinks_BHT1 = sinks_H[:, None, None].expand(*scores_BHTS.shape[:-1], 1)
    return torch.cat((scores_BHTS, sinks_BHT1), dim=-1).softmax(-1)[..., :-1]


def causal_by_mask(
    q_BTHD: Tensor,
    k_BSKD: Tensor,
    v_BSKE: Tensor,
    scale: float | None,
    start: int = 0,
    window: int | None = None,
    chunk: int | None = None,
    softcap: float | None = None,
    slopes_H: Tensor | None = None,
    sinks_H: Tensor | None = None,
) -> Tensor:
    """All scores, then a mask: the products that the palm convention counts."""
    q_BHTD, k_BHSD, v_BHSE = _by_head(q_BTHD, k_BSKD, v_BSKE)
    scale = q_BTHD.shape[-1] ** -0.5 if scale is None else scale
    p_T1 = torch.arange(start, start + q_BTHD.shape[1], device=q_BTHD.device)[:, None]
    p_S = torch.arange(k_BSKD.shape[1], device=q_BTHD.device)
    hidden_TS = p_S > p_T1
    if window is not None:
        hidden_TS = hidden_TS | (p_T1 - p_S >= window)
    if chunk is not None:
        hidden_TS = hidden_TS | (p_T1 // chunk != p_S // chunk)
    scores_BHTS = q_BHTD @ k_BHSD.mT * scale
    if softcap is not None:
        scores_BHTS = softcap * torch.tanh(scores_BHTS / softcap)
    shares_BHTS = _shares(scores_BHTS.masked_fill(hidden_TS, -torch.inf), p_T1 - p_S, None, slopes_H, sinks_H)
    return (shares_BHTS @ v_BHSE).transpose(1, 2)


def no_attention(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKE: Tensor, *options: object) -> Tensor:
    """Queries, keys and values go through, so that their gradients exist, but no product is made of them."""
    q, k, v = _by_head(q_BTHD, k_BTKD, v_BTKE)
    return (q.sum(-1, keepdim=True) + k.sum(-1, keepdim=True) + v).transpose(1, 2)


def experts_by_loop(x_RM: Tensor, weight_EMF: Tensor, ends_E: Tensor) -> Tensor:
    """One product an expert. Without data (meta device) rows are dealt evenly, which changes no count."""
    if x_RM.is_meta:
        parts = x_RM.tensor_split(len(weight_EMF))
    else:
        parts = x_RM.tensor_split(ends_E[:-1].long().cpu())
    return torch.cat([rows @ weight.to(rows.dtype) for rows, weight in zip(parts, weight_EMF, strict=True)])


def mixture_by_tokens(x_NM: Tensor, router_EM: Tensor, gate_up_EMF: Tensor, down_EFM: Tensor, k: int, renorm: bool):
    """A mixture of experts with each token on its own, from the definition."""
    out = []
    for x_M in x_NM:
        probability_E = (router_EM @ x_M).softmax(-1)
        chosen = sorted(range(len(probability_E)), key=lambda e: -float(probability_E[e].detach()))[:k]
        total = sum(probability_E[e] for e in chosen) if renorm else 1.0
        parts = []
        for e in chosen:
            gate, up = (x_M @ gate_up_EMF[e]).chunk(2)
            parts.append(probability_E[e] / total * ((F.silu(gate) * up) @ down_EFM[e]))
        out.append(torch.stack(parts).sum(0))
    return torch.stack(out)


def mamba1_recurrence(
    x_BTI: Tensor, dt_BTI: Tensor, a_IN: Tensor, b_BTN: Tensor, c_BTN: Tensor, state_BIN: Tensor
) -> tuple[Tensor, Tensor]:
    """One token after the other: an outer product writes each channel's states, an inner one reads them."""
    outputs = []
    for t in range(x_BTI.shape[1]):
        dt_BI11, b_B11N = dt_BTI[:, t, :, None, None], b_BTN[:, t, None, None]
        written_BI1N = (dt_BI11 * x_BTI[:, t, :, None, None]) @ b_B11N.expand(-1, x_BTI.shape[2], -1, -1)
        state_BIN = torch.exp(dt_BTI[:, t, :, None] * a_IN) * state_BIN + written_BI1N[:, :, 0]
        outputs.append((state_BIN @ c_BTN[:, t, :, None])[..., 0])
    return torch.stack(outputs, 1), state_BIN


def mamba2_recurrence(
    x_BTHP: Tensor, dt_BTH: Tensor, a_H: Tensor, b_BTGN: Tensor, c_BTGN: Tensor, state_BGNRP: Tensor
) -> tuple[Tensor, Tensor]:
    """One token after the other: an outer product writes each head's state, its product with c reads it."""
    heads = x_BTHP.shape[2] // b_BTGN.shape[2]
    b_BTHN, c_BTHN = b_BTGN.repeat_interleave(heads, 2), c_BTGN.repeat_interleave(heads, 2)
    state_BHPN = state_BGNRP.permute(0, 1, 3, 4, 2).flatten(1, 2)
    outputs = []
    for t in range(x_BTHP.shape[1]):
        dt_BH11 = dt_BTH[:, t, :, None, None]
        written_BHPN = (dt_BH11 * x_BTHP[:, t, :, :, None]) @ b_BTHN[:, t, :, None]
        state_BHPN = torch.exp(dt_BH11 * a_H[:, None, None]) * state_BHPN + written_BHPN
        outputs.append((state_BHPN @ c_BTHN[:, t, :, :, None])[..., 0])
    last_BGNRP = state_BHPN.unflatten(1, (-1, heads)).permute(0, 1, 4, 2, 3)
    return torch.stack(outputs, 1), last_BGNRP


def _by_head(q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    group = q_BTHD.shape[2] // k_BTKD.shape[2]
    k_BTHD, v_BTHD = (x.repeat_interleave(group, dim=2) for x in (k_BTKD, v_BTKD))
    return q_BTHD.transpose(1, 2), k_BTHD.transpose(1, 2), v_BTHD.transpose(1, 2)
