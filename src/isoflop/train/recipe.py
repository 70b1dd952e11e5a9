"""What a run trains with: everything a hyperparameter rule decides. Plain arithmetic, no torch."""

from isoflop.architecture.base import Description, require_positive


class Scale(Description, frozen=True):
    """Factors on the recipe's learning rate, epsilon and weight decay for one kind of parameter."""

    lr: float = 1.0
    eps: float = 1.0
    weight_decay: float = 1.0


class Scales(Description, frozen=True):
    """One Scale a kind of parameter: input table (and tied output), hidden matrices, output table, norms."""

    embedding: Scale = Scale()
    hidden: Scale = Scale()
    head: Scale = Scale()
    norm: Scale = Scale()


class EarlyExit(Description, frozen=True):
    """`weight` times the loss of the head's reading after the first `after` layers is minimised beside the model's own,
    so that those layers can draft for the model (Elhoushi et al. 2024, LayerSkip, arXiv 2404.16710)."""

    after: int
    weight: float = 0.3

    def __post_init__(self) -> None:
        require_positive(after=self.after, weight=self.weight)

    def require_within(self, n_layers: int, of: str = "") -> None:
        """Raises ValueError, saying `of` what, where a model of n_layers has no layers after the exit."""
        if self.after >= n_layers:
            valid = f"must be from 1 to {n_layers - 1}" if n_layers > 1 else "a model of one layer has none"
            raise ValueError(f"{of}early_exit after {self.after} of {n_layers} layers: {valid}")


class Recipe(Description, frozen=True):
    """`lr` is the peak; `batch` is in sequences of the study's context. `embedding_std` is the deviation of the first
    tables (None: 1 / sqrt(d_model) where tied, 1 where not); `depth_scaled_init` starts the matrices that write to the
    residual stream smaller by sqrt(2 n_layers)."""

    lr: float
    batch: int
    beta2: float = 0.95
    eps: float = 1e-8
    scales: Scales = Scales()
    embedding_std: float | None = None
    depth_scaled_init: bool = True

    def __post_init__(self) -> None:
        require_positive(lr=self.lr, batch=self.batch, eps=self.eps)
        if not 0 < self.beta2 < 1:
            raise ValueError(f"beta2 = {self.beta2} must lie between 0 and 1")
