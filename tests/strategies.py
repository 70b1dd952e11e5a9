"""Random valid decoders, small enough to run and awkward enough to matter."""

from hypothesis import strategies as st

from isoflop.architecture import (
    Attention,
    Decoder,
    FeedForward,
    Layer,
    Llama3Scaling,
    MixtureOfExperts,
    Mlp,
    RmsNorm,
    Rope,
)


@st.composite
def attentions(draw: st.DrawFn) -> Attention:
    """Multi-head, grouped and multi-query; odd head counts; with and without norms on queries and keys."""
    n_kv_heads = draw(st.integers(1, 3))
    return Attention(
        n_heads=n_kv_heads * draw(st.integers(1, 3)),
        n_kv_heads=n_kv_heads,
        d_head=2 * draw(st.integers(1, 5)),
        qk_norm=draw(st.sampled_from(("none", "head", "all", "unweighted-after"))),
        scale=draw(st.none() | st.floats(0.05, 0.5)),
    )


@st.composite
def mixtures(draw: st.DrawFn) -> MixtureOfExperts:
    """From one expert to five, from one chosen to all; widths that no kernel likes."""
    n_experts = draw(st.integers(1, 5))
    return MixtureOfExperts(
        n_experts=n_experts,
        top_k=draw(st.integers(1, n_experts)),
        d_ff=draw(st.integers(1, 20)),
        renormalize=draw(st.booleans()),
        balance_coef=draw(st.sampled_from((0.0, 0.01))),
        z_coef=draw(st.sampled_from((0.0, 0.001))),
    )


def feed_forwards() -> st.SearchStrategy[FeedForward]:
    return st.builds(Mlp, d_ff=st.integers(1, 20)) | mixtures()


def ropes() -> st.SearchStrategy[Rope]:
    scaling = st.builds(
        Llama3Scaling,
        factor=st.floats(1, 32),
        low_freq_factor=st.just(1.0),
        high_freq_factor=st.just(4.0),
        original_max_context=st.integers(2, 64),
    )
    return st.builds(Rope, theta=st.sampled_from((100.0, 10_000.0, 500_000.0)), scaling=st.none() | scaling)


@st.composite
def decoders(draw: st.DrawFn) -> Decoder:
    """Dense, sparse and mixed layers in one decoder; d_head free of d_model / n_heads; tied and untied tables."""
    layers = st.lists(st.builds(Layer, mixer=attentions(), feed_forward=feed_forwards()), min_size=1, max_size=3)
    return Decoder(
        vocab_size=draw(st.integers(2, 40)),
        d_model=draw(st.integers(1, 24)),
        layers=tuple(draw(layers)),
        max_context=draw(st.integers(9, 16)),
        norm=RmsNorm(eps=draw(st.sampled_from((1e-5, 1e-6)))),
        position=draw(ropes()),
        tie_embeddings=draw(st.booleans()),
        embedding_multiplier=draw(st.sampled_from((1.0, 3.0))),
        residual_multiplier=draw(st.sampled_from((1.0, 0.5))),
        logit_multiplier=draw(st.sampled_from((1.0, 0.25))),
    )
