"""The engine as a side of benchmarks/families.py: python families_ours.py THREADS FAMILY fp32|int8."""

import sys

import torch
from torch import nn

from families_shape import FAMILIES
from inference_ours import FORMATS, Ours
from inference_shape import serve
from isoflop.model import DecoderModel
from isoflop.model.experts import MixtureOfExperts
from isoflop.model.quantized import Format, quantize_linears, round_to_nearest
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe


def build(family: str, kind: str) -> tuple[DecoderModel, float]:
    """The model, and the bytes of a weight that is multiplied by."""
    model = DecoderModel(FAMILIES[family]).eval().requires_grad_(False)
    initialize(model, 0, Recipe(lr=1.0, batch=1))
    n_weights = sum(weight.numel() for weight in _held(model))
    if kind in FORMATS:
        for module in model.modules():
            if isinstance(module, MixtureOfExperts):
                quantize_experts(module, FORMATS[kind])
        quantize_linears(model, FORMATS[kind])
    return model, sum(weight.nbytes for weight in _held(model)) / n_weights


def quantize_experts(module: MixtureOfExperts, format: Format) -> None:
    for name in (module.first, "down"):
        stack_EIO = getattr(module, name).detach()
        module.quantize(name, round_to_nearest(stack_EIO.transpose(1, 2).flatten(0, 1), format))


def _held(model: nn.Module) -> list[torch.Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return [weight for name, weight in named if not name.startswith(("embedding", "ropes"))]


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    model, a_weight = build(sys.argv[2], sys.argv[3])
    ours = Ours(model)
    serve(a_weight, ours.decode, ours.prefill)


if __name__ == "__main__":
    main()
