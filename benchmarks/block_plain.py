"""What transformers does not have, in torch's plain operations: the peers of S4D and Hyena. B batch, T position,
M d_model, I channel, P conjugate pair, N order, S past and present."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.model.hyena import Hyena
from isoflop.model.s4d import S4D


class PlainS4D(nn.Module):
    """Gu et al. 2022 (arXiv 2206.11893) with complex numbers: every power of every pole written out, then transforms;
    token by token the recurrence, its constants made once. Shares the weights of ours."""

    def __init__(self, ours: S4D) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x_BTM: Tensor) -> Tensor:
        u_BIT = F.linear(x_BTM, self.ours.inner.weight).mT
        return self._out(_transformed(u_BIT, self._kernel(u_BIT.shape[-1])) + self.ours.D[:, None] * u_BIT)

    def prefill(self, x_BTM: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs, and the states after the last token."""
        pole_IP, b_IP, _ = self._discrete()
        u_BIT = F.linear(x_BTM, self.ours.inner.weight).mT
        ages_T = torch.arange(u_BIT.shape[-1] - 1, -1, -1)
        state_BIP = torch.einsum("bit,ipt->bip", u_BIT.to(pole_IP.dtype), pole_IP[..., None] ** ages_T) * b_IP
        return self.forward(x_BTM), state_BIP

    def stepper(self, past_BSM: Tensor) -> Callable[[Tensor], Tensor]:
        pole_IP, b_IP, c_IP = self._discrete()
        state_BIP = self.prefill(past_BSM)[1]

        def step(x_B1M: Tensor) -> Tensor:
            u_BI1 = F.linear(x_B1M, self.ours.inner.weight).mT
            state_BIP.mul_(pole_IP).add_(b_IP * u_BI1)
            y_BI = 2 * (c_IP * state_BIP).sum(-1).real
            return self._out(y_BI[..., None] + self.ours.D[:, None] * u_BI1)

        return step

    def _discrete(self) -> tuple[Tensor, Tensor, Tensor]:
        a_IP = torch.complex(-self.ours.log_A_real.exp(), self.ours.A_imag)
        pole_IP = torch.exp(self.ours.log_dt.exp()[:, None] * a_IP)
        return pole_IP, (pole_IP - 1) / a_IP, torch.view_as_complex(self.ours.C)

    def _kernel(self, n_tokens: int) -> Tensor:
        a_IP = torch.complex(-self.ours.log_A_real.exp(), self.ours.A_imag)
        dta_IP = self.ours.log_dt.exp()[:, None] * a_IP
        powers_IPT = torch.exp(dta_IP[..., None] * torch.arange(n_tokens))
        weight_IP = torch.view_as_complex(self.ours.C) * (torch.exp(dta_IP) - 1) / a_IP
        return 2 * torch.einsum("ip,ipt->it", weight_IP, powers_IPT).real

    def _out(self, y_BIT: Tensor) -> Tensor:
        return F.glu(F.linear(F.gelu(y_BIT).mT, self.ours.out.weight), dim=-1)


class PlainHyena(nn.Module):
    """Poli et al. 2023 (arXiv 2302.10866): torch's grouped convolution, transforms of twice the length; token by token
    dot products with filters made once. Shares the weights of ours, and its network of filters."""

    def __init__(self, ours: Hyena) -> None:
        super().__init__()
        self.ours = ours

    def forward(self, x_BTM: Tensor) -> Tensor:
        return self._mix(x_BTM)[0]

    def prefill(self, x_BTM: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Outputs; the short convolution's inputs, then those of the long ones, [B, I, T] each."""
        return self._mix(x_BTM)

    def stepper(self, past_BSM: Tensor) -> Callable[[Tensor], Tensor]:
        m, n_past = self.ours.mixer, past_BSM.shape[1]
        window, *pasts = self.prefill(past_BSM)[1]
        window_BCK = window[..., 1 - m.d_conv :]
        flipped_NMS = self.ours.filters(n_past + 1).flip(-1)
        inputs_NBMS = [F.pad(past, (0, 1)) for past in pasts]

        def step(x_B1M: Tensor) -> Tensor:
            inner_BC1 = F.linear(x_B1M, self.ours.inner.weight).mT
            window = torch.cat((window_BCK, inner_BC1), dim=-1)
            z_BM1, *gates = (window * self.ours.short.kernel).sum(-1, keepdim=True).chunk(m.order + 1, dim=1)
            for gate_BM1, past_BMS, taps_MS in zip(gates, inputs_NBMS, flipped_NMS, strict=True):
                past_BMS[..., -1:] = z_BM1
                z_BM1 = gate_BM1 * (past_BMS * taps_MS).sum(-1, keepdim=True)
            return F.linear(z_BM1.mT, self.ours.out.weight)

        return step

    def _mix(self, x_BTM: Tensor) -> tuple[Tensor, list[Tensor]]:
        n_tokens, kernel = x_BTM.shape[1], self.ours.short.kernel
        inner_BCT = F.linear(x_BTM, self.ours.inner.weight).mT
        short_BCT = F.conv1d(inner_BCT, kernel[:, None], padding=kernel.shape[1] - 1, groups=len(kernel))
        z_BMT, *gates = short_BCT[..., :n_tokens].chunk(self.ours.mixer.order + 1, dim=1)
        inputs = [inner_BCT]
        for gate_BMT, taps_MT in zip(gates, self.ours.filters(n_tokens), strict=True):
            inputs.append(z_BMT)
            z_BMT = gate_BMT * _transformed(z_BMT, taps_MT)
        return F.linear(z_BMT.mT, self.ours.out.weight), inputs


def _transformed(x_BIT: Tensor, taps_IT: Tensor) -> Tensor:
    size = 2 * x_BIT.shape[-1]
    return torch.fft.irfft(torch.fft.rfft(x_BIT, size) * torch.fft.rfft(taps_IT, size), size)[..., : x_BIT.shape[-1]]


class PlainSide:
    """Either of them as a side (sides.py)."""

    def __init__(self, ours: nn.Module) -> None:
        self.module: Any = PlainS4D(ours) if isinstance(ours, S4D) else PlainHyena(ours)

    def forward(self, n_sequences: int, n_tokens: int) -> Callable[[Tensor], Tensor]:
        return self.module

    def prefill(self, n_sequences: int, n_tokens: int) -> Callable[[Tensor], Tensor]:
        return lambda x_BTM: self.module.prefill(x_BTM)[0]

    def stepper(self, past_BSM: Tensor) -> Callable[[Tensor], Tensor]:
        return self.module.stepper(past_BSM)
