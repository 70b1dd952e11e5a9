"""Closed forms against the module's own numbers, on the meta device."""

import pytest
import torch
from hypothesis import given, settings

from isoflop.architecture import Decoder, Learned, MixtureOfExperts
from isoflop.cost import Parameters, parameters
from isoflop.model import DecoderModel
from isoflop.model.linear import Linear
from strategies import decoders


def counted(decoder: Decoder) -> Parameters:
    """Every convention, counted from the module's parameters by their role."""
    with torch.device("meta"):
        model = DecoderModel(decoder)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total, table = sum(sizes.values()), sizes["embedding"]
    assert ("head.weight" not in sizes) == decoder.tie_embeddings
    positions = sizes.get("positions", 0)
    assert positions == (decoder.max_context * decoder.d_model if isinstance(decoder.position, Learned) else 0)
    asleep, stacks = sleeping(decoder, model)
    matrices = sum(module.weight.numel() for module in model.modules() if isinstance(module, Linear))
    active = total - asleep
    return Parameters(
        total=total,
        active=active,
        active_no_input_embedding=active - positions - (0 if decoder.tie_embeddings else table),
        non_embedding=total - table - positions - sizes.get("head.weight", 0) - sizes.get("head_bias", 0),
        matmul=matrices + stacks + (table if decoder.tie_embeddings else 0),
    )


def sleeping(decoder: Decoder, model: DecoderModel) -> tuple[int, int]:
    """Parameters of routed experts that one token does not use, and of the matrices that it does."""
    asleep = awake = 0
    for described, layer in zip(decoder.layers, model.layers, strict=True):
        f = described.feed_forward
        if isinstance(f, MixtureOfExperts):
            own = dict(layer.feed_forward.named_parameters(recurse=False))
            assert all(p.shape[0] == f.n_experts for p in own.values())
            asleep += sum(p.numel() for p in own.values()) // f.n_experts * (f.n_experts - f.top_k)
            awake += sum(p.numel() for p in own.values() if p.dim() == 3) // f.n_experts * f.top_k
    return asleep, awake


@settings(max_examples=150)
@given(decoders())
def test_every_convention_equals_the_module(decoder: Decoder) -> None:
    assert parameters(decoder) == counted(decoder)


@pytest.mark.parametrize(
    "name", ["gpt2", "llama-3.2-1b", "gemma-2-2b", "deepseek-v2-lite", "gpt-oss-20b", "jamba", "nemotron-3-nano"]
)
def test_published_models_too(name: str) -> None:
    from isoflop.architecture.find import find_decoder

    decoder = find_decoder(name)
    assert parameters(decoder) == counted(decoder)
