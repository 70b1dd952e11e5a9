"""One residual layer. B batch, T position, M d_model."""

from typing import Any

from torch import Tensor, nn

from isoflop import architecture
from isoflop.model.attention import Attention
from isoflop.model.experts import MixtureOfExperts
from isoflop.model.hyena import Hyena
from isoflop.model.latent import LatentAttention
from isoflop.model.mamba1 import Mamba1
from isoflop.model.mamba2 import Mamba2
from isoflop.model.mlp import Mlp
from isoflop.model.norm import build_norm
from isoflop.model.place import Place
from isoflop.model.routing import RouterStats
from isoflop.model.s4d import S4D


class LayerModel(nn.Module):
    """See architecture.Layer and architecture.Placement."""

    def __init__(self, layer: architecture.Layer, decoder: architecture.Decoder) -> None:
        super().__init__()
        self.parallel, self.placement = layer.parallel, decoder.placement
        self.residual_multiplier = decoder.residual_multiplier
        self.stream_multiplier = (2 * decoder.n_layers) ** 0.25 if decoder.placement == "deep-norm" else 1.0
        self.mixer = None if layer.mixer is None else build_mixer(layer.mixer, decoder)
        self.feed_forward = None if layer.feed_forward is None else build_feed_forward(layer.feed_forward, decoder)
        sandwich = decoder.placement == "sandwich"
        rms = isinstance(decoder.norm, architecture.RmsNorm)
        self.plain = rms and decoder.placement == "pre" and layer.parallel == "no" and self.residual_multiplier == 1
        if self.mixer is not None:
            self.mixer_norm = build_norm(decoder.norm, decoder.d_model)
            self.mixer_out_norm = build_norm(decoder.norm, decoder.d_model) if sandwich else None
        if self.feed_forward is not None and layer.parallel != "shared-norm":
            self.feed_forward_norm = build_norm(decoder.norm, decoder.d_model)
            self.feed_forward_out_norm = build_norm(decoder.norm, decoder.d_model) if sandwich else None

    def forward(self, x_BTM: Tensor, place: Place, state: Any = None) -> tuple[Tensor, RouterStats | None]:
        if self.parallel != "no":
            return self._both_at_once(x_BTM, place, state)
        stats = None
        if self.mixer is not None:
            y_BTM = self.mixer(self._before(x_BTM, self.mixer_norm), place, state)
            x_BTM = self._after(x_BTM, y_BTM, self.mixer_norm, self.mixer_out_norm)
        if self.feed_forward is not None:
            y_BTM, stats = self._feed_forward(self._before(x_BTM, self.feed_forward_norm))
            x_BTM = self._after(x_BTM, y_BTM, self.feed_forward_norm, self.feed_forward_out_norm)
        return x_BTM, stats

    def _both_at_once(self, x_BTM: Tensor, place: Place, state: Any) -> tuple[Tensor, RouterStats | None]:
        assert self.mixer is not None
        normed_BTM = self.mixer_norm(x_BTM)
        mixed_BTM = self.mixer(normed_BTM, place, state)
        y_BTM, stats = self._feed_forward(
            normed_BTM if self.parallel == "shared-norm" else self.feed_forward_norm(x_BTM)
        )
        return x_BTM + self.residual_multiplier * (mixed_BTM + y_BTM), stats

    def _feed_forward(self, x_BTM: Tensor) -> tuple[Tensor, RouterStats | None]:
        assert self.feed_forward is not None
        y = self.feed_forward(x_BTM)
        return y if isinstance(y, tuple) else (y, None)

    def _before(self, x_BTM: Tensor, norm: nn.Module) -> Tensor:
        return norm(x_BTM) if self.placement in ("pre", "sandwich") else x_BTM

    def _after(self, x_BTM: Tensor, y_BTM: Tensor, norm: nn.Module, out_norm: nn.Module | None) -> Tensor:
        r = self.residual_multiplier
        match self.placement:
            case "pre":
                return x_BTM + (y_BTM if r == 1 else r * y_BTM)
            case "sandwich":
                assert out_norm is not None
                return x_BTM + r * out_norm(y_BTM)
            case "output":
                return x_BTM + r * norm(y_BTM)
            case "post" | "deep-norm":
                return norm(self.stream_multiplier * x_BTM + r * y_BTM)


def build_mixer(mixer: architecture.Mixer, decoder: architecture.Decoder) -> nn.Module:
    """The module of a description."""
    match mixer:
        case architecture.Attention():
            return Attention(mixer, decoder)
        case architecture.LatentAttention():
            return LatentAttention(mixer, decoder)
        case architecture.Mamba1():
            return Mamba1(mixer, decoder)
        case architecture.Mamba2():
            return Mamba2(mixer, decoder)
        case architecture.S4D():
            return S4D(mixer, decoder)
        case architecture.Hyena():
            return Hyena(mixer, decoder)


def build_feed_forward(feed_forward: architecture.FeedForward, decoder: architecture.Decoder) -> Mlp | MixtureOfExperts:
    """The module of a description."""
    match feed_forward:
        case architecture.Mlp():
            return Mlp(feed_forward, decoder.d_model)
        case architecture.MixtureOfExperts():
            return MixtureOfExperts(feed_forward, decoder.d_model)
