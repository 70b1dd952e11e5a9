"""The matrices of a model, by what they read. E expert (1 where there are none), O d_out, I d_in, M d_model, F d_ff."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from isoflop import architecture
from isoflop.model import DecoderModel
from isoflop.model.attention import Attention
from isoflop.model.experts import MixtureOfExperts
from isoflop.model.hyena import Hyena
from isoflop.model.latent import LatentAttention
from isoflop.model.layer import LayerModel
from isoflop.model.linear import Linear
from isoflop.model.mamba1 import Mamba1
from isoflop.model.mamba2 import Mamba2
from isoflop.model.mlp import Mlp
from isoflop.model.s4d import S4D

Fold = Callable[[Tensor], None]  # divides, in place, what makes an input, by scales [E, I]

# What has no place in codes, and why; `isoflop quantize` says so.
KEPT = {
    "embedding": "a lookup, no product",
    "positions": "a lookup, no product",
    "router": "its ties decide which experts are read",
    "shared_gate": "a single row",
    "kernel": "a convolution of a few taps",
    "filters": "float32 functions that make a filter once",
}


@dataclass(frozen=True, eq=False)
class Site:
    """A matrix, or one for each expert: `part` of `module`. `name` is that of its tensor in the model's state."""

    name: str
    module: nn.Module
    part: str

    @property
    def tensor(self) -> Tensor:
        found: Tensor = getattr(self.module, self.part)
        return found

    def dense(self) -> Tensor:
        """A view [E, O, I]."""
        return self.tensor.detach().mT if self.tensor.dim() == 3 else self.tensor.detach()[None]

    @property
    def shape(self) -> tuple[int, int, int]:
        """E, O, I."""
        e, o, i = self.dense().shape
        return e, o, i


@dataclass(frozen=True, eq=False)
class Stage:
    """Sites that read the same input, and the matrices that read it too and stay as they are. `fold` moves scales of
    the input to what makes it, exactly; None where nothing can."""

    sites: tuple[Site, ...]
    beside: tuple[Linear, ...] = ()
    fold: Fold | None = None


def stages_of_layer(model: DecoderModel, i: int) -> list[Stage]:
    """The stages of layer i, each after those whose outputs it reads."""
    layer = model.layers[i]
    assert isinstance(layer, LayerModel)
    at, normed = f"layers.{i}.", layer.placement in ("pre", "sandwich")
    first_m, first_f = _Reads([], []), _Reads([], [])
    after_m = [] if layer.mixer is None else _mixer(layer.mixer, f"{at}mixer.", first_m)
    after_f = [] if layer.feed_forward is None else _feed_forward(layer.feed_forward, f"{at}feed_forward.", first_f)
    if layer.parallel == "shared-norm":
        both = _Reads(first_m.sites + first_f.sites, first_f.beside)
        return [both.stage(_fold_norm(layer.mixer_norm) if normed else None), *after_m, *after_f]
    stages = []
    if layer.mixer is not None:
        stages += [first_m.stage(_fold_norm(layer.mixer_norm) if normed else None), *after_m]
    if layer.feed_forward is not None:
        stages += [first_f.stage(_fold_norm(layer.feed_forward_norm) if normed else None), *after_f]
    return stages


def untie(model: DecoderModel) -> None:
    """Give a tied table a copy to multiply with: codes of the one that is looked up would save nothing there."""
    if model.head is None:
        model.head = Linear(model.decoder.d_model, model.decoder.vocab_size)
        model.head.weight = nn.Parameter(model.embedding.detach().clone())


def table_of(model: DecoderModel) -> Stage:
    """The output table of a model that has one of its own."""
    assert model.head is not None, "untie first"
    fold = None if model.norm is None else _fold_norm(model.norm)
    return Stage((Site("head.weight", model.head, "weight"),), (), fold)


def stages_of(model: DecoderModel) -> list[Stage]:
    """All stages of a model in the order of its forward."""
    layers = [stage for i in range(len(model.layers)) for stage in stages_of_layer(model, i)]
    return [*layers, table_of(model)]


def sites_of(model: DecoderModel) -> Iterator[Site]:
    """Every matrix that can be of few bits."""
    return (site for stage in stages_of(model) for site in stage.sites)


@dataclass
class _Reads:
    """What reads the input of a mixer or feed-forward."""

    sites: list[Site]
    beside: list[Linear]

    def stage(self, fold: Fold | None) -> Stage:
        return Stage(tuple(self.sites), tuple(self.beside), fold)


def _linear(module: nn.Module, name: str, at: str) -> Site:
    return Site(f"{at}{name}.weight", getattr(module, name), "weight")


def _mixer(mixer: nn.Module, at: str, reads: _Reads) -> list[Stage]:
    """Adds the readers of the layer's input to `reads`; returns the later stages."""
    match mixer:
        case Attention():
            reads.sites += [_linear(mixer, "qkv", at)]
            return [Stage((_linear(mixer, "out", at),), (), _fold_values(mixer))]
        case LatentAttention():
            return _latent(mixer, at, reads)
        case Mamba1():
            reads.sites += [_linear(mixer, "xz", at)]
            fold = _fold_norm(mixer.dt_norm) if mixer.mixer.inner_norms else None
            steps = [Stage((_linear(mixer, "dtbc", at),)), Stage((_linear(mixer, "dt", at),), (), fold)]
            return [*steps, Stage((_linear(mixer, "out", at),))]
        case Mamba2():
            reads.sites += [_linear(mixer, "zxbcdt", at)]
            return [Stage((_linear(mixer, "out", at),), (), _fold_vectors(mixer.norm_weight))]
        case S4D() | Hyena():
            reads.sites += [_linear(mixer, "inner", at)]
            return [Stage((_linear(mixer, "out", at),))]
        case _:
            raise AssertionError(f"{type(mixer).__name__} is no mixer")


def _latent(mixer: LatentAttention, at: str, reads: _Reads) -> list[Stage]:
    m, stages = mixer.mixer, []
    if m.q_rank is None:
        reads.sites += [_linear(mixer, "q", at)]
    else:
        reads.sites += [_linear(mixer, "q_down", at)]
        stages += [Stage((_linear(mixer, "q_up", at),), (), _fold_norm(mixer.q_norm))]
    reads.sites += [_linear(mixer, "kv_down", at)]
    values_HV = mixer.kv_up.weight.detach().unflatten(0, (m.n_heads, -1))[:, m.d_nope :]

    def fold(scales_EI: Tensor) -> None:
        values_HV.div_(scales_EI.view(m.n_heads, m.d_value, 1))

    up = Stage((_linear(mixer, "kv_up", at),), (), _fold_norm(mixer.kv_norm))
    return [*stages, up, Stage((_linear(mixer, "out", at),), (), fold)]


def _feed_forward(feed_forward: nn.Module, at: str, reads: _Reads) -> list[Stage]:
    if isinstance(feed_forward, Mlp):
        return _mlp(feed_forward, at, reads)
    assert isinstance(feed_forward, MixtureOfExperts)
    f, first = feed_forward.feed_forward, feed_forward.first
    reads.sites += [Site(at + first, feed_forward, first)]
    reads.beside += [feed_forward.router]
    up_EFI = getattr(feed_forward, first).detach().mT
    bias_EF = getattr(feed_forward, f"{first}_bias").detach() if f.bias else None
    stages = [Stage((Site(f"{at}down", feed_forward, "down"),), (), _fold_up(f.activation, up_EFI, bias_EF))]
    if f.shared is not None:
        stages += _mlp(feed_forward.shared, f"{at}shared.", reads)
        reads.beside += [feed_forward.shared_gate] if f.shared.gated else []
    return stages


def _mlp(mlp: Mlp, at: str, reads: _Reads) -> list[Stage]:
    name = "gate_up" if mlp.gated else "up"
    reads.sites += [_linear(mlp, name, at)]
    up: Linear = getattr(mlp, name)
    bias_EF = None if up.bias is None else up.bias.detach()[None]
    fold = _fold_up(mlp.feed_forward.activation, up.weight.detach()[None], bias_EF)
    return [Stage((_linear(mlp, "down", at),), (), fold)]


def _fold_norm(norm: nn.Module) -> Fold:
    bias = getattr(norm, "bias", None)
    return _fold_vectors(*(vector for vector in (norm.weight, bias) if isinstance(vector, Tensor)))


def _fold_vectors(*vectors_I: Tensor) -> Fold:
    def fold(scales_EI: Tensor) -> None:
        for vector_I in vectors_I:
            vector_I.detach().div_(scales_EI[0])

    return fold


def _fold_values(attention: Attention) -> Fold | None:
    """What attention mixes is linear in the values, unless these are clipped. Query heads that share a value head read
    the same channels: a scale of each cannot be moved there."""
    m = attention.mixer
    if m.clip_qkv is not None or m.n_heads != m.n_kv_heads:
        return None
    width = m.n_kv_heads * m.d_head
    rows = [attention.qkv.weight.detach()[-width:]]
    rows += [] if attention.qkv.bias is None else [attention.qkv.bias.detach()[-width:, None]]

    def fold(scales_EI: Tensor) -> None:
        for values in rows:
            values.div_(scales_EI.view(-1, 1))

    return fold


def _fold_up(activation: architecture.feed_forward.Activation, up_EHI: Tensor, bias_EH: Tensor | None) -> Fold | None:
    """What a gate gates is linear in the up projection; ReLU commutes with a positive scale, its square with the root.
    A clamped gate and smooth functions without a gate do not."""
    if activation not in ("swiglu", "geglu", "geglu-tanh", "relu", "relu2"):
        return None
    gated, power = activation.endswith(("glu", "glu-tanh")), 0.5 if activation == "relu2" else 1.0

    def fold(scales_EF: Tensor) -> None:
        for rows in (up_EHI, None if bias_EH is None else bias_EH[..., None]):
            if rows is not None:
                (rows.chunk(2, dim=1)[1] if gated else rows).div_(scales_EF[..., None] ** power)

    return fold


def scale_inputs(stage: Stage, scales_EI: Tensor) -> None:
    """Multiply every reader's columns by the scales; with `fold`, the function stays what it was."""
    for site in stage.sites:
        site.dense().mul_(scales_EI[:, None])
    for linear in stage.beside:
        linear.weight.detach().mul_(scales_EI)


def require_finite(site: Site) -> None:
    """Raises ValueError where a matrix holds what no code stands for."""
    if not bool(torch.isfinite(site.tensor).all()):
        raise ValueError(f"tensor '{site.name}' holds NaN or infinity")
