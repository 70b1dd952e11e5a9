"""Mamba-2's recurrence alone: our state_space beside the function that transformers' mixer calls. B batch, T position,
H head, P d_head, G group, N d_state; the block's input is the values, [B, T, H P]."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from isoflop.architecture import Mamba2
from isoflop.model.ssd import state_space


class Scan(nn.Module):
    """dt, decays, b and c of a batch, random and the same on both sides; their gradients are wanted too."""

    def __init__(self, mixer: Mamba2, n_sequences: int, n_tokens: int) -> None:
        super().__init__()
        self.mixer, generator = mixer, torch.Generator().manual_seed(0)

        def normal(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(n_sequences, n_tokens, *shape, generator=generator))

        self.b, self.c = (normal(mixer.n_groups, mixer.d_state) for _ in "bc")
        self.dt = nn.Parameter(0.05 * torch.rand(n_sequences, n_tokens, mixer.n_heads, generator=generator))
        self.a = nn.Parameter(-1 - 15 * torch.rand(mixer.n_heads, generator=generator))

    def heads(self, x_BTI: Tensor) -> Tensor:
        return x_BTI.unflatten(-1, (self.mixer.n_heads, -1))


class OurScan(Scan):
    def forward(self, x_BTI: Tensor) -> Tensor:
        return state_space(self.heads(x_BTI), self.dt, self.a, self.b, self.c)[0].flatten(2)


class TheirScan(Scan):
    def forward(self, x_BTI: Tensor) -> Tensor:
        from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan

        y = mamba2_chunk_scan(self.heads(x_BTI), self.dt, self.a, self.b, self.c, chunk_size=256)
        return (y[0] if isinstance(y, tuple) else y).flatten(2)


class ScanSide:
    """Either of them as a side (sides.py), which keeps nothing."""

    mixes = False

    def __init__(self, kind: type[Scan], mixer: Mamba2) -> None:
        self.kind, self.mixer = kind, mixer
        self.module: nn.Module = kind(mixer, 1, 1)

    def forward(self, n_sequences: int, n_tokens: int) -> Callable[[Tensor], Tensor]:
        self.module = self.kind(self.mixer, n_sequences, n_tokens)
        return self.module
