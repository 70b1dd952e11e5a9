"""Mixers of constant state or long convolution: Mamba-1, Mamba-2, S4D, Hyena."""

from isoflop.architecture.base import Description, require_multiple, require_positive


class Mamba1(Description, frozen=True, tag="mamba-1"):
    """Selective state space (Gu and Dao 2023, arXiv 2312.00752): input projection to 2 d_inner (values and gate),
    causal depthwise convolution of width d_conv, SiLU, then h = exp(dt A) h + dt B x, y = C h + D x with dt (of rank
    dt_rank), B and C from the input, gated by SiLU, projected out. `inner_norms`: RMS norms on dt, B and C (Jamba)."""

    d_inner: int
    d_state: int
    dt_rank: int
    d_conv: int = 4
    conv_bias: bool = True
    proj_bias: bool = False
    inner_norms: bool = False
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        require_positive(
            d_inner=self.d_inner,
            d_state=self.d_state,
            dt_rank=self.dt_rank,
            d_conv=self.d_conv,
            norm_eps=self.norm_eps,
        )


class Mamba2(Description, frozen=True, tag="mamba-2"):
    """State-space duality (Dao and Gu 2024, arXiv 2405.21060): heads of d_head values share one decay each; B and C of
    d_state are shared by the heads of one of n_groups groups and pass the convolution with the values. The output is
    gated, then RMS-normalised over each of `norm_groups` equal parts of d_inner = n_heads * d_head. dt, after softplus,
    is clamped to [dt_min, dt_max]."""

    n_heads: int
    d_head: int
    d_state: int
    n_groups: int = 1
    d_conv: int = 4
    conv_bias: bool = True
    proj_bias: bool = False
    norm_groups: int = 1
    norm_eps: float = 1e-5
    dt_min: float = 0.0
    dt_max: float | None = None

    def __post_init__(self) -> None:
        require_positive(
            n_heads=self.n_heads,
            d_head=self.d_head,
            d_state=self.d_state,
            n_groups=self.n_groups,
            d_conv=self.d_conv,
            norm_groups=self.norm_groups,
            norm_eps=self.norm_eps,
        )
        require_multiple("n_heads", self.n_heads, "n_groups", self.n_groups)
        require_multiple("d_inner = n_heads * d_head", self.d_inner, "norm_groups", self.norm_groups)
        if self.dt_min < 0 or (self.dt_max is not None and self.dt_max <= self.dt_min):
            raise ValueError(f"dt_min = {self.dt_min} must not be negative and must lie below dt_max = {self.dt_max}")

    @property
    def d_inner(self) -> int:
        return self.n_heads * self.d_head

    @property
    def d_convolved(self) -> int:
        """Channels of the convolution: values, B and C."""
        return self.d_inner + 2 * self.n_groups * self.d_state


class S4D(Description, frozen=True, tag="s4d"):
    """Diagonal state space, constant in time (Gu et al. 2022, arXiv 2206.11893): each of d_inner channels is a
    convolution with 2 Re sum_n C_n exp(dt A_n t) B_n over d_state / 2 conjugate pairs, plus D x, where B_n =
    (exp(dt A_n) - 1) / A_n holds the input over a step (no B is learned: only its product with C shows); input
    projection before, GELU and a gated output projection (GLU, from 2 d_model) after."""

    d_inner: int
    d_state: int = 64

    def __post_init__(self) -> None:
        require_positive(d_inner=self.d_inner, d_state=self.d_state)
        require_multiple("d_state", self.d_state, "the pairs of conjugate states", 2)


class Hyena(Description, frozen=True, tag="hyena"):
    """Long convolutions between gates (Poli et al. 2023, arXiv 2302.10866): order + 1 projections of the input, each
    through a causal depthwise convolution of width d_conv; `order` filters as long as max_context, made by a small
    network of width d_filter, depth filter_layers, sines of learned frequency, from positional features of d_position,
    under a window of exponential decay."""

    order: int = 2
    d_conv: int = 3
    d_filter: int = 64
    filter_layers: int = 4
    d_position: int = 5

    def __post_init__(self) -> None:
        require_positive(order=self.order, d_conv=self.d_conv, d_filter=self.d_filter, filter_layers=self.filter_layers)
        require_positive(d_position=self.d_position)
        if self.d_position < 3 or self.d_position % 2 == 0:
            raise ValueError(f"d_position = {self.d_position} must be odd and at least 3: time, then sines and cosines")
