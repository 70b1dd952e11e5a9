"""How much a family's parameters count for, where only a law of dense models speaks. Assumed, and said so.

Of experts a law's N is what a token uses, times (total / used)^g. What is published as g: .47 to .55 at 150M and .27 to
.31 at 7B (Clark et al. 2022, eq. 1), .45 to .75 (Krajewski et al. 2024, both laws of table 1 at 64 experts), .53
(DeepSeekMoE, arXiv 2401.06066: 16B of which 2.8B as good as 7B), .65 (Tian et al. 2025, arXiv 2507.17702: 17.5B of
which .85B as good as 6.1B). Latent attention and Mamba-2 are reported on a par with attention at equal size and
tokens, hybrids a little better (DeepSeek-AI 2024, arXiv 2405.04434; Waleffe et al. 2024, arXiv 2406.07887).
"""

from typing import NamedTuple

import numpy as np

from isoflop.architecture import Attention, Decoder, LatentAttention, Mixer, MixtureOfExperts
from isoflop.decide.belief import Factor
from isoflop.laws.forms import Array


class Prior(NamedTuple):
    """Of log N: mean and standard deviation."""

    mean: float
    sd: float


EXPERTS = Prior(0.45, 0.15)  # of g
DENSE = Prior(0.0, 0.03)
LATENT = Prior(0.0, 0.06)
RECURRENT = Prior(0.0, 0.12)
HYBRID = Prior(0.05, 0.08)


def factor_of(decoder: Decoder, total_m: Array, active_m: Array, own_law: bool) -> Factor:
    """The factor of a family that looks like `decoder`, at m sizes; none where the law is the family's own."""
    if own_law:
        return Factor(np.zeros_like(total_m), np.zeros_like(total_m))
    mixers = {layer.mixer for layer in decoder.layers if layer.mixer is not None}
    base, kind = _of_mixers(mixers)
    sparse = any(isinstance(layer.feed_forward, MixtureOfExperts) for layer in decoder.layers)
    spare = np.log(total_m / active_m) if sparse else np.zeros_like(total_m)
    mean, sd = base.mean + EXPERTS.mean * spare, np.hypot(base.sd, EXPERTS.sd * spare)
    return Factor(mean, np.asarray(sd), _note(kind, base, sparse))


def _of_mixers(mixers: set[Mixer]) -> tuple[Prior, str]:
    attending = {isinstance(mixer, Attention | LatentAttention) for mixer in mixers}
    if attending == {True, False}:
        return HYBRID, "hybrids of attention and recurrence"
    if attending == {False}:
        return RECURRENT, "recurrences"
    if any(isinstance(mixer, LatentAttention) for mixer in mixers):
        return LATENT, "latent attention"
    return DENSE, ""


def _note(kind: str, base: Prior, sparse: bool) -> str:
    said = []
    if kind:
        said.append(f"parameters of {kind} count {np.exp(base.mean):.2f} times, within {base.sd:.0%}")
    if sparse:
        said.append(f"experts count as active parameters times (total / active)^({EXPERTS.mean} ± {EXPERTS.sd})")
    return "no law of its own: " + "; ".join(said) + " (assumed)" if said else ""
