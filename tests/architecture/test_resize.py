"""One decoder at other widths and depths."""

from hypothesis import given
from hypothesis import strategies as st

from isoflop.architecture import Attention, Decoder, MixtureOfExperts
from isoflop.architecture.find import find_decoder
from isoflop.architecture.resize import width_step, with_depth, with_width
from isoflop.cost import parameters
from strategies import decoders


@given(decoders(), st.integers(1, 40))
def test_any_width_is_a_valid_decoder_with_what_must_stay(decoder: Decoder, steps: int) -> None:
    other = with_width(decoder, steps * width_step(decoder))
    assert other.d_model == steps * width_step(decoder) and other.n_layers == decoder.n_layers
    for old, new in zip(decoder.layers, other.layers, strict=True):
        assert type(old.mixer) is type(new.mixer) and type(old.feed_forward) is type(new.feed_forward)
        if isinstance(old.mixer, Attention):
            assert new.mixer.d_head == old.mixer.d_head and new.mixer.window == old.mixer.window
            if old.mixer.n_kv_heads > 1:
                assert new.mixer.n_heads * old.mixer.n_kv_heads == old.mixer.n_heads * new.mixer.n_kv_heads
        if isinstance(old.feed_forward, MixtureOfExperts):
            assert new.feed_forward.n_experts == old.feed_forward.n_experts
    assert with_width(decoder, decoder.d_model) == decoder


@given(decoders(), st.integers(1, 40))
def test_wider_is_never_smaller(decoder: Decoder, steps: int) -> None:
    """Rounded or not: what makes the dial solvable. At its own width a decoder keeps sizes that are not rounded."""
    step = width_step(decoder)
    if decoder.d_model not in (steps * step, (steps + 1) * step):
        narrow, wide = (parameters(with_width(decoder, n * step)).total for n in (steps, steps + 1))
        assert narrow < wide


def test_proportions() -> None:
    llama = with_width(find_decoder("llama-3.1-8b"), 2048)
    mixer, feed_forward = llama.layers[0].mixer, llama.layers[0].feed_forward
    assert (mixer.n_heads, mixer.n_kv_heads, mixer.d_head, feed_forward.d_ff) == (16, 4, 128, 7168)


def test_depth_follows_the_pattern() -> None:
    jamba, deepseek = find_decoder("jamba"), find_decoder("deepseek-v3")
    assert with_depth(jamba, 40).layers == jamba.layers + jamba.layers[:8]
    assert with_depth(jamba, 5).layers == jamba.layers[:5]
    assert with_depth(deepseek, 100).layers == deepseek.layers[:3] + deepseek.layers[3:4] * 97
    gemma = find_decoder("gemma-3-27b-text")
    assert with_depth(gemma, 66).layers == gemma.layers[:6] * 11


@given(decoders(), st.integers(1, 12))
def test_a_depth_cuts_or_continues(decoder: Decoder, n_layers: int) -> None:
    layers = with_depth(decoder, n_layers).layers
    shared = min(n_layers, decoder.n_layers)
    assert len(layers) == n_layers and layers[:shared] == decoder.layers[:shared]
    assert set(layers) <= set(decoder.layers)
