"""Steps of chunks of prompts and decoded tokens, in one call of their layers: what plain torch over copies gives, and
the same bits whatever the threads."""

from typing import Any

import pytest
import torch
import watched
from small_engines import engine_of, prompts_of

from isoflop.architecture import Alibi, Attention, Decoder, Layer, Mixer, Mlp, Position, Rope
from isoflop.engine import memory
from isoflop.engine.engine import Engine
from isoflop.model import DecoderModel
from isoflop.model.kernels import layers as kernels
from isoflop.model.quantized import Integer, quantize_linears
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no C++ compiler")
FULL = Attention(n_heads=6, n_kv_heads=2, d_head=10, qk_norm="head", out_bias=True)
WINDOW = Attention(n_heads=4, n_kv_heads=2, d_head=8, window=7, sinks=True)
CHUNK = Attention(n_heads=5, n_kv_heads=1, d_head=24, chunk=37, softcap=4.0, qkv_bias=True)
WIDE = Attention(n_heads=2, n_kv_heads=1, d_head=34, window=70, softcap=9.0, sinks=True)
WHOLE, PARTLY, FLIPPED = Rope(), Rope(fraction=0.5), Rope(layout="interleaved")


def model_of(*mixers: Mixer, position: Position = WHOLE, few_bits: bool = False) -> DecoderModel:
    layers = tuple(Layer(mixer, Mlp(d_ff=40)) for mixer in mixers)
    model = DecoderModel(Decoder(vocab_size=61, d_model=24, layers=layers, max_context=256, position=position))
    initialize(model, 1, Recipe(lr=1e-3, batch=1))
    model.requires_grad_(False)
    if few_bits:
        quantize_linears(model, Integer(bits=4, group=8))
    return model


def logits_of(engine: Engine, mixed: list[tuple[int, int]]) -> list[torch.Tensor]:
    """Of requests of different lengths; `mixed` gets how many rows of each call of layers were alone and how many lanes
    there were beside them."""

    def count(layers: bytes, n: int, x: torch.Tensor, places: kernels.Places, turns: Any) -> None:
        mixed.append((places.alone, places.n_lanes))

    return watched.logits_of(engine, prompts_of(5, 7, most=150), 9, count)


def beside_copies(model: DecoderModel, close: float, **options: object) -> None:
    mixed: list[tuple[int, int]] = []
    fast = logits_of(engine_of(model, **options), mixed)
    assert any(alone and n_lanes for alone, n_lanes in mixed) and any(n_lanes > 1 for _, n_lanes in mixed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "available", lambda: False)
        slow = logits_of(engine_of(model, **options), none := [])
    assert not none and len(fast) == len(slow)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=close, atol=close)


@pytest.mark.parametrize("budget", (23, 110))
@pytest.mark.parametrize("position", (WHOLE, PARTLY, FLIPPED, Alibi()), ids=("rope", "part", "interleaved", "alibi"))
def test_every_reach_and_position(position: Position, budget: int) -> None:
    beside_copies(model_of(FULL, WINDOW, CHUNK, WIDE, position=position), 1e-4, tokens_per_step=budget)


@pytest.mark.parametrize("few_bits", (False, True), ids=("fp32", "int4"))
@pytest.mark.parametrize("dtype", ("fp32", "bf16", "int8", "int4"))
def test_every_cache(dtype: str, few_bits: bool) -> None:
    close = 1e-4 if dtype == "fp32" and not few_bits else 5e-2
    beside_copies(model_of(FULL, WIDE, few_bits=few_bits), close, dtype=dtype, tokens_per_step=110)


@pytest.mark.parametrize("few_bits", (False, True), ids=("fp32", "int4"))
def test_threads_change_no_bit(few_bits: bool) -> None:
    model, before, found = model_of(FULL, WINDOW, WIDE, few_bits=few_bits), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(logits_of(engine_of(model, tokens_per_step=110), []))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
