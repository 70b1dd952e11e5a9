"""Feed-forward parts: what happens to each token on its own."""

from typing import Literal

from isoflop.architecture.base import Description, require_multiple, require_positive

# Gated kinds compute down(f(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202), the others down(f(up(x))). `-tanh` is
# the tanh approximation of GELU; `relu2` is ReLU squared (So et al. 2021, arXiv 2109.08668); `swiglu-clamped` is
# gpt-oss's: gate g clamped to at most 7, up u to [-7, 7], g sigmoid(1.702 g) (u + 1).
Activation = Literal["swiglu", "geglu", "geglu-tanh", "swiglu-clamped", "relu", "relu2", "gelu", "gelu-tanh", "silu"]
GATED = frozenset({"swiglu", "geglu", "geglu-tanh", "swiglu-clamped"})


def n_matrices(activation: Activation) -> int:
    """Matrices of a feed-forward: gate, up and down, or up and down."""
    return 3 if activation in GATED else 2


class Mlp(Description, frozen=True, tag="mlp"):
    """Dense feed-forward of width d_ff; see `Activation` for its kinds."""

    d_ff: int
    activation: Activation = "swiglu"
    bias: bool = False

    def __post_init__(self) -> None:
        require_positive(d_ff=self.d_ff)


class SharedExperts(Description, frozen=True):
    """A dense feed-forward beside the routed ones, for every token; `gated` scales it by a sigmoid of the input."""

    d_ff: int
    gated: bool = False

    def __post_init__(self) -> None:
        require_positive(d_ff=self.d_ff)


class MixtureOfExperts(Description, frozen=True, tag="mixture-of-experts"):
    """Sparse feed-forward: the router scores n_experts experts and sends each token to its best `top_k`.

    Routing. `router`: softmax or sigmoid of the logits. `renormalize` divides the chosen scores by their sum (Mixtral
    does, OLMoE does not); `routed_scale` multiplies them after. `selection_bias`: a bias an expert that counts for the
    choice and not for the weight (Wang et al. 2024, arXiv 2408.15664; DeepSeek-V3, arXiv 2412.19437). `n_groups` > 1:
    only experts of the best `top_groups` groups may be chosen, a group's score being the best of its experts or the sum
    of its best two (node-limited routing). `weigh` multiplies the expert's output, or (Llama 4) its input, by the
    weight. `capacity_factor` c: an expert takes at most ceil(c * tokens * top_k / n_experts) rows a batch, the earliest
    first, the rest are dropped; None drops none.

    Balance, in training only. `balance_coef`: load-balancing loss (Fedus et al. 2021, arXiv 2101.03961, eq. 4);
    `sequence_balance_coef`: the same within each sequence (arXiv 2412.19437, eq. 17); `z_coef`: router z-loss (Zoph et
    al. 2022, arXiv 2202.08906, eq. 5); `bias_update_rate`: after each step the selection bias of every expert under the
    mean load rises by this much, over it falls.
    """

    n_experts: int
    top_k: int
    d_ff: int
    activation: Activation = "swiglu"
    bias: bool = False
    router: Literal["softmax", "sigmoid"] = "softmax"
    router_bias: bool = False
    renormalize: bool = True
    routed_scale: float = 1.0
    selection_bias: bool = False
    n_groups: int = 1
    top_groups: int = 1
    group_score: Literal["best", "best-two"] = "best"
    weigh: Literal["output", "input"] = "output"
    capacity_factor: float | None = None
    shared: SharedExperts | None = None
    balance_coef: float = 0.01
    sequence_balance_coef: float = 0.0
    z_coef: float = 0.001
    bias_update_rate: float = 0.0

    def __post_init__(self) -> None:
        require_positive(n_experts=self.n_experts, top_k=self.top_k, d_ff=self.d_ff, routed_scale=self.routed_scale)
        if self.top_k > self.n_experts:
            raise ValueError(
                f"top_k = {self.top_k} exceeds n_experts = {self.n_experts}; "
                f"the nearest valid top_k is {self.n_experts}"
            )
        self._check_groups()
        if self.capacity_factor is not None:
            require_positive(capacity_factor=self.capacity_factor)
        for key in ("balance_coef", "sequence_balance_coef", "z_coef", "bias_update_rate"):
            if getattr(self, key) < 0:
                raise ValueError(f"{key} = {getattr(self, key)} must not be negative")
        if self.bias_update_rate and not self.selection_bias:
            raise ValueError(f"bias_update_rate = {self.bias_update_rate} needs selection_bias = true")

    def _check_groups(self) -> None:
        require_positive(n_groups=self.n_groups, top_groups=self.top_groups)
        require_multiple("n_experts", self.n_experts, "n_groups", self.n_groups)
        if self.top_groups > self.n_groups:
            raise ValueError(f"top_groups = {self.top_groups} exceeds n_groups = {self.n_groups}")
        reachable = self.n_experts // self.n_groups * self.top_groups
        if self.top_k > reachable:
            raise ValueError(f"top_k = {self.top_k} exceeds the {reachable} experts of top_groups = {self.top_groups}")
        if self.group_score == "best-two" and self.n_experts // self.n_groups < 2:
            raise ValueError("group_score = 'best-two' needs groups of at least two experts")


FeedForward = Mlp | MixtureOfExperts
