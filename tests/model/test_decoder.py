"""What holds for every decoder: causality, precision, losses, routers' statistics."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.architecture import Attention, Decoder, Layer, MixtureOfExperts, Mlp
from isoflop.model import DecoderModel
from isoflop.model.routing import route
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from strategies import decoders, mixtures


def filled(decoder: Decoder, dtype: torch.dtype = torch.float32) -> DecoderModel:
    model = DecoderModel(decoder, dtype)
    initialize(model, 1, Recipe(lr=1e-3, batch=1))
    return model


def tokens_of(decoder: Decoder, batch: int, context: int, seed: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, decoder.vocab_size, (batch, context), generator=generator)


@settings(max_examples=40)
@given(decoders(), st.integers(2, 9), st.data())
def test_the_future_never_changes_the_past(decoder: Decoder, context: int, data: st.DataObject) -> None:
    model = filled(decoder)
    tokens = tokens_of(decoder, 2, context)
    t = data.draw(st.integers(1, context - 1), label="first changed position")
    changed = tokens.clone()
    changed[:, t:] = (changed[:, t:] + 1) % decoder.vocab_size
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :t], after[:, :t], rtol=1e-5, atol=1e-5)
    assert decoder.d_model < 3 or not torch.allclose(before[:, t:], after[:, t:])


@settings(max_examples=20)
@given(decoders(), st.integers(1, 9))
def test_losses_are_their_definitions(decoder: Decoder, context: int) -> None:
    model = filled(decoder)
    tokens, targets = tokens_of(decoder, 2, context), tokens_of(decoder, 2, context, seed=3)
    with torch.no_grad():
        losses, probability = model.loss(tokens, targets), model(tokens).double().softmax(-1)
    nats = -probability.gather(-1, targets[..., None]).log().mean()
    torch.testing.assert_close(losses.nats.double(), nats, rtol=1e-5, atol=1e-6)
    sparse = [x.feed_forward for x in decoder.layers if isinstance(x.feed_forward, MixtureOfExperts)]
    assert len(losses.router) == len(sparse)
    added = sum(
        float(f.balance_coef * s.balance_loss + f.z_coef * s.z_loss + f.sequence_balance_coef * s.sequence_balance_loss)
        for f, s in zip(sparse, losses.router, strict=True)
    )
    assert float(losses.total) == pytest.approx(float(losses.nats) + added, rel=1e-5)


@settings(max_examples=60)
@given(mixtures(), st.integers(1, 30), st.integers(0, 99))
def test_routers_statistics(f: MixtureOfExperts, tokens: int, seed: int) -> None:
    logits = 2 * torch.randn(tokens, f.n_experts, generator=torch.Generator().manual_seed(seed))
    weight_NK, expert_NK, stats = route(logits, f)
    assert weight_NK.shape == expert_NK.shape == (tokens, f.top_k)
    assert all(len(set(row)) == f.top_k for row in expert_NK.tolist())
    total = weight_NK.sum(-1)
    most = f.routed_scale * (1 if f.router == "softmax" or f.renormalize else f.top_k)
    assert torch.allclose(total, torch.full((tokens,), most)) if f.renormalize else bool((total <= most + 1e-5).all())
    rows = [0] * f.n_experts
    for expert in expert_NK.flatten().tolist():
        rows[expert] += 1
    assert stats.load_E.tolist() == pytest.approx([n / (tokens * f.top_k) for n in rows])
    assert -1e-6 <= float(stats.entropy) <= math.log(f.n_experts) + 1e-5
    z = sum(math.log(sum(math.exp(x) for x in row)) ** 2 for row in logits.tolist()) / tokens
    assert float(stats.z_loss) == pytest.approx(z, rel=1e-4)
    if f.top_k == f.n_experts:  # every expert gets the same number of rows
        assert float(stats.balance_loss) == pytest.approx(1, rel=1e-5)


SPARSE = MixtureOfExperts(n_experts=4, top_k=2, d_ff=32)


@pytest.mark.parametrize("feed_forward", [Mlp(d_ff=64), SPARSE], ids=["dense", "sparse"])
def test_bf16_is_close_to_fp32(feed_forward: Mlp | MixtureOfExperts) -> None:
    layer = Layer(mixer=Attention(n_heads=4, n_kv_heads=2, d_head=8), feed_forward=feed_forward)
    decoder = Decoder(vocab_size=50, d_model=32, layers=(layer,) * 3, max_context=32)
    full, half = filled(decoder), filled(decoder, torch.bfloat16)
    tokens, targets = tokens_of(decoder, 4, 32), tokens_of(decoder, 4, 32, seed=3)
    with torch.no_grad():
        exact, rough = full(tokens), half(tokens)
        losses = full.loss(tokens, targets), half.loss(tokens, targets)
    assert rough.dtype == torch.float32 and not torch.equal(exact, rough)
    assert float((rough - exact).norm() / exact.norm()) < (0.03 if feed_forward is not SPARSE else 0.1)
    assert float(losses[1].nats) == pytest.approx(float(losses[0].nats), rel=0.01)
    assert all(parameter.dtype == torch.float32 for parameter in half.parameters())


def test_multipliers() -> None:
    """Logits scale; without the residual branches only the embedding is left."""
    layer = Layer(mixer=Attention(n_heads=1, n_kv_heads=1, d_head=4), feed_forward=Mlp(d_ff=8))
    shape = {"vocab_size": 9, "d_model": 6, "layers": (layer,), "max_context": 8}
    tokens = torch.arange(8)[None]
    plain, scaled = (filled(Decoder(**shape, logit_multiplier=x)) for x in (1.0, 0.25))
    torch.testing.assert_close(plain(tokens) * 0.25, scaled(tokens))
    quiet = filled(Decoder(**shape, residual_multiplier=1e-12, embedding_multiplier=7.0))
    x = 7.0 * quiet.embedding[tokens]
    wanted = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() @ quiet.head.weight.T
    torch.testing.assert_close(quiet(tokens), wanted)
