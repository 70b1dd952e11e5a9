"""Normalisations, and where a layer places them."""

from typing import Literal

from isoflop.architecture.base import Description, require_positive


class RmsNorm(Description, frozen=True, tag="rms-norm"):
    """x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019, arXiv 1910.07467)."""

    eps: float = 1e-5

    def __post_init__(self) -> None:
        require_positive(eps=self.eps)


class LayerNorm(Description, frozen=True, tag="layer-norm"):
    """(x - mean) / sqrt(var + eps) * weight + bias (Ba et al. 2016, arXiv 1607.06450); `bias = false` leaves it out."""

    eps: float = 1e-5
    bias: bool = True

    def __post_init__(self) -> None:
        require_positive(eps=self.eps)


Norm = RmsNorm | LayerNorm

# Where a layer normalises; f is its mixer or its feed-forward.
#   pre        x + f(norm(x))
#   post       norm(x + f(x))                      (Vaswani et al. 2017, arXiv 1706.03762)
#   sandwich   x + norm(f(norm(x)))                (Gemma 2, arXiv 2408.00118)
#   output     x + norm(f(x))                      (OLMo 2, arXiv 2501.00656)
#   deep-norm  norm(alpha * x + f(x)), alpha = (2 n_layers)^(1/4)   (Wang et al. 2022, arXiv 2203.00555)
Placement = Literal["pre", "post", "sandwich", "output", "deep-norm"]

# Norms of the width of the stream that one mixer or feed-forward brings.
NORMS_A_BRANCH: dict[Placement, int] = {"pre": 1, "post": 1, "sandwich": 2, "output": 1, "deep-norm": 1}
