"""Mixers: what lets a token see the others. Attention here; recurrences and convolutions in recurrent.py."""

from typing import Literal

from isoflop.architecture.base import Description, require_multiple, require_positive
from isoflop.architecture.position import NoPosition, Rope
from isoflop.architecture.recurrent import S4D, Hyena, Mamba1, Mamba2


class TemperatureTuning(Description, frozen=True):
    """Queries grow with their position p: times 1 + coef * ln(1 + floor((p + 1) / period)) (Llama 4)."""

    period: float
    coef: float

    def __post_init__(self) -> None:
        require_positive(period=self.period, coef=self.coef)


class Attention(Description, frozen=True, tag="attention"):
    """Causal softmax attention with grouped queries (Ainslie et al. 2023, arXiv 2305.13245).

    `n_kv_heads == n_heads` is multi-head attention, `n_kv_heads == 1` multi-query attention.
    `scale` multiplies the scores; None means 1 / sqrt(d_head). `softcap` c replaces a score s by c tanh(s / c).
    `window`: a token sees that many last tokens, itself among them; `chunk`: only those of its own chunk of that size.
    `sinks`: a learned logit a head in the softmax's denominator (gpt-oss, arXiv 2508.10925).
    `qk_norm`: queries and keys normalised by head, over all heads at once, or (Llama 4) by head after rotation and
    without weights. `clip_qkv` clamps what the projections give, after the norms "head" or "all" and before rotation.
    `position` replaces the decoder's in this layer.
    """

    n_heads: int
    n_kv_heads: int
    d_head: int
    qk_norm: Literal["none", "head", "all", "unweighted-after"] = "none"
    scale: float | None = None
    softcap: float | None = None
    window: int | None = None
    chunk: int | None = None
    sinks: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    clip_qkv: float | None = None
    temperature: TemperatureTuning | None = None
    position: Rope | NoPosition | None = None

    def __post_init__(self) -> None:
        require_positive(n_heads=self.n_heads, n_kv_heads=self.n_kv_heads, d_head=self.d_head)
        require_multiple("n_heads", self.n_heads, "n_kv_heads", self.n_kv_heads)
        optional = {key: getattr(self, key) for key in ("scale", "softcap", "window", "chunk", "clip_qkv")}
        require_positive(**{key: value for key, value in optional.items() if value is not None})
        if self.window is not None and self.chunk is not None:
            raise ValueError(f"window = {self.window} and chunk = {self.chunk}: attention has one or the other")


class LatentAttention(Description, frozen=True, tag="latent-attention"):
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Keys and values are made from a normalised latent of `kv_rank`, which with one rotated key of `d_rope` shared by all
    heads is all that is cached; queries from a latent of `q_rank`, or directly where it is None. Each head's query and
    key are `d_nope` unrotated and `d_rope` rotated dimensions, its value `d_value`. `scale`: None means 1 / sqrt(d_nope
    + d_rope). `bias`: on the projections down to the latents and on the output's. `norm_eps`: of the two latents'
    norms.
    """

    n_heads: int
    kv_rank: int
    d_nope: int
    d_rope: int
    d_value: int
    q_rank: int | None = None
    scale: float | None = None
    bias: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        require_positive(
            n_heads=self.n_heads,
            kv_rank=self.kv_rank,
            d_nope=self.d_nope,
            d_rope=self.d_rope,
            d_value=self.d_value,
            norm_eps=self.norm_eps,
        )
        require_multiple("d_rope", self.d_rope, "the pairs that rope turns", 2)
        optional = {"q_rank": self.q_rank, "scale": self.scale}
        require_positive(**{key: value for key, value in optional.items() if value is not None})


Mixer = Attention | LatentAttention | Mamba1 | Mamba2 | S4D | Hyena
