"""What one part of a layer contributes."""

from typing import Literal, NamedTuple

Convention = Literal["6nd", "palm", "exact", "hardware"]


class Part(NamedTuple):
    """Parameters of a mixer or a feed-forward: all; those one token uses; those of the matrices that one token's
    activations are multiplied with (no norms, biases, convolution kernels or decay rates)."""

    total: int
    active: int
    matmul: int


class Mixing(NamedTuple):
    """Forward FLOPs of a mixer beyond its matrices: over a whole sequence, and of the token that follows it."""

    sequence: float
    decode: float


def dense(matmul: int, other: int = 0) -> Part:
    """A part whose parameters serve every token: matrices, and the rest."""
    return Part(matmul + other, matmul + other, matmul)
