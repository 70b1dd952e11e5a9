"""What determines a training run, but for its data and its length. No torch."""

from typing import Literal

from isoflop.architecture import Decoder
from isoflop.architecture.base import Description
from isoflop.cost import flops
from isoflop.train.optimizer import Optimizer
from isoflop.train.recipe import EarlyExit, Recipe


class TrainSpec(Description, frozen=True, omit_defaults=True):
    """A model, its recipe and optimizer, the seed of its first weights and of the order of its data. What is left at
    its default is not written: runs made before there was such a key keep their hashes."""

    decoder: Decoder
    recipe: Recipe
    optimizer: Optimizer
    grad_clip: float
    dtype: Literal["fp32", "bf16"]
    seed: int
    compile: bool
    early_exit: EarlyExit | None = None

    def __post_init__(self) -> None:
        if self.early_exit is not None:
            self.early_exit.require_within(self.decoder.n_layers)

    def flops_per_token(self, context: int) -> float:
        """Exact FLOPs of training on a token."""
        return flops(self.decoder, context, "exact", early_exit=self.early_exit is not None).train_per_token
