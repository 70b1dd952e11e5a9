"""The recurrence of Mamba-2 over a whole sequence, in matrix products: state-space duality (Dao and Gu 2024, arXiv
2405.21060, section 6). B batch, T position, C chunk, L position in a chunk that reads, S one that is read, H head, G
group of heads, R head of a group, P d_head, N d_state, W all R * P values of a group."""

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.model.kernels import weights as kernel

# Work a token grows with the length of a chunk inside it and shrinks with it between chunks; with the usual d_head and
# d_state of 64 to 128 the two meet here.
CHUNK = 64


def state_space(
    x_BTHP: Tensor, dt_BTH: Tensor, a_H: Tensor, b_BTGN: Tensor, c_BTGN: Tensor, state_BGNRP: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t a) h_(t-1) + b_t (dt_t x_t)^T, y_t = c_t^T h_t: y [B, T, H, P] and the last h [B, G, N, R, P].

    dt, a (negative) and the states are float32; products are in the type of x. `state` is h before the first token,
    None is zero.
    """
    if x_BTHP.shape[1] == 1 and state_BGNRP is not None:
        return _step(x_BTHP, dt_BTH, a_H, b_BTGN, c_BTGN, state_BGNRP)
    return _chunked(x_BTHP, dt_BTH, a_H, b_BTGN, c_BTGN, state_BGNRP)


def _step(
    x_B1HP: Tensor, dt_B1H: Tensor, a_H: Tensor, b_B1GN: Tensor, c_B1GN: Tensor, state_BGNRP: Tensor
) -> tuple[Tensor, Tensor]:
    """One token of the recurrence, in the type of the state."""
    n_groups, dt_BH = b_B1GN.shape[2], dt_B1H[:, 0]
    written_BGRP = (x_B1HP[:, 0] * dt_BH[..., None]).unflatten(1, (n_groups, -1))
    decay_BGR = torch.exp(dt_BH * a_H).unflatten(1, (n_groups, -1))
    b_BGN, c_BGN = b_B1GN[:, 0].to(state_BGNRP.dtype), c_B1GN[:, 0].to(state_BGNRP.dtype)
    state_BGNRP = state_BGNRP * decay_BGR[:, :, None, :, None] + b_BGN[..., None, None] * written_BGRP[:, :, None]
    y_BGW = (c_BGN[:, :, None] @ state_BGNRP.flatten(3))[:, :, 0]
    return y_BGW.to(x_B1HP.dtype).view_as(x_B1HP), state_BGNRP


def _chunked(
    x_BTHP: Tensor, dt_BTH: Tensor, a_H: Tensor, b_BTGN: Tensor, c_BTGN: Tensor, state_BGNRP: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Chunks of equal length; the last is filled up with dt = 0, which neither decays nor writes."""
    n_tokens, n_groups, dtype = x_BTHP.shape[1], b_BTGN.shape[2], x_BTHP.dtype
    n_chunks = -(-n_tokens // CHUNK)
    length = -(-n_tokens // n_chunks)
    x_BCLHP, dt_BCLH, b_BCLGN, c_BCLGN = (
        _filled(z, n_chunks * length).unflatten(1, (n_chunks, length)) for z in (x_BTHP, dt_BTH, b_BTGN, c_BTGN)
    )
    b_BCGLN, c_BCGLN = b_BCLGN.transpose(2, 3), c_BCLGN.transpose(2, 3)
    written_BCLHP = x_BCLHP * dt_BCLH[..., None].to(dtype)
    # Differences of these sums are what counts, and one large decay must not swallow the small ones after it: float64.
    log_BCLH = (dt_BCLH * a_H).double().cumsum(2)
    until_end_BCLH = torch.exp(log_BCLH[:, :, -1:] - log_BCLH).to(dtype)
    from_start_BCLH = torch.exp(log_BCLH)

    left_BCGNW = b_BCGLN.mT @ _by_group(written_BCLHP * until_end_BCLH[..., None], n_groups)
    chunk_decay_BCGR = from_start_BCLH[:, :, -1].float().unflatten(2, (n_groups, -1))
    entering_BCGNW, state_BGNRP = _carried(left_BCGNW, chunk_decay_BCGR, state_BGNRP)

    from_before_BCLHP = (c_BCGLN @ entering_BCGNW.to(dtype)).transpose(2, 3).reshape(x_BCLHP.shape)
    from_chunk_BCHLP = _weights(b_BCGLN, c_BCGLN, log_BCLH) @ written_BCLHP.transpose(2, 3)
    y_BCLHP = torch.addcmul(from_chunk_BCHLP.transpose(2, 3), from_before_BCLHP, from_start_BCLH[..., None].to(dtype))
    return y_BCLHP.flatten(1, 2)[:, :n_tokens], state_BGNRP


def _filled(z: Tensor, n_tokens: int) -> Tensor:
    missing = n_tokens - z.shape[1]
    return F.pad(z, (0, 0) * (z.dim() - 2) + (0, missing)) if missing else z


def _by_group(z_BCLHP: Tensor, n_groups: int) -> Tensor:
    """[B, C, G, L, W]: the heads of a group share b and c, so one product serves them all."""
    return z_BCLHP.unflatten(3, (n_groups, -1)).flatten(4).transpose(2, 3)


def _weights(b_BCGSN: Tensor, c_BCGLN: Tensor, log_BCLH: Tensor) -> Tensor:
    """What token L takes of what token S of its chunk wrote: c_L . b_S times the decay between, [B, C, H, L, S]."""
    n_groups, length = b_BCGSN.shape[2:4]
    log_BCHL, scores_BCGLS = log_BCLH.transpose(2, 3), c_BCGLN @ b_BCGSN.mT
    if _native(scores_BCGLS):
        weights_BCHLS: Tensor = kernel.chunk_weights(log_BCHL, scores_BCGLS)
        return weights_BCHLS
    future_LS = torch.ones(length, length, dtype=torch.bool, device=log_BCLH.device).triu(1)
    between_BCHLS = (log_BCHL[..., :, None] - log_BCHL[..., None, :]).float()
    # Masked before exp: the future would overflow, and its gradient with it.
    decay_BCHLS = torch.exp(between_BCHLS.masked_fill(future_LS, -torch.inf)).to(b_BCGSN.dtype)
    return (decay_BCHLS.unflatten(2, (n_groups, -1)) * scores_BCGLS[:, :, :, None]).flatten(2, 3)


def _native(x: Tensor) -> bool:
    """On the meta device too, where the operator is its shapes: what is counted there is what a CPU would run."""
    device = x.device.type
    return bool(x.dtype == torch.float32 and (device == "meta" or (device == "cpu" and kernel.available())))


def _carried(left_BCGNW: Tensor, decay_BCGR: Tensor, state_BGNRP: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state that each chunk finds, [B, C, G, N, W], and the one after the last, in float32."""
    left_BCGNRP = left_BCGNW.float().unflatten(-1, (decay_BCGR.shape[-1], -1))
    state = torch.zeros_like(left_BCGNRP[:, 0]) if state_BGNRP is None else state_BGNRP
    entering = []
    for left_BGNRP, decay_BGR in zip(left_BCGNRP.unbind(1), decay_BCGR.unbind(1), strict=True):
        entering.append(state)
        state = torch.addcmul(left_BGNRP, state, decay_BGR[:, :, None, :, None])
    return torch.stack(entering, 1).flatten(-2), state
