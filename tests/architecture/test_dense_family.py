"""The dense family's positions, windows and sinks."""

import pytest

from isoflop.architecture import Alibi, Attention, Dense, Experts, Hybrid, Rope


@pytest.mark.parametrize("kind", [Dense, Experts, Hybrid])
def test_position_replaces_the_rope_and_windows_and_sinks_are_those_of_every_attention(kind):
    decoder = kind(position=Alibi(max_bias=4.0), window=32, sinks=True).build(64, 256, 128)
    attention = [layer.mixer for layer in decoder.layers if isinstance(layer.mixer, Attention)]
    assert decoder.position == Alibi(max_bias=4.0)
    assert all((mixer.window, mixer.sinks) == (32, True) for mixer in attention)


def test_theta_alone_is_a_rope_as_ever():
    assert Dense(theta=500.0).build(32, 256, 128).position == Rope(theta=500.0)
    assert Dense().build(32, 256, 128) == Dense(position=Rope()).build(32, 256, 128)


def test_two_bases_and_no_window_at_all_are_refused():
    with pytest.raises(ValueError, match=r"theta = 500.0 is the base of a rope, and position replaces that"):
        Dense(theta=500.0, position=Rope(theta=100.0))
    with pytest.raises(ValueError, match="window = 0 must be above 0"):
        Dense(window=0)
