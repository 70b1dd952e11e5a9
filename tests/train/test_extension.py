"""Decoders at a longer context, the same weights in them, and fine-tuning there."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies
from isoflop.architecture import (
    Alibi,
    Attention,
    Decoder,
    Dense,
    Hyena,
    LatentAttention,
    Layer,
    Learned,
    LinearScaling,
    Mamba2,
    Mlp,
    NoPosition,
    Rope,
    Sinusoidal,
    Yarn,
)
from isoflop.architecture.extend import METHODS, extended
from isoflop.data.stream import BatchStream
from isoflop.model import DecoderModel
from isoflop.model.rope import frequencies, rope_tables
from isoflop.train.extend import Diverged, FineTuning, carried, default_lr, fine_tune, lr_factor
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

MLP, ROPE = Mlp(d_ff=16), Rope()
FULL = Attention(n_heads=2, n_kv_heads=1, d_head=8)


def decoder_of(*mixers, position=ROPE, max_context=16):
    layers = tuple(Layer(mixer=mixer, feed_forward=MLP) for mixer in mixers)
    return Decoder(vocab_size=32, d_model=16, layers=layers, max_context=max_context, position=position)


def model_of(decoder, seed=0):
    model = DecoderModel(decoder)
    initialize(model, seed, Recipe(lr=0.01, batch=1))
    return model


@pytest.mark.parametrize("method", ["linear", "yarn"])
def test_turns_and_attention_factor_are_those_of_transformers(method):
    from transformers import LlamaConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = extended(decoder_of(Attention(n_heads=2, n_kv_heads=2, d_head=32), max_context=128), 1024, method).position
    scaled = {"rope_type": method, "factor": 8.0, "rope_theta": 10_000.0}
    scaled |= {"original_max_position_embeddings": 128} if method == "yarn" else {}
    config = LlamaConfig(head_dim=32, max_position_embeddings=1024, rope_parameters=scaled)
    theirs, factor = ROPE_INIT_FUNCTIONS[method](config, torch.device("cpu"))
    torch.testing.assert_close(frequencies(rope, 32, 1024).float(), theirs.float())
    ours = rope_tables(rope, 32, 1)[0]  # cosines of position 0: one, times the attention factor
    torch.testing.assert_close(ours, torch.full_like(ours, factor))


def test_yarn_multiplies_queries_and_keys_by_one_plus_a_tenth_of_the_logarithm():
    scaling = extended(decoder_of(FULL), 128, "yarn").position.scaling
    assert scaling == Yarn(factor=8.0, original_max_context=16, attention_factor=0.1 * math.log(8) + 1)


@given(factor=st.integers(2, 9))
def test_linear_scaling_meets_the_old_turns_at_every_so_many_positions(factor):
    old = decoder_of(FULL)
    new = extended(old, 16 * factor, "linear")
    for before, after in zip(rope_tables(old.position, 8, 16), rope_tables(new.position, 8, 16 * factor), strict=True):
        torch.testing.assert_close(after[::factor], before)


def test_ntk_aware_slows_the_slowest_pair_by_the_factor_and_leaves_the_fastest():
    before = frequencies(Rope(), 8, 128)
    after = frequencies(extended(decoder_of(FULL), 128, "ntk-aware").position, 8, 128)
    assert after[0] == before[0]
    torch.testing.assert_close(after[-1] * 8, before[-1])


def test_layers_whose_window_fits_keep_their_turns():
    narrow = Attention(n_heads=2, n_kv_heads=1, d_head=8, window=8)
    local = Attention(n_heads=2, n_kv_heads=1, d_head=8, chunk=16, position=Rope(theta=500.0))
    whole = Attention(n_heads=2, n_kv_heads=1, d_head=8, position=Rope(theta=900.0))
    old = decoder_of(narrow, local, whole, FULL)
    new = extended(old, 64, "linear")
    ropes = [new.rope_of(layer.mixer) for layer in new.layers]
    scaling = LinearScaling(factor=4.0)
    expected = [Rope(), Rope(theta=500.0), Rope(theta=900.0, scaling=scaling), Rope(scaling=scaling)]
    assert ropes == expected
    only_own = extended(decoder_of(whole, position=NoPosition()), 64, "linear")
    assert only_own.position == NoPosition()
    assert only_own.rope_of(only_own.layers[0].mixer) == expected[2]


def test_latent_attention_turns_by_the_scaled_rope():
    latent = LatentAttention(n_heads=2, kv_rank=8, d_nope=8, d_rope=4, d_value=8)
    new = extended(decoder_of(latent), 64, "linear")
    assert new.rope_of(latent) == Rope(scaling=LinearScaling(factor=4.0))


HYENA = Hyena(d_filter=8, filter_layers=2)
REFUSED = {
    "learned positions": decoder_of(FULL, position=Learned()),
    "alibi has no rope": decoder_of(FULL, position=Alibi()),
    "position 'sinusoidal'": decoder_of(FULL, position=Sinusoidal()),
    "position 'none'": decoder_of(FULL, position=NoPosition()),
    "no layer": decoder_of(Mamba2(n_heads=2, d_head=8, d_state=4)),
    "hyena's filters": decoder_of(FULL, HYENA),
    "scaled already": decoder_of(FULL, position=Rope(scaling=LinearScaling(factor=2.0))),
    "window fits": decoder_of(Attention(n_heads=2, n_kv_heads=1, d_head=8, window=16)),
    "not longer": decoder_of(FULL, max_context=64),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_extended_is_refused_by_name(reason, method):
    with pytest.raises(ValueError, match=reason) as refused:
        extended(REFUSED[reason], 64, method)
    assert "\n" not in str(refused.value)


@settings(max_examples=60)
@given(decoder=strategies.decoders(), method=st.sampled_from(METHODS))
def test_any_decoder_is_refused_or_takes_the_same_weights(decoder, method):
    try:
        longer = extended(decoder, 4 * decoder.max_context, method)
    except ValueError:
        return
    old, new = (DecoderModel(d).state_dict() for d in (decoder, longer))
    assert {name: x.shape for name, x in old.items()} == {name: x.shape for name, x in new.items()}
    assert longer.max_context == 4 * decoder.max_context


def test_without_scaling_the_carried_model_computes_the_same():
    model = model_of(decoder_of(FULL, FULL))
    tokens = torch.randint(32, (2, 16))
    longer = carried(model, extended(model.decoder, 64, "none"))
    assert torch.equal(longer(tokens), model(tokens))


def test_half_precision_is_carried_over_as_it_is():
    model = model_of(decoder_of(FULL)).to(torch.bfloat16)
    longer = carried(model, extended(model.decoder, 64, "yarn"))
    assert longer.embedding.dtype == torch.float32
    assert torch.equal(longer.embedding.to(torch.bfloat16), model.embedding)


def tuned(model, lr=0.01, seed=0, steps=12):
    text = np.tile(np.arange(31, dtype=np.uint8), 200)
    heard = []
    how = FineTuning(steps=steps, batch=2, lr=lr, seed=seed)
    done = fine_tune(model, BatchStream(text, 64, seed), how, lambda *at: heard.append(at))
    assert heard == [(step, steps) for step in range(1, steps + 1)]
    return done


def test_fine_tuning_learns_leaves_the_given_model_and_repeats_exactly():
    model = model_of(extended(decoder_of(FULL), 64, "yarn"))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    first, second, other = tuned(model), tuned(model), tuned(model, seed=1)
    assert first.losses[-1][1] < first.losses[0][1]
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert first.losses == second.losses != other.losses
    assert torch.equal(first.model.embedding, second.model.embedding)


def test_a_loss_that_is_no_number_stops_the_fine_tuning():
    model = model_of(extended(decoder_of(FULL), 64, "yarn"))
    with torch.no_grad():
        model.embedding[0] = math.nan
    with pytest.raises(Diverged, match="at step 1 of 12"):
        tuned(model)


@given(steps=st.integers(1, 2000))
def test_the_learning_rate_warms_up_holds_and_falls_nearly_to_zero(steps):
    factors = [lr_factor(step, steps) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert steps < 10 or (max(factors) == 1 and factors[-1] < 0.2)


def test_the_default_learning_rate_is_yarns_at_its_width():
    assert default_lr(Dense(d_head=128).build(4096, 256, 64)) == pytest.approx(2e-5, rel=0.05)
