"""Layers gone through in one call give what their modules give; a new request sees a weight that has changed."""

from typing import Any

import pytest
import torch
import watched
from small_engines import CAPPED, CHUNK, FULL, MAMBA1, WINDOW, engine_of, prompts_of

from isoflop.architecture import Attention, Decoder, Layer, Mlp
from isoflop.engine.engine import Engine
from isoflop.engine.runs import Runs
from isoflop.model import DecoderModel
from isoflop.model.kernels import layers as kernels
from isoflop.model.quantized import Integer, QuantizedLinear, quantize_linears, round_to_nearest
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no C++ compiler")
NORMED = Attention(n_heads=6, n_kv_heads=2, d_head=10, qk_norm="head", out_bias=True)
SLIDING = Attention(n_heads=2, n_kv_heads=1, d_head=24, window=5, sinks=True, softcap=4.0, qkv_bias=True)


def model_of(layers: tuple[Layer, ...], kind: str) -> DecoderModel:
    model = DecoderModel(Decoder(vocab_size=61, d_model=24, layers=layers, max_context=64))
    initialize(model, 1, Recipe(lr=1e-3, batch=1))
    model.requires_grad_(False)
    if kind == "bf16":
        for parameter in model.parameters():
            parameter.data = parameter.bfloat16() if parameter.dim() > 1 else parameter
    elif kind == "int4":
        quantize_linears(model, Integer(bits=4, group=16))
    return model


def logits_of(engine: Engine, n_layers: list[int]) -> list[torch.Tensor]:
    """Of a few requests; `n_layers` gets how many layers each run went through."""
    return watched.logits_of(engine, prompts_of(3, 4, most=5), 12, lambda layers, n, *_: n_layers.append(n))


def beside_modules(model: DecoderModel, n_layers: list[int], close: float = 1e-5, **options: object) -> None:
    """Asserts that both ways agree; not as closely where numbers are rounded that differ in their last bits."""
    fast = logits_of(engine_of(model, **options), n_layers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runs, "begin", lambda *_: None)
        slow = logits_of(engine_of(model, **options), [])
    assert len(fast) == len(slow)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=close, atol=close)


@pytest.mark.parametrize("kind", ("fp32", "bf16", "int4"))
@pytest.mark.parametrize("activation", ("swiglu", "geglu-tanh", "relu", "relu2", "silu", "gelu-tanh"))
def test_layers_in_one_call(kind: str, activation: Any) -> None:
    feed_forward = Mlp(d_ff=40, activation=activation)
    layers = Layer(FULL, feed_forward), Layer(NORMED, feed_forward), Layer(SLIDING, None), Layer(None, feed_forward)
    n_layers: list[int] = []
    # where rows are rounded, to 8 bits or to a bf16 matrix's type, a last bit before that may move one by a step
    beside_modules(model_of(layers, kind), n_layers, close=1e-5 if kind == "fp32" else 1e-2)
    assert set(n_layers) == {4}


@pytest.mark.parametrize("dtype", ("fp32", "bf16", "int8", "int4"))
def test_every_cache(dtype: str) -> None:
    close = 1e-5 if dtype == "fp32" else 1e-2
    beside_modules(model_of((Layer(NORMED, Mlp(d_ff=40)),) * 2, "fp32"), [], close, dtype=dtype)


def test_layers_it_does_not_know_stand_between() -> None:
    layers = tuple(Layer(mixer, Mlp(d_ff=32)) for mixer in (FULL, MAMBA1, WINDOW, FULL, CHUNK, CAPPED, FULL))
    n_layers: list[int] = []
    beside_modules(model_of(layers, "fp32"), n_layers)
    assert set(n_layers) == {1, 2}
    beside_modules(model_of((Layer(FULL, Mlp(d_ff=32, activation="geglu")),), "fp32"), n_layers := [])
    assert not n_layers


@pytest.mark.parametrize("change", ("in place", "data", "parameter", "module", "quantized"))
def test_a_weight_that_has_changed_is_seen(change: str) -> None:
    model = model_of((Layer(FULL, Mlp(d_ff=32)),) * 2, "int4" if change == "quantized" else "fp32")
    engine, n_layers = engine_of(model), []
    logits_of(engine, n_layers)
    layer: Any = model.layers[1]
    match change:
        case "in place":
            layer.feed_forward.down.weight.mul_(2)
        case "data":
            layer.feed_forward.down.weight.data = layer.feed_forward.down.weight.data * 2
        case "parameter":
            layer.mixer_norm.weight = torch.nn.Parameter(layer.mixer_norm.weight * 2)
        case "module":
            weight = round_to_nearest(layer.mixer.qkv.weight, Integer(bits=8))
            layer.mixer.qkv = QuantizedLinear(weight)
        case _:
            layer.mixer.out.load_state_dict(layer.mixer.qkv.state_dict() | layer.mixer.out.state_dict())
            model.to(torch.float32)
    after = logits_of(engine, n_layers)
    assert set(n_layers) == {2}
    for a, b in zip(after, logits_of(engine_of(model), []), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
