"""Optimizers: torch's own AdamW and Muon, one learning rate a kind of parameter."""

from typing import TYPE_CHECKING

from isoflop.architecture.base import Description, require_positive
from isoflop.train.recipe import Recipe, Scale

if TYPE_CHECKING:
    import torch

    from isoflop.model import DecoderModel


class AdamW(Description, frozen=True, tag="adamw"):
    """Loshchilov and Hutter 2017, arXiv 1711.05101. Norms are not decayed; beta2 and eps come with the rule."""

    beta1: float = 0.9
    weight_decay: float = 0.1

    def __post_init__(self) -> None:
        _check(self.beta1, self.weight_decay)


class Muon(Description, frozen=True, tag="muon"):
    """Orthogonalised momentum for hidden matrices (Jordan 2024), AdamW for tables, norms, routers and expert stacks.
    Updates are scaled to AdamW's size (Liu et al. 2025, arXiv 2502.16982), so that one learning rate serves both."""

    momentum: float = 0.95
    weight_decay: float = 0.1
    beta1: float = 0.9
    ns_steps: int = 5

    def __post_init__(self) -> None:
        _check(self.beta1, self.weight_decay)
        _check(self.momentum, self.weight_decay)
        require_positive(ns_steps=self.ns_steps)


Optimizer = AdamW | Muon


def build(model: "DecoderModel", spec: Optimizer, recipe: Recipe) -> "list[torch.optim.Optimizer]":
    """The optimizers of a model. Each group remembers its peak learning rate as `peak_lr`."""
    import torch

    groups = _groups(model, spec, recipe)
    hidden = [g for g in groups if isinstance(spec, Muon) and g["matrix"]]
    rest = [g for g in groups if not (isinstance(spec, Muon) and g["matrix"])]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=recipe.lr, betas=(spec.beta1, recipe.beta2), eps=recipe.eps, fused=True)
    ]
    if isinstance(spec, Muon):
        muon_groups = [{key: value for key, value in group.items() if key != "eps"} for group in hidden]
        optimizers.append(
            torch.optim.Muon(
                muon_groups,
                lr=recipe.lr,
                momentum=spec.momentum,
                ns_steps=spec.ns_steps,
                adjust_lr_fn="match_rms_adamw",
            )
        )
    return optimizers


def set_lr_factor(optimizers: "list[torch.optim.Optimizer]", factor: float) -> None:
    """Set every group's learning rate to its peak times `factor`."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor


def kind_of(name: str, n_dimensions: int) -> str:
    """The kind of a parameter by its name and dimensions: a field of recipe.Scales. Biases, decay rates and whatever
    else is no matrix go with the norms: they are not decayed."""
    if name in ("embedding", "positions"):
        return "embedding"
    if name.startswith("head."):
        return "head"
    is_matrix = n_dimensions >= 2 and name.endswith(("weight", "gate_up", "up", "down"))
    return "hidden" if is_matrix and "norm" not in name else "norm"


def _groups(model: "DecoderModel", spec: Optimizer, recipe: Recipe) -> list[dict]:  # type: ignore[type-arg]
    def scale(kind: str, matrix: bool) -> Scale:
        found: Scale = getattr(recipe.scales, kind)
        return _for_muon(found) if matrix and isinstance(spec, Muon) else found

    groups: dict[tuple[str, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        kind = kind_of(name, parameter.dim())
        is_matrix = (
            kind == "hidden" and parameter.dim() == 2 and not name.endswith(("router.weight", "shared_gate.weight"))
        )
        groups.setdefault((kind, is_matrix), []).append(parameter)
    return [
        {
            "params": parameters,
            "peak_lr": recipe.lr * scale(kind, matrix).lr,
            "eps": recipe.eps * scale(kind, matrix).eps,
            "weight_decay": 0.0 if kind == "norm" else spec.weight_decay * scale(kind, matrix).weight_decay,
            "matrix": matrix,
        }
        for (kind, matrix), parameters in groups.items()
    ]


def _for_muon(scale: Scale) -> Scale:
    """A rule's factors are AdamW's, whose updates have rank one where they matter: entries of size 1 move outputs by
    fan_in. Orthogonal updates with entries of size 1 move them by sqrt(fan_in) only, so their factor is the root."""
    return Scale(lr=scale.lr**0.5, eps=scale.eps, weight_decay=scale.weight_decay**0.5)


def _check(momentum: float, weight_decay: float) -> None:
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum (beta1) = {momentum} must lie in [0, 1)")
    if weight_decay < 0:
        raise ValueError(f"weight_decay = {weight_decay} must not be negative")
