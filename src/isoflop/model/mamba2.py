"""Mamba-2 (Dao and Gu 2024, arXiv 2405.21060, section 7.1). B batch, T position, M d_model, I d_inner, C channel of the
convolution, K its width, H head, G group of heads, R head of a group, P d_head, N d_state."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import architecture
from isoflop.model.convolution import CausalConvolution
from isoflop.model.kernels import mamba2 as kernel
from isoflop.model.linear import Linear
from isoflop.model.packed import Whole
from isoflop.model.place import Place
from isoflop.model.ssd import state_space


@dataclass
class Mamba2State(Whole):
    """What the past leaves: the convolution's last inputs [B, K, C], the sum of what was written [B, G, N, R, P]."""

    window: Tensor
    written: Tensor


class Mamba2(nn.Module):
    """See architecture.Mamba2. One matrix gives the gate, the convolution's input (values, b, c) and dt."""

    def __init__(self, mixer: architecture.Mamba2, decoder: architecture.Decoder) -> None:
        super().__init__()
        m = self.mixer = mixer
        self.zxbcdt = Linear(decoder.d_model, m.d_inner + m.d_convolved + m.n_heads, m.proj_bias)
        self.convolution = CausalConvolution(m.d_convolved, m.d_conv, m.conv_bias)
        self.dt_bias = nn.Parameter(torch.empty(m.n_heads))
        self.A_log = nn.Parameter(torch.empty(m.n_heads))
        self.D = nn.Parameter(torch.empty(m.n_heads))
        self.norm_weight = nn.Parameter(torch.empty(m.d_inner))
        self.out = Linear(m.d_inner, decoder.d_model, m.proj_bias)

    def forward(self, x_BTM: Tensor, place: Place, state: Mamba2State | None = None) -> Tensor:
        zxbcdt_BTZ = self.zxbcdt(x_BTM)
        return self.out(self._mix(zxbcdt_BTZ, None) if state is None else state.mix(self._mix, zxbcdt_BTZ))

    def _mix(self, zxbcdt_BTZ: Tensor, state: Mamba2State | None) -> Tensor:
        """All that runs along a sequence, [B, T, I]; `state` moves on in place."""
        m = self.mixer
        if state is not None and kernel.scans(zxbcdt_BTZ, self.between, state.window, state.written):
            return kernel.scan(m, zxbcdt_BTZ, self.between, state.window, state.written)
        z_BTI, xbc_BTC, dt_BTH = zxbcdt_BTZ.split((m.d_inner, m.d_convolved, m.n_heads), dim=-1)
        xbc_BTC = F.silu(self.convolution(xbc_BTC, state and state.window))
        d_groups = m.n_groups * m.d_state
        x_BTI, b_BTJ, c_BTJ = xbc_BTC.split((m.d_inner, d_groups, d_groups), dim=-1)
        x_BTHP = x_BTI.unflatten(-1, (m.n_heads, m.d_head))
        b_BTGN, c_BTGN = (s_BTJ.unflatten(-1, (m.n_groups, m.d_state)) for s_BTJ in (b_BTJ, c_BTJ))
        dt_BTH = F.softplus(dt_BTH.float() + self.dt_bias).clamp(m.dt_min, m.dt_max)
        y_BTHP, written = state_space(x_BTHP, dt_BTH, -torch.exp(self.A_log), b_BTGN, c_BTGN, state and state.written)
        if state is not None:
            state.written.copy_(written.detach())
        y_BTHP = torch.addcmul(y_BTHP, x_BTHP, self.D[:, None].to(x_BTHP.dtype))
        return self._gated_norm(y_BTHP.flatten(2), z_BTI)

    @property
    def between(self) -> kernel.Weights:
        """All weights but those of the two matrices."""
        c = self.convolution
        return kernel.Weights(c.kernel, c.bias, self.dt_bias, self.A_log, self.D, self.norm_weight)

    def _gated_norm(self, y_BTI: Tensor, z_BTI: Tensor) -> Tensor:
        """RMS norm of y * silu(z), over each of norm_groups equal parts."""
        m = self.mixer
        parts = (y_BTI * F.silu(z_BTI)).unflatten(-1, (m.norm_groups, -1))
        normed_BTI = F.rms_norm(parts, parts.shape[-1:], None, m.norm_eps).flatten(2)
        return normed_BTI * self.norm_weight.to(y_BTI.dtype)

    def new_state(self, batch: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Mamba2State:
        """The past of no token; its size does not depend on `capacity`."""
        m = self.mixer
        shape = (batch, m.n_groups, m.d_state, m.n_heads // m.n_groups, m.d_head)
        return Mamba2State(
            torch.zeros(batch, m.d_conv, m.d_convolved, dtype=dtype, device=device),
            torch.zeros(shape, dtype=torch.float32, device=device),
        )

    def first_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Decays of 1 to 16 a unit of dt, which starts between 0.001 and 0.1 (Dao and Gu 2024, their reference code);
        D = 1."""
        n_heads = self.mixer.n_heads
        decay_H = 1 + 15 * torch.rand(n_heads, generator=generator)
        return {"A_log": decay_H.log(), "dt_bias": first_dt_bias(n_heads, generator), "D": torch.ones(n_heads)}


def first_dt_bias(n: int, generator: torch.Generator) -> Tensor:
    """What softplus turns into steps log-uniform in [0.001, 0.1] (Gu and Dao 2023, arXiv 2312.00752, section 3.6)."""
    low, high = math.log(1e-3), math.log(1e-1)
    dt = torch.exp(low + (high - low) * torch.rand(n, generator=generator))
    return dt + torch.log(-torch.expm1(-dt))
