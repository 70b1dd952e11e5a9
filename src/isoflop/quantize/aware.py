"""Training that knows of the rounding: products read rounded matrices, gradients pass as though they had not been
(straight-through; Bengio et al. 2013, arXiv 1308.3432; Jacob et al. 2018, arXiv 1712.05877)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from isoflop.data.stream import BatchStream
from isoflop.model import DecoderModel
from isoflop.model.quantized import Format, round_to_nearest
from isoflop.quantize.run import Formats
from isoflop.quantize.sites import Site, stages_of_layer, table_of
from isoflop.train.extend import FineTuned, FineTuning, fine_tune


def train_aware(
    model: DecoderModel, stream: BatchStream, how: FineTuning, formats: Formats, tell: Callable[[int, int], None]
) -> FineTuned:
    """Fine-tune a copy of the model whose matrices of `formats` are rounded to nearest in every forward. What comes
    back is in full precision; rounded to nearest in the same formats, it is what the last step's loss was of. A tied
    table is one table while it trains and rounded wherever it is read. Raises Diverged."""
    return fine_tune(model, stream, how, tell, around=lambda training: rounded(training, formats))


class rounded:
    """Within it a model's matrices are read rounded."""

    def __init__(self, model: DecoderModel, formats: Formats) -> None:
        self.model, self.formats = model, formats

    def __enter__(self) -> None:
        sites = [
            site
            for i in range(len(self.model.layers))
            for stage in stages_of_layer(self.model, i)
            for site in stage.sites
        ]
        table = (
            Site("head.weight", self.model, "embedding") if self.model.head is None else table_of(self.model).sites[0]
        )
        for site in [*sites, table]:
            if site.name in self.formats:
                rounding = _StraightThrough(self.formats[site.name])
                parametrize.register_parametrization(site.module, site.part, rounding, unsafe=True)

    def __exit__(self, *error: object) -> None:
        for module in list(self.model.modules()):
            for part in list(getattr(module, "parametrizations", {})):
                parametrize.remove_parametrizations(module, part, leave_parametrized=False)


class _StraightThrough(nn.Module):
    def __init__(self, format: Format) -> None:
        super().__init__()
        self.format = format

    def forward(self, weight: Tensor) -> Tensor:
        rounded: Tensor = _Round.apply(weight, self.format)
        return rounded


class _Round(torch.autograd.Function):
    """The value of the rounded matrix, the gradient of the matrix. Stacks [E, I, O] are rounded expert by expert."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, format: Format) -> Tensor:
        if weight.dim() == 2:
            return round_to_nearest(weight, format).dense(weight.dtype)
        return torch.stack([round_to_nearest(matrix_IO.T, format).dense(weight.dtype).T for matrix_IO in weight])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None
