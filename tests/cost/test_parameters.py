"""Closed forms against the module's own numbers, on the meta device."""

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
    norms = sum(size for name, size in sizes.items() if "norm" in name)
    head = sizes.get("head.weight", 0)
    assert (head == 0) == decoder.tie_embeddings
    input_only = 0 if decoder.tie_embeddings else sizes["embedding"]
    asleep = 0
    for i, layer in enumerate(decoder.layers):
        if hasattr(layer.feed_forward, "n_experts"):
            f = layer.feed_forward
            stacks = sum(sizes[f"layers.{i}.feed_forward.{name}"] for name in ("gate_up", "down"))
            asleep += stacks // f.n_experts * (f.n_experts - f.top_k)
    return Parameters(
        total=total,
        active=total - asleep,
        active_no_input_embedding=total - asleep - input_only,
        non_embedding=total - sizes["embedding"] - head,
        matmul=total - asleep - input_only - norms,
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
