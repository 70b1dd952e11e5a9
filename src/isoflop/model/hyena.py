"""Long convolutions between gates. B batch, T position, M d_model, N order, F d_filter, L capacity, K d_conv,
C = (order + 1) d_model."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import architecture
from isoflop.model.convolution import CausalConvolution
from isoflop.model.linear import Linear
from isoflop.model.long_convolution import causal_convolution
from isoflop.model.packed import Whole
from isoflop.model.place import Place

# Of the authors' published code: windows fall to a hundredth after this share of max_context, the first channel's
# latest, the last one's soonest; and the sines of models of language start at this frequency. Theirs do in every layer;
# here only the first layer's do and later ones at 1, as in the sinusoidal networks of Sitzmann et al. 2020 (arXiv
# 2006.09661). With 14 in each of three layers a step of Adam turns the phases by radians: at learning rates from .003
# such a filter learned nothing of a delay of four tokens, which this one learns within 200 steps at .003 and at .01.
SLOWEST, FASTEST = 1.5, 0.3
FIRST_FREQUENCY = 14.0


class Filters(NamedTuple):
    """Taps made from the weights, [N, M, L], float32, and the same from the last to the first, for a single token: they
    are those of every sequence, so no part of a sequence's bytes."""

    taps: Tensor
    backward: Tensor


@dataclass
class HyenaState(Whole):
    """What decoding keeps: the last K inputs of the short convolution, [B, K, C]; all inputs of each long one,
    [B, N, M, L], of which `length` are filled; and the filters, made once."""

    window: Tensor
    inputs: Tensor
    filters: Filters
    length: int = 0

    def append(self, n: int, z_BMT: Tensor) -> Tensor:
        """Keep the next inputs of convolution n and return all so far, [B, M, length + T]."""
        end = self.length + z_BMT.shape[-1]
        assert end <= self.inputs.shape[-1], f"the cache holds {self.inputs.shape[-1]} tokens"
        with torch.no_grad():
            self.inputs[:, n, :, self.length : end].copy_(z_BMT)
        return self.inputs[:, n, :, :end].to(z_BMT.dtype)


class Hyena(nn.Module):
    """See architecture.Hyena (Poli et al. 2023, arXiv 2302.10866, definition 3.1).

    v, x^1 .. x^N = short(inner(x)); z = v; then z = x^n * (h^n conv z + skip^n z) for n = 1 .. N; out(z). Every one of
    the N gates has its long filter, as the paper defines it (the authors' code has one filter less than gates).
    """

    def __init__(self, mixer: architecture.Hyena, decoder: architecture.Decoder) -> None:
        super().__init__()
        self.mixer, d_model = mixer, decoder.d_model
        self.inner = Linear(d_model, (mixer.order + 1) * d_model)
        self.short = CausalConvolution((mixer.order + 1) * d_model, mixer.d_conv, bias=False)
        self.filters = HyenaFilters(mixer, d_model, decoder.max_context)
        self.out = Linear(d_model, d_model)

    def forward(self, x_BTM: Tensor, place: Place, state: HyenaState | None = None) -> Tensor:
        """Raises ValueError where the sequence is longer than the filters, max_context."""
        inner_BTC = self.inner(x_BTM)
        return self.out(self._mix(inner_BTC, None) if state is None else state.mix(self._mix, inner_BTC))

    def _mix(self, inner_BTC: Tensor, state: HyenaState | None) -> Tensor:
        """All that runs along a sequence, [B, T, M]; `state` moves on in place."""
        n_new = inner_BTC.shape[1]
        taps_NMT = self._taps(n_new, state)
        projected_BTC = self.short(inner_BTC, None if state is None else state.window)
        z_BMT, *gates = projected_BTC.transpose(1, 2).chunk(self.mixer.order + 1, dim=1)
        for n, (gate_BMT, taps_MT) in enumerate(zip(gates, taps_NMT, strict=True)):
            seen_BMS = z_BMT if state is None else state.append(n, z_BMT)
            if state is not None and n_new == 1:
                taps_MS = state.filters.backward[n, :, -seen_BMS.shape[-1] :]
                z_BMT = gate_BMT * newest_output(seen_BMS, taps_MS)
            else:
                z_BMT = gate_BMT * causal_convolution(seen_BMS, taps_MT, n_last=n_new)
        if state is not None:
            state.length += n_new
        return z_BMT.transpose(1, 2)

    def new_state(self, batch: int, capacity: int, dtype: torch.dtype, device: torch.device) -> HyenaState:
        """An empty cache for `capacity` tokens; the filters are those of the weights as they are now."""
        m, d_model = self.mixer, self.filters.skip.shape[1]
        window = torch.zeros(batch, m.d_conv, (m.order + 1) * d_model, dtype=dtype, device=device)
        inputs = torch.zeros(batch, m.order, d_model, capacity, dtype=dtype, device=device)
        return HyenaState(window, inputs, self.made_filters(min(capacity, self.filters.max_context)))

    def made_filters(self, length: int) -> Filters:
        """The filters' first taps, of the weights as they are now."""
        with torch.no_grad():
            taps_NML = self.filters(length)
            return Filters(taps_NML, taps_NML.flip(-1))

    def _taps(self, n_new: int, state: HyenaState | None) -> Tensor:
        end = n_new if state is None else state.length + n_new
        if end > self.filters.max_context:
            raise ValueError(f"{end} tokens exceed max_context = {self.filters.max_context}, the length of the filters")
        return self.filters(end) if state is None else state.filters.taps[..., :end]


def newest_output(seen_BMS: Tensor, backward_MS: Tensor) -> Tensor:
    """The convolution's output at the last of S positions, [B, M, 1], of taps from the last to the first."""
    return (seen_BMS * backward_MS).sum(-1, keepdim=True).to(seen_BMS.dtype)


class HyenaFilters(nn.Module):
    """The N filters of every channel, as functions of the position t in 0 .. max_context - 1:
    window(t) * network(features(t)), plus the skip at t = 0 (arXiv 2302.10866, section 3.3).

    Features are t / L and the real and imaginary parts of exp(2 pi i k t / L), L = max_context, so that a tap does not
    depend on how long the sequence is. Always float32. Weights are not called `weight`: like the authors, we neither
    decay them nor scale their learning rate by the width of the model, which is not theirs.
    """

    def __init__(self, mixer: architecture.Hyena, d_model: int, max_context: int) -> None:
        super().__init__()
        self.max_context, self.n_waves = max_context, mixer.d_position // 2
        widths = (mixer.d_position, *(mixer.d_filter for _ in range(mixer.filter_layers - 1)))
        self.hidden = nn.ModuleList(
            SineLayer(d_in, d_out, 1.0 if i else FIRST_FREQUENCY) for i, (d_in, d_out) in enumerate(pairwise(widths))
        )
        self.last = nn.Parameter(torch.empty(mixer.order, d_model, widths[-1]))
        self.skip = nn.Parameter(torch.empty(mixer.order, d_model))

    def forward(self, length: int) -> Tensor:
        """The first taps, [N, M, length]."""
        time_T = torch.arange(length, dtype=torch.float32, device=self.skip.device) / self.max_context
        x_TF = self._features(time_T)
        for layer in self.hidden:
            x_TF = layer(x_TF)
        window_MT = torch.exp(-self._decay(time_T.device)[:, None] * time_T)
        taps_NMT = (self.last.float().flatten(0, 1) @ x_TF.t()).unflatten(0, self.skip.shape) * window_MT
        return taps_NMT + F.pad(self.skip.float()[..., None], (0, length - 1))

    def first_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Skips normal, as in the authors' code. The last matrix such that every whole filter has an energy of about
        one (a sine's is 1/2 at most): with torch's default, which the authors keep, outputs would grow with the root of
        the context at each of the N convolutions."""
        n, d_model, d_filter = self.last.shape
        decay_M = self._decay(torch.device("cpu"))
        energy_M = self.max_context * -torch.expm1(-2 * decay_M) / (2 * decay_M)
        last = torch.randn(n, d_model, d_filter, generator=generator)
        return {
            "last": last * (2 / (d_filter * energy_M.clamp_min(1)[:, None])).sqrt(),
            "skip": torch.randn(n, d_model, generator=generator),
        }

    def _features(self, time_T: Tensor) -> Tensor:
        waves_K = torch.arange(self.n_waves, dtype=torch.float32, device=time_T.device)
        angle_TK = 2 * math.pi * time_T[:, None] * waves_K
        return torch.cat((time_T[:, None], angle_TK.cos(), -angle_TK.sin()), dim=1)

    def _decay(self, device: torch.device) -> Tensor:
        """How fast each channel's window falls over max_context; [M]."""
        return torch.linspace(math.log(100) / SLOWEST, math.log(100) / FASTEST, self.skip.shape[1], device=device)


class SineLayer(nn.Module):
    """sin(frequency * (x @ matrix.T + bias)), the frequencies learned; float32."""

    def __init__(self, d_in: int, d_out: int, first_frequency: float) -> None:
        super().__init__()
        self.first_frequency = first_frequency
        self.matrix = nn.Parameter(torch.empty(d_out, d_in))
        self.bias = nn.Parameter(torch.empty(d_out))
        self.frequency = nn.Parameter(torch.empty(d_out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(self.frequency.float() * F.linear(x, self.matrix.float(), self.bias.float()))

    def first_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Uniform within 1 / sqrt(d_in), torch's default, which the authors keep; but matrices of later layers, those
        without the high frequency, within sqrt(6 / d_in): so sines of sines keep their size (arXiv 2006.09661)."""
        d_out, d_in = self.matrix.shape
        bound = d_in**-0.5
        stretch = 1.0 if self.first_frequency > 1 else math.sqrt(6)
        return {
            "matrix": stretch * bound * (2 * torch.rand(d_out, d_in, generator=generator) - 1),
            "bias": bound * (2 * torch.rand(d_out, generator=generator) - 1),
            "frequency": torch.full((d_out,), self.first_frequency),
        }
