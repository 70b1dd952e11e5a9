"""What the fast mixers compute, as their papers define it: slow, step by step, and in matrix products that are counted.

Long convolutions by Fourier transforms and scans in chunks do other work than the mathematics they compute, and do it
in other operators. FLOPs of a recurrence or convolution are those of its definition, so for a count the definition
stands in for the fast path; the behaviour check (behaviour.py) holds the values of both together.

B batch, T position, C channel, K width of the short convolution, M d_model, H head, G group of heads, R head of a
group, P d_head, N d_state, I d_inner, Q conjugate pair.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.check.ledger import Ledger
from isoflop.model import convolution, hyena, mamba1, mamba2, s4d


@contextmanager
def by_definition(ledger: Ledger | None = None) -> Iterator[None]:
    """Within, recurrences and convolutions run as defined, in this process; a ledger books their products as mixing."""
    whole = ledger is not None and ledger.whole

    def booked(function: Callable[..., Any]) -> Callable[..., Any]:
        return function if ledger is None else lambda *args: ledger.as_mixing(function, *args)

    def long_convolution(x_BCT: Tensor, taps_CT: Tensor, n_last: int | None = None) -> Any:
        return booked(convolve)(x_BCT, taps_CT, n_last, whole)

    def newest_output(seen_BCT: Tensor, backward_CT: Tensor) -> Any:
        return long_convolution(seen_BCT, backward_CT.flip(-1), n_last=1)

    def s4d_forward(module: s4d.S4D, x_BTM: Tensor, place: Any, state: s4d.S4DState | None = None) -> Tensor:
        y_BTI = booked(lambda u_BTI: diagonal_state_space(module, u_BTI, state))(module.inner(x_BTM))
        return F.glu(module.out(F.gelu(y_BTI)), dim=-1)

    features = hyena.HyenaFilters._features

    def wanted_features(module: hyena.HyenaFilters, time_T: Tensor) -> Tensor:
        """By convention every product of the forward has two gradients, also that of the filters' first matrix with
        the positions, which no gradient reaches."""
        return features(module, time_T).requires_grad_(ledger is not None)

    with ExitStack() as exchanged:
        for owner, name, definition in (
            (convolution, "_native", lambda x_BTC: False),
            (convolution, "_Shifts", SimpleNamespace(apply=booked(shifts))),
            (mamba1, "selective_scan", booked(selective_scan)),
            (mamba2, "state_space", booked(state_space)),
            (s4d.S4D, "forward", s4d_forward),
            (hyena, "causal_convolution", long_convolution),
            (hyena, "newest_output", newest_output),
            (hyena.HyenaFilters, "_features", wanted_features),
        ):
            exchanged.enter_context(_exchange(owner, name, definition))
        yield


@contextmanager
def _exchange(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def shifts(x_BSC: Tensor, weight_KC: Tensor, bias_C: Tensor) -> Tensor:
    """Depthwise convolution: each output is a dot product of the last K inputs with the channel's kernel."""
    windows_CXK = x_BSC.unfold(1, len(weight_KC), 1).permute(2, 0, 1, 3).flatten(1, 2)
    y_CX1 = windows_CXK @ weight_KC.t()[:, :, None]
    return y_CX1[..., 0].t().unflatten(0, (len(x_BSC), -1)) + bias_C


def selective_scan(
    x_BTI: Tensor, dt_BTI: Tensor, a_IN: Tensor, b_BTN: Tensor, c_BTN: Tensor, state_BIN: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t a) h_(t-1) + (dt_t x_t) b_t^T, y_t = h_t c_t (arXiv 2312.00752, equation 2)."""
    h_BIN = x_BTI.new_zeros(len(x_BTI), *a_IN.shape) if state_BIN is None else state_BIN
    out = []
    for x_BI, dt_BI, b_BN, c_BN in zip(*(z.unbind(1) for z in (x_BTI, dt_BTI, b_BTN, c_BTN)), strict=True):
        h_BIN = torch.exp(dt_BI[..., None] * a_IN) * h_BIN + (dt_BI * x_BI)[..., None] @ b_BN[:, None]
        out.append((h_BIN @ c_BN[..., None])[..., 0])
    return torch.stack(out, 1), h_BIN


def state_space(
    x_BTHP: Tensor, dt_BTH: Tensor, a_H: Tensor, b_BTGN: Tensor, c_BTGN: Tensor, state_BGNRP: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """h_t = exp(dt_t a) h_(t-1) + b_t (dt_t x_t)^T, y_t = c_t^T h_t, a state [N, P] a head (arXiv 2405.21060, section
    7.1)."""
    batch, n_tokens, n_heads, _ = x_BTHP.shape
    b_BTHN, c_BTHN = (z.repeat_interleave(n_heads // z.shape[2], dim=2).float() for z in (b_BTGN, c_BTGN))
    written_BTHP = (x_BTHP * dt_BTH[..., None]).float()
    decay_BTH = torch.exp(dt_BTH * a_H)
    if state_BGNRP is None:
        h_BHNP = written_BTHP.new_zeros(batch, n_heads, b_BTHN.shape[-1], x_BTHP.shape[-1])
    else:
        h_BHNP = state_BGNRP.transpose(2, 3).flatten(1, 2)
    out = []
    for t in range(n_tokens):
        h_BHNP = decay_BTH[:, t, :, None, None] * h_BHNP + b_BTHN[:, t, :, :, None] @ written_BTHP[:, t, :, None]
        out.append((c_BTHN[:, t, :, None] @ h_BHNP)[:, :, 0])
    last_BGNRP = h_BHNP.unflatten(1, (b_BTGN.shape[2], -1)).transpose(2, 3)
    return torch.stack(out, 1).to(x_BTHP.dtype), last_BGNRP


def convolve(x_BCT: Tensor, taps_CT: Tensor, n_last: int | None, whole: bool) -> Tensor:
    """Outputs of the last positions, each a dot product of the inputs up to it with the reversed taps; `whole`: of all
    inputs, the later ones with taps of zero."""
    length = x_BCT.shape[-1]
    rows = []
    for t in range(length - (length if n_last is None else n_last), length):
        taps_CS = taps_CT[:, : t + 1].flip(-1)
        seen_CBS = x_BCT[..., : t + 1].transpose(0, 1).to(taps_CT.dtype)
        if whole:
            taps_CS, seen_CBS = (F.pad(z, (0, length - t - 1)) for z in (taps_CS, seen_CBS))
        rows.append((seen_CBS @ taps_CS[..., None])[..., 0])
    return torch.stack(rows, dim=-1).transpose(0, 1).to(x_BCT.dtype)


def diagonal_state_space(module: s4d.S4D, u_BTI: Tensor, state: s4d.S4DState | None) -> Tensor:
    """h_t = exp(dt A) h_(t-1) + B u_t, y_t = 2 Re C h_t + D u_t (arXiv 2206.11893, section 3), the real and imaginary
    parts of a channel's Q pairs being one vector of d_state numbers."""
    kept, held, c = module._powers(torch.ones(1, device=u_BTI.device)), module._held(), module.C.float().unbind(-1)
    kept_re, kept_im = kept.re[..., 0], kept.im[..., 0]
    write_IS1 = torch.cat((held.re, held.im), dim=-1)[..., None]
    read_I1S = 2 * torch.cat((c[0], -c[1]), dim=-1)[:, None]
    zeros = u_BTI.new_zeros(len(u_BTI), *kept_re.shape, dtype=torch.float32)
    re_BIQ, im_BIQ = (zeros, zeros) if state is None else state.states.unbind(-1)
    out = []
    for u_BI in u_BTI.float().unbind(1):
        decayed = (kept_re * re_BIQ - kept_im * im_BIQ, kept_re * im_BIQ + kept_im * re_BIQ)
        h_BIS = torch.cat(decayed, dim=-1) + (write_IS1 @ u_BI[..., None, None])[..., 0]
        out.append((read_I1S @ h_BIS[..., None])[..., 0, 0] + module.D.float() * u_BI)
        re_BIQ, im_BIQ = h_BIS.chunk(2, dim=-1)
    if state is not None:
        state.states.copy_(torch.stack((re_BIQ, im_BIQ), dim=-1).detach())
    return torch.stack(out, 1).to(u_BTI.dtype)
