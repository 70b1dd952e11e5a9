"""Rounding column by column, each column's error made good by those that come later (Frantar et al. 2022, arXiv
2210.17323, algorithm 1). O d_out, I d_in, G group of columns, J column of a block."""

import torch
from torch import Tensor

from isoflop.model.quantized import Format, QuantizedWeight, codes_of, pack_halves, spread, values_of
from isoflop.quantize.clip import nearest_with_best_scales

DAMPING = 0.01  # of the mean of the diagonal, added to it; the paper's
BLOCK = 128  # columns whose later columns are updated at once: the paper's


def gptq(
    weight_OI: Tensor, gram_II: Tensor, format: Format, damping: float = DAMPING, act_order: bool = True
) -> QuantizedWeight:
    """The codes whose outputs over the calibration text are nearest to the matrix's, as far as one pass finds them;
    `gram_II` is the mean of x xᵀ over that text.

    Scales are found first, of the matrix as it is, and a group is always of neighbouring columns: so act-order (the
    columns of the largest inputs first) needs no index of columns at inference. Columns whose input is always zero are
    rounded to nearest."""
    start = nearest_with_best_scales(weight_OI, gram_II, format)
    scales_OI = spread(start.scales.float(), format.group, start.d_in)
    zeros_OI = None if start.zeros is None else spread(start.zeros.float(), format.group, start.d_in)
    order_I = gram_II.diagonal().argsort(descending=True, stable=True) if act_order else torch.arange(start.d_in)
    factor_II = inverse_factor(gram_II[order_I][:, order_I], damping)
    codes_OI = torch.empty(weight_OI.shape, dtype=torch.uint8)
    left_OI = weight_OI.float()[:, order_I]
    for first in range(0, start.d_in, BLOCK):
        columns = order_I[first : first + BLOCK]
        zeros_OJ = None if zeros_OI is None else zeros_OI[:, columns]
        factor_JI = factor_II[first : first + BLOCK, first:]
        codes_OI[:, columns], error_OJ = _block(left_OI[:, first:], factor_JI, scales_OI[:, columns], zeros_OJ, format)
        later = first + BLOCK
        left_OI[:, later:] -= error_OJ @ factor_JI[:, BLOCK:]
    packed = pack_halves(codes_OI) if format.bits <= 4 else codes_OI
    return QuantizedWeight(format, start.d_in, packed, start.scales, start.zeros)


def _block(
    left_OI: Tensor, factor_JI: Tensor, scales_OJ: Tensor, zeros_OJ: Tensor | None, format: Format
) -> tuple[Tensor, Tensor]:
    """Codes of a block's columns and their errors over the factor's diagonal; the block's own later columns are made
    good on the way."""
    n_columns = len(factor_JI)
    left_OJ = left_OI[:, :n_columns].clone()
    codes_OJ, errors_OJ = torch.empty(left_OJ.shape, dtype=torch.uint8), torch.empty_like(left_OJ)
    for j in range(n_columns):
        scale_O, zero_O = scales_OJ[:, j], None if zeros_OJ is None else zeros_OJ[:, j]
        units_O = torch.where(scale_O == 0, 0.0, left_OJ[:, j] / scale_O)
        codes_OJ[:, j] = codes_of(units_O, format, zero_O)
        value_O = values_of(codes_OJ[:, j].contiguous(), format, zero_O) * scale_O
        errors_OJ[:, j] = (left_OJ[:, j] - value_O) / factor_JI[j, j]
        left_OJ[:, j + 1 :] -= errors_OJ[:, j, None] * factor_JI[j, j + 1 : n_columns]
    return codes_OJ, errors_OJ


def inverse_factor(gram_II: Tensor, damping: float) -> Tensor:
    """The upper Cholesky factor of the damped inverse, float32; more damping where numbers do not suffice. Channels
    that are always zero are given a one, and so touch no other."""
    gram_II = gram_II.double()
    dead_I = gram_II.diagonal() == 0
    gram_II = gram_II + torch.diag(dead_I.double())
    mean = gram_II.diagonal()[~dead_I].mean() if not bool(dead_I.all()) else torch.ones((), dtype=torch.float64)
    while True:
        damped_II = gram_II + damping * mean * torch.eye(len(gram_II), dtype=torch.float64)
        lower_II, failed = torch.linalg.cholesky_ex(damped_II)
        if not failed:
            upper_II, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower_II), upper=True)
            if not failed:
                return upper_II.float()
        assert damping < 1e6, "the inputs' second moments are not finite"
        damping = max(10 * damping, 1e-4)
