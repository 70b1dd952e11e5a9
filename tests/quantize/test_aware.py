"""Training that knows of the rounding: what it reads is rounded, what it learns is not, and it helps."""

import copy

import numpy as np
import torch

from isoflop.architecture import Attention, Decoder, Layer, MixtureOfExperts, Mlp
from isoflop.data.stream import BatchStream
from isoflop.evaluate.windows import document_windows
from isoflop.model import DecoderModel
from isoflop.model.quantized import Format, Integer
from isoflop.quantize.aware import rounded, train_aware
from isoflop.quantize.measure import read
from isoflop.quantize.run import quantize_model
from isoflop.quantize.sites import sites_of, untie
from isoflop.train.extend import FineTuning
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

TOKENS = torch.arange(16).view(2, 8)


def sparse(tied: bool) -> DecoderModel:
    experts = MixtureOfExperts(n_experts=3, top_k=2, d_ff=16)
    layers = tuple(
        Layer(mixer=Attention(n_heads=2, n_kv_heads=1, d_head=8), feed_forward=f) for f in (Mlp(d_ff=24), experts)
    )
    model = DecoderModel(Decoder(vocab_size=20, d_model=16, layers=layers, max_context=16, tie_embeddings=tied)).eval()
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    return model


def formats_of(model: DecoderModel, format: Format) -> dict[str, Format]:
    plain = copy.deepcopy(model)
    untie(plain)
    return {site.name: format for site in sites_of(plain)}


def test_what_is_read_is_what_will_be_written() -> None:
    model = sparse(tied=False)
    formats = formats_of(model, Integer(bits=3, group=8))
    quantized, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
    quantize_model(quantized, formats, "rtn")
    with rounded(model, formats):
        logits = model(TOKENS)
        logits.square().sum().backward()
    torch.testing.assert_close(logits.detach(), quantized(TOKENS).detach())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is not None for name, parameter in model.named_parameters() if "router" not in name)


def test_it_makes_good_what_rounding_costs() -> None:
    """A tied model of an easy text: trained in full, then rounded to 2 bits; or trained some more with the rounding."""
    text = np.tile(np.arange(1, 17, dtype=np.uint16), 300)
    text[::97] = 0
    held_out = text[:2000]
    places = document_windows(np.flatnonzero(held_out == 0), len(held_out), 15, 1500)
    stream, windows = BatchStream(text, 15, 0), places.windows(held_out)
    start = sparse(tied=True)
    trained = train_aware(start, stream, FineTuning(60, 8, 0.02, 0), {}, lambda done, total: None).model
    formats = formats_of(trained, Integer(bits=2, group=16, symmetric=False))
    aware = train_aware(trained, stream, FineTuning(60, 8, 0.01, 1), formats, lambda done, total: None).model
    losses = []
    for model in (trained, aware):
        untie(model)
        quantize_model(model, formats, "rtn")
        losses.append(read(model, windows).nats_WT.mean())
    assert losses[1] < 0.7 * losses[0]
