"""Utilisation of the peak, under each convention in which people publish it.

6nd, palm, exact, hardware   as in flops.py; hardware counts what is computed again. palm is also the formula of
                             Korthikanti et al. 2022 (arXiv 2205.05198, eq. 7), 72 B s l h^2 (1 + s/6h + V/12hl),
                             and DeepSeek's non-causal figure; exact its causal one (arXiv 2505.09343, table 4)
llm-foundry                  3 (2 N + 4 n_layers d_model T) a token: N is every parameter, no mask
"""

from isoflop.architecture import Decoder
from isoflop.cost.flops import CONVENTIONS, flops
from isoflop.cost.parameters import parameters

MFU_CONVENTIONS = (*CONVENTIONS, "llm-foundry")


def train_flops_per_token(decoder: Decoder, context: int, recompute: bool = False) -> dict[str, float]:
    """FLOPs that training a token counts as, by convention."""
    counted = {
        convention: flops(decoder, context, convention, recompute and convention == "hardware").train_per_token
        for convention in CONVENTIONS
    }
    attention = 4.0 * decoder.n_layers * decoder.d_model * context
    return counted | {"llm-foundry": 3 * (2 * parameters(decoder).total + attention)}


def mfu(
    decoder: Decoder, context: int, tokens_per_s_per_device: float, peak: float, recompute: bool = False
) -> dict[str, float]:
    """Share of `peak` FLOP/s, by convention; `recompute`: every layer's forward runs twice."""
    counted = train_flops_per_token(decoder, context, recompute)
    return {convention: each * tokens_per_s_per_device / peak for convention, each in counted.items()}
