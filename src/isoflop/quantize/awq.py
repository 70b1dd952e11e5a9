"""Scales of input channels that spare what large inputs meet (Lin et al. 2023, arXiv 2306.00978). E expert, O d_out,
I d_in."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from isoflop.model.quantized import Format, round_to_nearest
from isoflop.quantize.clip import output_error

STEPS = 20  # powers tried between 0 and 1: the paper's


class Read(NamedTuple):
    """A matrix, its inputs' mean x xᵀ and what it is to become."""

    weight_OI: Tensor
    gram_II: Tensor
    format: Format


def best_scales(reads: Sequence[Read], size_I: Tensor) -> Tensor:
    """s [I], all above 0, of the form mean|x|^a: the one for which round(W s) of x / s is nearest to W x, over all
    matrices that read the same input. a = 0, no scales, is among them: so they are never worse than none, by this
    measure."""
    best_I, least = torch.ones_like(size_I), _error(reads, torch.ones_like(size_I))
    for step in range(1, STEPS):
        scales_I = _scales(size_I, step / STEPS)
        error = _error(reads, scales_I)
        if error < least:
            best_I, least = scales_I, error
    return best_I


def _scales(size_I: Tensor, power: float) -> Tensor:
    """Their largest is the inverse of their least; channels without inputs are as small as the least."""
    seen_I = size_I[size_I > 0]
    if len(seen_I) == 0:
        return torch.ones_like(size_I)
    scales_I = size_I.clamp(min=seen_I.min()).clamp(min=1e-4 * float(seen_I.max())).pow(power)
    return scales_I / (scales_I.max() * scales_I.min()).sqrt()


def _error(reads: Sequence[Read], scales_I: Tensor) -> float:
    total = 0.0
    for weight_OI, gram_II, format in reads:
        rounded_OI = round_to_nearest(weight_OI * scales_I, format).dense() / scales_I
        total += output_error(rounded_OI - weight_OI, gram_II)
    return total
