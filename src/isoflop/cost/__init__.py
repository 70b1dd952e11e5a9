"""Parameters, FLOPs and bytes: exact closed forms over an architecture. No torch."""

from isoflop.cost.cache import Cache, cache
from isoflop.cost.flops import CONVENTIONS, Flops, PartFlops, flops, flops_by_part, train_flops
from isoflop.cost.parameters import Parameters, parameters

__all__ = [
    "CONVENTIONS",
    "Cache",
    "Flops",
    "Parameters",
    "PartFlops",
    "cache",
    "flops",
    "flops_by_part",
    "parameters",
    "train_flops",
]
