"""A family turns one dial, d_model, into a decoder: the rule by which depth, heads and experts follow."""

from isoflop.architecture.base import MOST_LAYERS, Description, require_multiple, require_positive
from isoflop.architecture.decoder import Decoder, Layer
from isoflop.architecture.feed_forward import FeedForward, MixtureOfExperts, Mlp
from isoflop.architecture.mixer import Attention, Mixer
from isoflop.architecture.position import Position, Rope
from isoflop.architecture.recurrent import Mamba2

DEFAULT_THETA = 10_000.0


class Dense(Description, frozen=True, tag="dense"):
    """Grouped-query attention and SwiGLU. Dial: d_model, in multiples of d_head.

    n_heads = d_model / d_head; n_kv_heads = n_heads / queries_per_kv, where that divides, else the nearest lower
    divisor of n_heads; n_layers = d_model / aspect, rounded, at least min_layers;
    d_ff = d_model * ff_ratio, rounded to a multiple of 8. Positions are a rope of base `theta`, or `position` in its
    place. `window` and `sinks` are those of every attention (see `Attention`).
    """

    d_head: int = 16
    queries_per_kv: int = 1
    aspect: float = 24.0
    min_layers: int = 2
    ff_ratio: float = 8 / 3
    theta: float = DEFAULT_THETA
    tie_embeddings: bool = True
    qk_norm: bool = False
    position: Position | None = None
    window: int | None = None
    sinks: bool = False

    def __post_init__(self) -> None:
        if self.position is not None and self.theta != DEFAULT_THETA:
            raise ValueError(
                f"theta = {self.theta} is the base of a rope, and position replaces that; give one of them "
                '(position = { type = "rope", theta = ... } has both)'
            )
        if self.window is not None:
            require_positive(window=self.window)
        require_positive(
            d_head=self.d_head,
            queries_per_kv=self.queries_per_kv,
            aspect=self.aspect,
            min_layers=self.min_layers,
            ff_ratio=self.ff_ratio,
            theta=self.theta,
        )

    def d_ff(self, d_model: int) -> int:
        return _round_to(d_model * self.ff_ratio, 8)

    def feed_forward(self, d_model: int) -> FeedForward:
        return Mlp(d_ff=self.d_ff(d_model))

    def build(self, d_model: int, vocab_size: int, context: int) -> Decoder:
        """The member of the family at this width. Raises ValueError where d_head does not divide d_model."""
        require_positive(d_model=d_model)
        require_multiple("d_model", d_model, "d_head", self.d_head)
        n_layers = max(self.min_layers, round(d_model / self.aspect))
        if n_layers > MOST_LAYERS:
            raise ValueError(f"d_model = {d_model} would have {n_layers} layers; at most {MOST_LAYERS} make sense")
        return Decoder(
            vocab_size=vocab_size,
            d_model=d_model,
            layers=self.layers(d_model, n_layers),
            max_context=context,
            position=Rope(theta=self.theta) if self.position is None else self.position,
            tie_embeddings=self.tie_embeddings,
        )

    def layers(self, d_model: int, n_layers: int) -> tuple[Layer, ...]:
        layer = Layer(mixer=self._attention(d_model // self.d_head), feed_forward=self.feed_forward(d_model))
        return (layer,) * n_layers

    def _attention(self, n_heads: int) -> Attention:
        wanted = max(1, n_heads // self.queries_per_kv)
        n_kv_heads = max(k for k in range(1, wanted + 1) if n_heads % k == 0)
        return Attention(
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            d_head=self.d_head,
            qk_norm="head" if self.qk_norm else "none",
            window=self.window,
            sinks=self.sinks,
        )


class Experts(Dense, frozen=True, tag="experts"):
    """As `Dense`, but each feed-forward is a mixture: `top_k` of `n_experts` experts whose joint width is that of the
    dense one times `active_ratio`, so that at 1.0 dense and sparse members of one width do the same work per token."""

    n_experts: int = 8
    top_k: int = 2
    active_ratio: float = 1.0
    renormalize: bool = True
    balance_coef: float = 0.01
    z_coef: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(active_ratio=self.active_ratio)
        self.feed_forward(self.d_head)  # an impossible mixture is refused here, not at the first run

    def feed_forward(self, d_model: int) -> FeedForward:
        return MixtureOfExperts(
            n_experts=self.n_experts,
            top_k=self.top_k,
            d_ff=_round_to(self.d_ff(d_model) * self.active_ratio / max(1, self.top_k), 8),
            renormalize=self.renormalize,
            balance_coef=self.balance_coef,
            z_coef=self.z_coef,
        )


class Hybrid(Dense, frozen=True, tag="hybrid"):
    """As `Dense`, but of each `attention_every` layers only the last has attention; the others have Mamba-2 of inner
    width expand * d_model, with heads of d_head (Jamba, arXiv 2403.19887; Nemotron-H, arXiv 2504.03624)."""

    attention_every: int = 4
    d_state: int = 32
    expand: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(attention_every=self.attention_every, d_state=self.d_state, expand=self.expand)

    def layers(self, d_model: int, n_layers: int) -> tuple[Layer, ...]:
        feed_forward = self.feed_forward(d_model)
        return tuple(
            Layer(mixer=self._mixer(d_model, last=i % self.attention_every == 0), feed_forward=feed_forward)
            for i in range(1, n_layers + 1)
        )

    def _mixer(self, d_model: int, last: bool) -> Mixer:
        n_heads = d_model // self.d_head
        if last:
            return self._attention(n_heads)
        return Mamba2(n_heads=self.expand * n_heads, d_head=self.d_head, d_state=self.d_state)


class StateSpace(Hybrid, frozen=True, tag="mamba-2"):
    """Mamba-2 alone: no attention and no feed-forward, and twice as many layers as `Dense` would have, as that family
    does (Gu and Dao 2023, arXiv 2312.00752, section 3.4)."""

    def layers(self, d_model: int, n_layers: int) -> tuple[Layer, ...]:
        return (Layer(mixer=self._mixer(d_model, last=False), feed_forward=None),) * (2 * n_layers)


Family = Dense | Experts | Hybrid | StateSpace


def _round_to(value: float, multiple: int) -> int:
    return max(multiple, round(value / multiple) * multiple)
