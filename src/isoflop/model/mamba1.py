"""Mamba-1 (Gu and Dao 2023, arXiv 2312.00752, section 3.4). B batch, T position, M d_model, I d_inner, K width of the
convolution, R dt_rank, N d_state."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import architecture
from isoflop.model.convolution import CausalConvolution
from isoflop.model.linear import Linear
from isoflop.model.mamba2 import first_dt_bias
from isoflop.model.norm import RmsNorm
from isoflop.model.packed import Whole
from isoflop.model.place import Place
from isoflop.model.scan import selective_scan


@dataclass
class Mamba1State(Whole):
    """What the past leaves: the convolution's last inputs [B, K, I], and the sum of what was written [B, I, N]."""

    window: Tensor
    written: Tensor


class Mamba1(nn.Module):
    """See architecture.Mamba1. One matrix gives the values and their gate, one dt (of low rank), b and c."""

    def __init__(self, mixer: architecture.Mamba1, decoder: architecture.Decoder) -> None:
        super().__init__()
        m = self.mixer = mixer
        self.xz = Linear(decoder.d_model, 2 * m.d_inner, m.proj_bias)
        self.convolution = CausalConvolution(m.d_inner, m.d_conv, m.conv_bias)
        self.dtbc = Linear(m.d_inner, m.dt_rank + 2 * m.d_state)
        self.dt = Linear(m.dt_rank, m.d_inner)
        self.dt_bias = nn.Parameter(torch.empty(m.d_inner))
        self.A_log = nn.Parameter(torch.empty(m.d_inner, m.d_state))
        self.D = nn.Parameter(torch.empty(m.d_inner))
        self.out = Linear(m.d_inner, decoder.d_model, m.proj_bias)
        if m.inner_norms:
            norm = architecture.RmsNorm(m.norm_eps)
            self.dt_norm, self.b_norm, self.c_norm = (RmsNorm(norm, d) for d in (m.dt_rank, m.d_state, m.d_state))

    def forward(self, x_BTM: Tensor, place: Place, state: Mamba1State | None = None) -> Tensor:
        xz_BTC = self.xz(x_BTM)
        return self.out(self._mix(xz_BTC, None) if state is None else state.mix(self._mix, xz_BTC))

    def _mix(self, xz_BTC: Tensor, state: Mamba1State | None) -> Tensor:
        """All that runs along a sequence, [B, T, I]; `state` moves on in place."""
        x_BTI, z_BTI = xz_BTC.chunk(2, dim=-1)
        x_BTI = F.silu(self.convolution(x_BTI, state and state.window))
        dt_BTI, b_BTN, c_BTN = self._steps_and_maps(x_BTI)
        y_BTI, written = selective_scan(
            x_BTI.float(), dt_BTI, -torch.exp(self.A_log.float()), b_BTN.float(), c_BTN.float(), state and state.written
        )
        if state is not None:
            state.written.copy_(written.detach())
        y_BTI = torch.addcmul(y_BTI, x_BTI, self.D).to(x_BTI.dtype)
        return y_BTI * F.silu(z_BTI)

    def _steps_and_maps(self, x_BTI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """dt [B, T, I], float32; what writes to the states and what reads them, each [B, T, N]."""
        m = self.mixer
        dt_BTR, b_BTN, c_BTN = self.dtbc(x_BTI).split((m.dt_rank, m.d_state, m.d_state), dim=-1)
        if m.inner_norms:
            dt_BTR, b_BTN, c_BTN = self.dt_norm(dt_BTR), self.b_norm(b_BTN), self.c_norm(c_BTN)
        return F.softplus(self.dt(dt_BTR).float() + self.dt_bias), b_BTN, c_BTN

    def new_state(self, batch: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Mamba1State:
        """The past of no token; its size does not depend on `capacity`."""
        m = self.mixer
        return Mamba1State(
            torch.zeros(batch, m.d_conv, m.d_inner, dtype=dtype, device=device),
            torch.zeros(batch, m.d_inner, m.d_state, dtype=torch.float32, device=device),
        )

    def first_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Decays 1 to d_state a unit of dt, as S4D-Real (Gu and Dao 2023, section 3.6); D = 1."""
        m = self.mixer
        a_log_IN = torch.arange(1, m.d_state + 1).float().log().repeat(m.d_inner, 1)
        return {"A_log": a_log_IN, "dt_bias": first_dt_bias(m.d_inner, generator), "D": torch.ones(m.d_inner)}
