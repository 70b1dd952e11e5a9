"""What share of its stated rates a device reaches in real work."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import numpy as np


class Efficiency(NamedTuple):
    """Shares of the stated rates of products in half precision and in fp8, of attention (of its causal FLOPs), of the
    memory's bandwidth and of the links'; seconds that a layer costs a micro-batch whatever its size; by how much each
    doubling of the nodes slows a step."""

    products: "float | np.ndarray"
    low_precision: "float | np.ndarray"
    attention: "float | np.ndarray"
    bandwidth: "float | np.ndarray"
    link: "float | np.ndarray"
    overhead_s: "float | np.ndarray"
    spread: "float | np.ndarray"
