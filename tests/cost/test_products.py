"""Shapes of products add up to the exact counts, whatever the decoder."""

import pytest
from hypothesis import given, settings

from isoflop.architecture import Decoder
from isoflop.architecture.find import find_decoder, published_names
from isoflop.cost import flops_by_part, parameters
from isoflop.cost.products import feed_forward_products, mixer_products
from isoflop.cost.work import work_of
from strategies import decoders


def _check(decoder: Decoder, context: int) -> None:
    d_model = decoder.d_model
    mixers = [p for layer in decoder.layers if layer.mixer is not None for p in mixer_products(layer.mixer, d_model)]
    fed = [p for layer in decoder.layers if layer.feed_forward is not None for p in _fed(layer.feed_forward, d_model)]
    table = decoder.vocab_size * d_model
    assert sum(p.rows * p.d_in * p.d_out for p in mixers + fed) + table == parameters(decoder).matmul
    work, parts = work_of(decoder, context), flops_by_part(decoder, context, "exact")
    body = sum(parts[name].forward_per_token for name in ("mixer_matrices", "feed_forward", "router"))
    assert work.layers.product_flops == pytest.approx(body, rel=1e-12)
    assert work.layers.mixing_flops == pytest.approx(parts["mixing"].forward_per_token, rel=1e-12)
    assert work.head_flops == parts["head"].forward_per_token and work.parameters == parameters(decoder).total


def _fed(feed_forward, d_model):  # type: ignore[no-untyped-def]
    return feed_forward_products(feed_forward, d_model)


@settings(max_examples=100, deadline=None)
@given(decoders())
def test_any_decoder(decoder: Decoder) -> None:
    _check(decoder, decoder.max_context)


@pytest.mark.parametrize("name", published_names())
def test_published(name: str) -> None:
    decoder = find_decoder(name)
    _check(decoder, min(decoder.max_context, 1024))
