"""Scales by the error they leave in the outputs. O d_out, I d_in, G group of columns, C column of a group."""

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.model.quantized import Format, Integer, QuantizedWeight, round_to_nearest, spread

# Shares of a group's extremes to try: at few bits, rounding all finer is worth cutting off a few.
SHARES = tuple(1 - step / 20 for step in range(13))


def nearest_with_best_scales(weight_OI: Tensor, gram_II: Tensor, format: Format) -> QuantizedWeight:
    """Rounded to nearest after each group's extremes are cut to the share of them that leaves the least mean square
    error of that group's part of the outputs (Lin et al. 2023, arXiv 2306.00978, appendix on weight clipping).
    `gram_II` is the mean of x xᵀ; between groups it is not looked at."""
    group = format.group or weight_OI.shape[1]
    blocks_GCC = _diagonal_blocks(gram_II, group)
    best_OG = torch.full((len(weight_OI), len(blocks_GCC)), torch.inf)
    share_OG = torch.ones_like(best_OG)
    for share in SHARES:
        cut_OI = _cut(weight_OI, torch.full_like(best_OG, share), format)
        off_OI = round_to_nearest(cut_OI, format).dense() - weight_OI
        error_OG = _errors(off_OI, blocks_GCC, group)
        better_OG = error_OG < best_OG
        best_OG, share_OG = torch.where(better_OG, error_OG, best_OG), share_OG.masked_fill(better_OG, share)
    return round_to_nearest(_cut(weight_OI, share_OG, format), format)


def output_error(off_OI: Tensor, gram_II: Tensor) -> float:
    """Mean square of what an error of the matrix adds to the outputs, summed over them."""
    return float(((off_OI @ gram_II) * off_OI).sum())


def _grouped(x_OI: Tensor, group: int) -> Tensor:
    """[O, G, C], zeros after the last column."""
    return F.pad(x_OI, (0, -x_OI.shape[1] % group)).unflatten(1, (-1, group))


def _cut(weight_OI: Tensor, share_OG: Tensor, format: Format) -> Tensor:
    """Asymmetric integers are cut at a share of either extreme, all else at one of the largest size."""
    group, d_in = format.group or weight_OI.shape[1], weight_OI.shape[1]
    groups_OGC = _grouped(weight_OI, group)
    if isinstance(format, Integer) and not format.symmetric:
        low_OG, high_OG = groups_OGC.amin(-1).clamp(max=0), groups_OGC.amax(-1).clamp(min=0)
    else:
        high_OG = groups_OGC.abs().amax(-1)
        low_OG = -high_OG
    return weight_OI.clamp(spread(share_OG * low_OG, group, d_in), spread(share_OG * high_OG, group, d_in))


def _diagonal_blocks(gram_II: Tensor, group: int) -> Tensor:
    more = -gram_II.shape[0] % group
    padded = F.pad(gram_II, (0, more, 0, more))
    return torch.stack([padded[at : at + group, at : at + group] for at in range(0, len(padded), group)])


def _errors(off_OI: Tensor, blocks_GCC: Tensor, group: int) -> Tensor:
    off_GOC = _grouped(off_OI, group).transpose(0, 1)
    return ((off_GOC @ blocks_GCC) * off_GOC).sum(-1).T
