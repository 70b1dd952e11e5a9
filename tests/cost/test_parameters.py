"""Closed forms against the module's own numbers, on the meta device."""

import re

import pytest
import torch
from hypothesis import given, settings

from isoflop.architecture import Decoder
from isoflop.cost import Parameters, parameters
from isoflop.model import DecoderModel
from strategies import decoders


def counted(decoder: Decoder) -> Parameters:
    """Every convention, counted from the module's named parameters by their role."""
    with torch.device("meta"):
        model = DecoderModel(decoder)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    total = sum(sizes.values())
    norms = sum(size for name, size in sizes.items() if "norm" in name or name.endswith("bias"))
    head = sizes.get("head.weight", 0)
    assert (head == 0) == decoder.tie_embeddings
    input_only = 0 if decoder.tie_embeddings else sizes["embedding"]
    asleep = idle_biases = 0
    for i, layer in enumerate(decoder.layers):
        if hasattr(layer.feed_forward, "n_experts"):
            f = layer.feed_forward
            stacks = {
                name: size
                for name, size in sizes.items()
                if re.match(rf"layers.{i}.feed_forward.(gate_|up|down)", name)
            }
            idle = {name: size // f.n_experts * (f.n_experts - f.top_k) for name, size in stacks.items()}
            asleep += sum(idle.values())
            idle_biases += sum(size for name, size in idle.items() if name.endswith("bias"))
    return Parameters(
        total=total,
        active=total - asleep,
        active_no_input_embedding=total - asleep - input_only,
        non_embedding=total - sizes["embedding"] - head,
        matmul=total - asleep - input_only - (norms - idle_biases),
    )


@settings(max_examples=60)
@given(decoders())
def test_every_convention_equals_the_module(decoder: Decoder) -> None:
    assert parameters(decoder) == counted(decoder)


@pytest.mark.parametrize("name", ["llama-3.2-1b", "qwen3-30b-a3b"])
def test_published_models_too(name: str) -> None:
    from isoflop.architecture.find import find_decoder

    decoder = find_decoder(name)
    assert parameters(decoder) == counted(decoder)
