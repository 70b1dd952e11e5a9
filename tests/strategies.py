"""Random valid decoders of the whole language, small enough to run and awkward enough to matter."""

from hypothesis import strategies as st

from isoflop.architecture import (
    S4D,
    Alibi,
    Attention,
    Decoder,
    Dynamic,
    FeedForward,
    Hyena,
    LatentAttention,
    Layer,
    LayerNorm,
    Learned,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    Mamba1,
    Mamba2,
    Mixer,
    MixtureOfExperts,
    Mlp,
    NoPosition,
    Norm,
    NtkAware,
    Placement,
    Position,
    RmsNorm,
    Rope,
    Scaling,
    SharedExperts,
    Sinusoidal,
    TemperatureTuning,
    Yarn,
)
from isoflop.architecture.feed_forward import Activation

ACTIVATIONS: tuple[Activation, ...] = (
    "swiglu",
    "geglu",
    "geglu-tanh",
    "swiglu-clamped",
    "relu",
    "relu2",
    "gelu",
    "gelu-tanh",
    "silu",
)
PLACEMENTS: tuple[Placement, ...] = ("pre", "post", "sandwich", "output", "deep-norm")
# A quarter of the least of these still turns nothing; half of it turns one pair.
D_HEADS = (4, 5, 6, 8, 10)


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    """Multi-head, grouped and multi-query, odd head counts, with every option."""
    n_kv_heads = draw(st.integers(1, 3))
    d_head = draw(st.sampled_from(D_HEADS))
    reach = draw(st.sampled_from(("all", "all", "window", "chunk")))
    return Attention(
        n_heads=n_kv_heads * draw(st.integers(1, 3)),
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        qk_norm=draw(st.sampled_from(("none", "head", "all", "unweighted-after"))),
        scale=draw(st.none() | st.floats(0.05, 0.5)),
        softcap=draw(st.none() | st.floats(1, 50)),
        window=draw(st.integers(1, 12)) if reach == "window" else None,
        chunk=draw(st.integers(1, 12)) if reach == "chunk" else None,
        sinks=draw(st.booleans()),
        qkv_bias=draw(st.booleans()),
        out_bias=draw(st.booleans()),
        clip_qkv=draw(st.none() | st.floats(0.5, 5)),
        temperature=draw(st.none() | st.builds(TemperatureTuning, period=st.floats(1, 9), coef=st.floats(0.01, 0.5))),
        position=draw(st.none() | ropes(d_head) | st.builds(NoPosition)),
    )


@st.composite
def latent_attentions(draw: st.DrawFn) -> LatentAttention:
    """Queries from a latent or directly; no two widths alike. What decoding sums over is at least 2 wide: over one
    dimension torch multiplies without a product, and counts none."""
    return LatentAttention(
        n_heads=draw(st.integers(1, 4)),
        kv_rank=draw(st.integers(2, 12)),
        d_nope=draw(st.integers(2, 7)),
        d_rope=draw(st.sampled_from((4, 6))),
        d_value=draw(st.integers(1, 9)),
        q_rank=draw(st.none() | st.integers(1, 10)),
        scale=draw(st.none() | st.floats(0.05, 0.5)),
        bias=draw(st.booleans()),
    )


def mamba1s() -> st.SearchStrategy[Mamba1]:
    return st.builds(
        Mamba1,
        d_inner=st.integers(1, 20),
        d_state=st.integers(1, 9),
        dt_rank=st.integers(1, 5),
        d_conv=st.integers(1, 5),
        conv_bias=st.booleans(),
        proj_bias=st.booleans(),
        inner_norms=st.booleans(),
    )


@st.composite
def mamba2s(draw: st.DrawFn) -> Mamba2:
    n_groups = draw(st.integers(1, 3))
    return Mamba2(
        n_heads=n_groups * draw(st.integers(1, 3)),
        d_head=draw(st.integers(1, 6)),
        d_state=draw(st.integers(1, 9)),
        n_groups=n_groups,
        d_conv=draw(st.integers(1, 5)),
        conv_bias=draw(st.booleans()),
        proj_bias=draw(st.booleans()),
        norm_groups=draw(st.sampled_from((1, n_groups))),
    )


def s4ds() -> st.SearchStrategy[S4D]:
    return st.builds(S4D, d_inner=st.integers(1, 20), d_state=st.sampled_from((2, 4, 10)))


def hyenas() -> st.SearchStrategy[Hyena]:
    return st.builds(
        Hyena,
        order=st.integers(1, 3),
        d_conv=st.integers(1, 4),
        d_filter=st.integers(1, 9),
        filter_layers=st.integers(2, 4),
        d_position=st.sampled_from((3, 5)),
    )


def attending() -> st.SearchStrategy[Mixer]:
    """Mixers that look at every token they may see."""
    return attentions() | latent_attentions()


def mixers() -> st.SearchStrategy[Mixer]:
    """Every mixer of the language."""
    return attending() | mamba1s() | mamba2s() | s4ds() | hyenas()


@st.composite
def mixtures(draw: st.DrawFn) -> MixtureOfExperts:
    """From one expert to six, from one chosen to all; groups of experts; widths that no kernel likes."""
    n_groups = draw(st.sampled_from((1, 1, 2, 3)))
    n_experts = n_groups * draw(st.integers(1, 6 // n_groups))
    top_groups = draw(st.integers(1, n_groups))
    selection_bias = draw(st.booleans())
    return MixtureOfExperts(
        n_experts=n_experts,
        top_k=draw(st.integers(1, n_experts // n_groups * top_groups)),
        d_ff=draw(st.integers(1, 20)),
        activation=draw(st.sampled_from(ACTIVATIONS)),
        bias=draw(st.booleans()),
        router=draw(st.sampled_from(("softmax", "sigmoid"))),
        router_bias=draw(st.booleans()),
        renormalize=draw(st.booleans()),
        routed_scale=draw(st.sampled_from((1.0, 2.5))),
        selection_bias=selection_bias,
        n_groups=n_groups,
        top_groups=top_groups,
        group_score=draw(st.sampled_from(("best", "best-two"))) if n_experts // n_groups >= 2 else "best",
        weigh=draw(st.sampled_from(("output", "input"))),
        shared=draw(st.none() | st.builds(SharedExperts, d_ff=st.integers(1, 9), gated=st.booleans())),
        balance_coef=draw(st.sampled_from((0.0, 0.01))),
        sequence_balance_coef=draw(st.sampled_from((0.0, 0.01))),
        z_coef=draw(st.sampled_from((0.0, 0.001))),
        bias_update_rate=draw(st.sampled_from((0.0, 0.001))) if selection_bias else 0.0,
    )


def mlps() -> st.SearchStrategy[Mlp]:
    return st.builds(Mlp, d_ff=st.integers(1, 20), activation=st.sampled_from(ACTIVATIONS), bias=st.booleans())


def feed_forwards() -> st.SearchStrategy[FeedForward]:
    return mlps() | mixtures()


def scalings() -> st.SearchStrategy[Scaling]:
    """Those that do not depend on how many dimensions turn."""
    factor, context = st.floats(1, 32), st.integers(2, 64)
    return st.one_of(
        st.builds(LinearScaling, factor=factor),
        st.builds(NtkAware, factor=factor),
        st.builds(Dynamic, factor=factor, original_max_context=context),
        st.builds(
            Yarn,
            factor=factor,
            original_max_context=context,
            attention_factor=st.floats(0.8, 1.5),
            truncate=st.booleans(),
        ),
        st.builds(
            Llama3Scaling,
            factor=factor,
            low_freq_factor=st.just(1.0),
            high_freq_factor=st.just(4.0),
            original_max_context=context,
        ),
    )


@st.composite
def ropes(draw: st.DrawFn, d_head: int | None = None) -> Rope:
    """Every layout, share and scaling; LongRoPE, which has a factor a pair, only where d_head is known."""
    fraction = draw(st.sampled_from((1.0, 1.0, 0.5)))
    scaling = st.none() | scalings()
    if d_head is not None:
        factors = st.tuples(*[st.floats(1, 9)] * (int(d_head * fraction) // 2))
        own = st.builds(
            LongRope,
            short_factors=factors,
            long_factors=factors,
            original_max_context=st.integers(2, 64),
            attention_factor=st.floats(0.8, 1.5),
        )
        scaling = scaling | own
    return Rope(
        theta=draw(st.sampled_from((100.0, 10_000.0, 500_000.0))),
        fraction=fraction,
        layout=draw(st.sampled_from(("half", "interleaved"))),
        scaling=draw(scaling),
    )


def positions(latent: bool) -> st.SearchStrategy[Position]:
    """Those that go with latent attention, or all."""
    some = ropes() | st.builds(NoPosition)
    others = st.builds(Alibi, max_bias=st.sampled_from((4.0, 8.0))) | st.builds(Learned) | st.builds(Sinusoidal)
    return some if latent else some | others


def norms() -> st.SearchStrategy[Norm]:
    eps = st.sampled_from((1e-5, 1e-6))
    return st.builds(RmsNorm, eps=eps) | st.builds(LayerNorm, eps=eps, bias=st.booleans())


@st.composite
def layers(draw: st.DrawFn, mixer: st.SearchStrategy[Mixer], parallel: bool) -> Layer:
    """A mixer, a feed-forward, or both, one after the other or (where allowed) in parallel."""
    parts = draw(st.sampled_from(("both", "both", "both", "mixer", "feed_forward")))
    how = ("no", "shared-norm", "own-norms") if parallel and parts == "both" else ("no",)
    return Layer(
        mixer=None if parts == "feed_forward" else draw(mixer),
        feed_forward=None if parts == "mixer" else draw(feed_forwards()),
        parallel=draw(st.sampled_from(how)),
    )


@st.composite
def decoders(draw: st.DrawFn, mixer: st.SearchStrategy[Mixer] | None = None) -> Decoder:
    """Any mixers (or those of a strategy) and feed-forwards in one decoder; d_head free of d_model / n_heads; every
    placement of norms, position and multiplier; tied and untied tables."""
    placement = draw(st.sampled_from(PLACEMENTS))
    chosen = mixers() if mixer is None else mixer
    body = tuple(draw(st.lists(layers(chosen, placement == "pre"), min_size=1, max_size=3)))
    latent = any(isinstance(layer.mixer, LatentAttention) for layer in body)
    return Decoder(
        vocab_size=draw(st.integers(2, 40)),
        d_model=draw(st.integers(1, 24)),
        layers=body,
        max_context=draw(st.integers(9, 16)),
        norm=draw(norms()),
        placement=placement,
        position=draw(positions(latent)),
        tie_embeddings=draw(st.booleans()),
        embedding_multiplier=draw(st.sampled_from((1.0, 3.0))),
        residual_multiplier=draw(st.sampled_from((1.0, 0.5))),
        logit_multiplier=draw(st.sampled_from((1.0, 0.25))),
        logit_softcap=draw(st.none() | st.just(30.0)),
        embedding_norm=draw(st.booleans()),
        final_norm=draw(st.booleans()),
        head_bias=draw(st.booleans()),
    )
