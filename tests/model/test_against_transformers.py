"""Values and gradients against transformers' Llama, Mixtral, Qwen3 and Qwen3-MoE with the same weights."""

import pytest
import torch
import torch.nn.functional as F
from hugging_face_models import renamed, twin
from torch import Tensor

from isoflop.architecture import Attention, Decoder, Layer, Llama3Scaling, MixtureOfExperts, Mlp, RmsNorm, Rope
from isoflop.model import DecoderModel
from isoflop.model.routing import route

PLAIN = Rope()
SCALED = Rope(
    theta=500_000.0,
    scaling=Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_context=16),
)


def decoder(n_heads, n_kv_heads, d_head, feed_forward, *, d_model=24, tied=False, rope=PLAIN, eps=1e-5, qk=False):
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_kv_heads, d_head=d_head, qk_norm=qk)
    return Decoder(
        vocab_size=37,
        d_model=d_model,
        layers=(Layer(mixer=mixer, feed_forward=feed_forward),) * 3,
        max_context=48,
        norm=RmsNorm(eps=eps),
        position=rope,
        tie_embeddings=tied,
    )


def mixture(n_experts: int, top_k: int, d_ff: int, renormalize: bool = True) -> MixtureOfExperts:
    return MixtureOfExperts(
        n_experts=n_experts, top_k=top_k, d_ff=d_ff, renormalize=renormalize, balance_coef=0.0, z_coef=0.0
    )


SHAPES = {
    "multi-head": decoder(4, 4, 6, Mlp(d_ff=40)),
    "odd heads, grouped, tied": decoder(9, 3, 2, Mlp(d_ff=13), d_model=18, tied=True),
    "multi-query, wide heads": decoder(5, 1, 16, Mlp(d_ff=7), d_model=15, eps=1e-2),
    "llama 3.1 rope": decoder(4, 2, 16, Mlp(d_ff=40), rope=SCALED),
    "qwen3": decoder(6, 2, 10, Mlp(d_ff=40), qk=True, tied=True),
    "mixtral": decoder(4, 2, 8, mixture(4, 2, 16)),
    "mixtral, odd": decoder(3, 1, 4, mixture(5, 3, 7), d_model=13),
    "mixtral, one of one": decoder(2, 2, 4, mixture(1, 1, 12)),
    "mixtral, all of three": decoder(2, 1, 4, mixture(3, 3, 12), rope=SCALED),
    "qwen3-moe, not renormalised": decoder(4, 2, 6, mixture(6, 2, 12, renormalize=False), qk=True),
}


def filled(described: Decoder) -> DecoderModel:
    """A model with weights that no symmetry hides: norms are random too."""
    model, generator = DecoderModel(described), torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        spread = 0.3 if parameter.dim() == 1 else 0.2
        parameter.data.normal_(1.0 if parameter.dim() == 1 else 0.0, spread, generator=generator)
    return model


def relative(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).detach().abs().max() / theirs.detach().abs().max())


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_gradients(name: str) -> None:
    described = SHAPES[name]
    ours = filled(described)
    theirs = twin(described, ours)
    tokens, targets = torch.randint(0, 37, (2, 2, 45), generator=torch.Generator().manual_seed(2))
    their_logits = theirs(tokens).logits
    assert relative(ours(tokens), their_logits) < 1e-4
    assert float(their_logits.detach().std()) > 0.1  # the weights do something

    losses = ours.loss(tokens, targets)
    their_loss = F.cross_entropy(their_logits.flatten(0, 1), targets.flatten())
    assert float(losses.total.detach()) == pytest.approx(float(their_loss.detach()), rel=1e-5)
    losses.total.backward()
    their_loss.backward()
    gradients = renamed(described, {name: p.grad for name, p in ours.named_parameters()})
    for parameter, gradient in theirs.named_parameters():
        if gradient.grad.abs().max() > 1e-7:  # one expert alone: its router has no gradient but rounding
            assert relative(gradients[parameter], gradient.grad) < 1e-4, parameter


@pytest.mark.parametrize("top_k", [1, 2, 5])
def test_load_balancing_loss(top_k: int) -> None:
    """Transformers' shares of tokens sum to top_k, ours of rows to one: theirs is top_k times ours."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    logits_NE = torch.randn(33, 5, generator=torch.Generator().manual_seed(3))
    _, _, stats = route(logits_NE, mixture(5, top_k, 8))
    theirs = load_balancing_loss_func((logits_NE,), num_experts=5, top_k=top_k)
    assert float(stats.balance_loss) * top_k == pytest.approx(float(theirs), rel=1e-5)
