"""First weights: normal, with a deviation by role, drawn in a fixed order from an explicit seed."""

import torch
from torch import Tensor, nn

from isoflop.model import DecoderModel
from isoflop.train.recipe import Recipe


def initialize(model: DecoderModel, seed: int, recipe: Recipe) -> None:
    """Fill every parameter in place: matrices normal(0, 1 / fan_in), those that write to the residual stream smaller by
    sqrt(2 n_layers) if the recipe says so (Radford et al. 2019), tables by the recipe, norms one, biases zero, and what
    a mixer sets itself as it says (`first_values`). Drawn on the CPU: the same on any device."""
    generator = torch.Generator().manual_seed(seed)
    own = _own_values(model, generator)
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            if name in own:
                parameter.copy_(own[name])
            elif name.endswith("bias") or name.endswith("sinks"):
                parameter.zero_()
            elif parameter.dim() == 1:
                nn.init.ones_(parameter)
            else:
                draw = torch.empty(parameter.shape, dtype=torch.float32).normal_(0, 1, generator=generator)
                parameter.copy_(draw * _deviation(name, parameter, model, recipe))


def _own_values(model: DecoderModel, generator: torch.Generator) -> dict[str, Tensor]:
    """Values that modules give their own parameters, by the parameters' whole names."""
    values: dict[str, Tensor] = {}
    for prefix, module in model.named_modules():
        first_values = getattr(module, "first_values", None)
        if first_values is not None:
            values |= {f"{prefix}.{name}": value for name, value in first_values(generator).items()}
    return values


def _deviation(name: str, parameter: torch.Tensor, model: DecoderModel, recipe: Recipe) -> float:
    decoder = model.decoder
    if name in ("embedding", "positions"):
        return recipe.embedding_std or (decoder.d_model**-0.5 if decoder.tie_embeddings else 1.0)
    if name == "head.weight":
        return recipe.embedding_std or decoder.d_model**-0.5
    fan_in = float(parameter.shape[1])  # linear weights are [out, in], expert stacks [E, in, out]
    writes_residual = name.endswith(("out.weight", "down", "down.weight"))
    if decoder.placement == "deep-norm":  # arXiv 2203.00555, table 2, decoder-only
        return float(fan_in**-0.5 * ((8 * decoder.n_layers) ** -0.25 if writes_residual else 1.0))
    shrink = (2 * decoder.n_layers) ** -0.5 if recipe.depth_scaled_init and writes_residual else 1.0
    return float(fan_in**-0.5 * shrink)
