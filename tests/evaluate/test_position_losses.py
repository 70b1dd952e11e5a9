"""Losses by position against plain forwards, whole and in pieces, for every kind of mixer."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import strategies
from isoflop.architecture import Dense, Hybrid
from isoflop.evaluate import position
from isoflop.evaluate.position import losses_by_position, losses_in_own_context
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe


def model_of(decoder):
    model = DecoderModel(decoder)
    initialize(model, 0, Recipe(lr=0.01, batch=1))
    return model.eval()


def windows_of(decoder, n, context):
    return np.random.default_rng(0).integers(decoder.vocab_size, size=(n, context + 1))


def plain(model, tokens):
    tokens = torch.from_numpy(tokens)
    with torch.no_grad():
        logits = model(tokens[:, :-1])
    return F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none").numpy()


@pytest.mark.parametrize("most_logits", [2**24, 3 * 64 * 24, 64 * 7, 1])
@pytest.mark.parametrize("family", [Dense(), Dense(window=5, sinks=True), Hybrid(attention_every=2)])
def test_pieces_that_continue_a_cache_give_the_losses_of_a_whole_forward(family, most_logits, monkeypatch):
    model = model_of(family.build(32, 64, 24))
    tokens = windows_of(model.decoder, 5, 24)
    expected = plain(model, tokens)
    monkeypatch.setattr(position, "MOST_LOGITS", most_logits)
    heard = []
    found = losses_by_position(model, tokens, lambda *at: heard.append(at))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert heard[-1] == (120, 120)


@settings(max_examples=25)
@given(decoder=strategies.decoders())
def test_any_decoder_is_read_at_its_own_context(decoder):
    model = model_of(decoder)
    tokens = windows_of(decoder, 2, decoder.max_context)
    np.testing.assert_allclose(losses_by_position(model, tokens), plain(model, tokens), rtol=1e-4, atol=1e-4)


@given(context=st.integers(1, 40), own=st.integers(2, 12))
@settings(max_examples=25)
def test_in_its_own_context_a_model_sees_at_least_half_and_never_more(context, own):
    model = model_of(Dense().build(16, 64, own))
    tokens = windows_of(model.decoder, 2, context)
    found = losses_in_own_context(model, tokens, own)
    assert found.shape == (2, context)
    step = max(1, own // 2)
    for target in range(context):  # the first of the windows, which move on by `step`, that holds it
        last = own + step * max(0, -(-(target + 1 - own) // step))
        last = min(last, context)
        first = max(0, last - own)
        expected = plain(model, tokens[:, first : target + 2])[:, -1]
        np.testing.assert_allclose(found[:, target], expected, rtol=1e-4, atol=1e-5)
