"""Steps in which each sequence brings one token: latents, recurrences and experts too are gone through in one call, and
give what their modules give."""

from typing import Any

import pytest
import torch
from small_engines import DIAGONAL, FULL, LATENT, MAMBA2, engine_of
from test_runs import beside_modules, logits_of, model_of

from isoflop.architecture import LatentAttention, Layer, Mamba2, MixtureOfExperts, Mlp
from isoflop.architecture.feed_forward import SharedExperts
from isoflop.model.kernels import layers as kernels
from isoflop.model.quantized import Integer, round_to_nearest

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no C++ compiler")
MLP = Mlp(d_ff=32)
RANKED = LatentAttention(n_heads=5, kv_rank=20, d_nope=7, d_rope=6, d_value=18, q_rank=9, bias=True)
GROUPED = Mamba2(
    n_heads=6, d_head=10, d_state=7, n_groups=3, norm_groups=2, d_conv=3, conv_bias=False, proj_bias=True, dt_max=0.05
)
SPARSE = {
    "plain": MixtureOfExperts(n_experts=5, top_k=2, d_ff=19),
    "biases": MixtureOfExperts(n_experts=4, top_k=3, d_ff=20, activation="relu2", bias=True, router_bias=True),
    "sigmoid": MixtureOfExperts(n_experts=6, top_k=2, d_ff=16, router="sigmoid", routed_scale=2.5, renormalize=False),
    "biased choice": MixtureOfExperts(n_experts=6, top_k=2, d_ff=16, router="sigmoid", selection_bias=True),
    "weighed inputs": MixtureOfExperts(n_experts=5, top_k=1, d_ff=19, activation="geglu-tanh", weigh="input"),
    "shared": MixtureOfExperts(n_experts=5, top_k=2, d_ff=19, shared=SharedExperts(d_ff=8)),
}
MIXERS = {"latent": LATENT, "latent queries": RANKED, "mamba-2": MAMBA2, "mamba-2 groups": GROUPED}


def coarse(kind: str) -> float:
    """How far both ways may part: by a step of a number that is rounded to 8 bits."""
    return 1e-5 if kind == "fp32" else 2e-2


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("kind", ("fp32", "int4"))
@pytest.mark.parametrize("mixer", MIXERS)
def test_mixers(mixer: str, kind: str, threads: int) -> None:
    layers = Layer(MIXERS[mixer], MLP), Layer(MIXERS[mixer], None), Layer(FULL, MLP)
    n_layers: list[int] = []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        beside_modules(model_of(layers, kind), n_layers, coarse(kind))
    finally:
        torch.set_num_threads(before)
    assert 3 in n_layers and set(n_layers) <= {1, 3}


@pytest.mark.parametrize("mixer", ("mamba-2", "mamba-2 groups"))
def test_recurrences_to_the_last_bit(mixer: str) -> None:
    """What another's prompt beside a sequence must not change, its next token hangs on where inputs are rounded to 8
    bits: in a step with a prompt, layers go module by module."""
    beside_modules(model_of((Layer(MIXERS[mixer], None),) * 3, "int4"), [], close=0.0)


@pytest.mark.parametrize("threads", (1, 2))
@pytest.mark.parametrize("kind", ("fp32", "int8"))
@pytest.mark.parametrize("name", SPARSE)
def test_experts(name: str, kind: str, threads: int) -> None:
    model = model_of((Layer(FULL, SPARSE[name]), Layer(None, SPARSE[name])), "fp32")
    for layer in model.layers:
        module: Any = layer.feed_forward
        for buffer in module.buffers():  # of the selection bias
            buffer.copy_(torch.linspace(-0.5, 0.5, len(buffer)).flip(0))
        for stack in (module.first, "down") if kind == "int8" else ():
            rows = getattr(module, stack).detach().transpose(1, 2).flatten(0, 1)
            module.quantize(stack, round_to_nearest(rows, Integer(bits=8)))
    n_layers: list[int] = []
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        beside_modules(model, n_layers, coarse(kind))
    finally:
        torch.set_num_threads(before)
    assert set(n_layers) == {2}


@pytest.mark.parametrize("dtype", ("fp32", "bf16", "int8", "int4"))
def test_every_cache_of_latents(dtype: str) -> None:
    beside_modules(model_of((Layer(RANKED, MLP),) * 2, "fp32"), [], 1e-5 if dtype == "fp32" else 1e-2, dtype=dtype)


@torch.no_grad()
def test_latents_of_few_bits_are_the_same_expanded_and_absorbed() -> None:
    """Which of the two a prompt's token goes by hangs on how the prompt is cut and on what of it is cached."""
    module: Any = model_of((Layer(RANKED, None),), "int4").layers[0].mixer
    generator = torch.Generator().manual_seed(0)
    q_BTHD = torch.randn(1, 3, RANKED.n_heads, RANKED.d_nope + RANKED.d_rope, generator=generator)
    seen_BSL = torch.randn(1, 20, RANKED.kv_rank + RANKED.d_rope, generator=generator)
    expanded_BTHV = module.expanded(q_BTHD, *module.parts(seen_BSL))
    torch.testing.assert_close(expanded_BTHV, module.absorbed(q_BTHD, seen_BSL), rtol=1e-5, atol=1e-5)


def test_many_rows_of_experts_are_sorted() -> None:
    many = MixtureOfExperts(n_experts=40, top_k=33, d_ff=8)
    n_layers: list[int] = []
    beside_modules(model_of((Layer(FULL, many), Layer(FULL, MLP)), "fp32"), n_layers)
    assert set(n_layers) == {1}


def test_what_is_not_known_stands_alone() -> None:
    unknown = Layer(FULL, MixtureOfExperts(n_experts=4, top_k=1, d_ff=8, activation="swiglu-clamped"))
    n_layers: list[int] = []
    beside_modules(model_of((Layer(MAMBA2, MLP), Layer(DIAGONAL, MLP), unknown, Layer(FULL, MLP)), "fp32"), n_layers)
    assert set(n_layers) == {1}


@pytest.mark.parametrize("change", ("state space", "latents", "experts"))
def test_a_weight_that_has_changed_is_seen(change: str) -> None:
    model = model_of((Layer(GROUPED, None), Layer(RANKED, None), Layer(None, SPARSE["plain"])), "fp32")
    engine = engine_of(model)
    logits_of(engine, [])
    layers: Any = model.layers
    match change:
        case "state space":
            layers[0].mixer.convolution.kernel.data = layers[0].mixer.convolution.kernel.data * 2
        case "latents":
            layers[1].mixer.kv_up.weight.data = layers[1].mixer.kv_up.weight.data * 2
        case _:
            layers[2].feed_forward.down.data = layers[2].feed_forward.down.data * 2
    for a, b in zip(logits_of(engine, []), logits_of(engine_of(model), []), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
