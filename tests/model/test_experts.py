"""Feed-forwards of every kind: values and gradients against their definitions; what the router does; balance."""

import math
from typing import get_args

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from feed_forward_references import activation_by_definition, mixture_by_tokens, mlp_by_definition
from isoflop.architecture import MixtureOfExperts, Mlp, SharedExperts
from isoflop.architecture.feed_forward import Activation
from isoflop.cost.feed_forward import feed_forward_parameters
from isoflop.model import experts, mlp
from isoflop.model.activation import activate
from isoflop.model.routing import capacity, route
from strategies import feed_forwards, mixtures

ACTIVATIONS = get_args(Activation)
LIMITS = st.sampled_from((None, None, 0.25, 0.7, 1.0, 1.1, 2.0))


def mlps() -> st.SearchStrategy[Mlp]:
    return st.builds(Mlp, d_ff=st.integers(1, 20), activation=st.sampled_from(ACTIVATIONS), bias=st.booleans())


def built(f: Mlp | MixtureOfExperts, d_model: int) -> nn.Module:
    return mlp.Mlp(f, d_model) if isinstance(f, Mlp) else experts.MixtureOfExperts(f, d_model)


def filled(f: Mlp | MixtureOfExperts, d_model: int, seed: int = 1) -> nn.Module:
    module, generator = built(f, d_model), torch.Generator().manual_seed(seed)
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data.normal_(0, 0.5, generator=generator)
    return module


def inputs(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def same(found: Tensor, wanted: Tensor, sources: list[Tensor], tolerance: float = 1e-4) -> None:
    """Values and gradients of everything they come from; what neither depends on has none."""
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    seed = torch.randn(found.shape, generator=torch.Generator().manual_seed(3))
    ours, theirs = (
        torch.autograd.grad(y, sources, seed, retain_graph=True, materialize_grads=True) for y in (found, wanted)
    )
    for x, y in zip(ours, theirs, strict=True):
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@settings(max_examples=50)
@given(mlps(), st.integers(1, 12))
def test_mlp_is_its_definition(f: Mlp, d_model: int) -> None:
    module, x = filled(f, d_model), inputs(2, 3, d_model)
    first = module.gate_up if module.gated else module.up
    weights = {"first": first.weight.T, "down": module.down.weight.T}
    if f.bias:
        weights |= {"first_bias": first.bias, "down_bias": module.down.bias}
    same(module(x), mlp_by_definition(x, f, weights), [x, *module.parameters()])


@settings(max_examples=150)
@given(mixtures(), LIMITS, st.integers(1, 12), st.integers(1, 6), st.integers(1, 2), st.integers(0, 999))
def test_mixture_is_its_definition(
    f: MixtureOfExperts, limit: float | None, d_model: int, context: int, batch: int, seed: int
) -> None:
    f = msgspec.structs.replace(f, capacity_factor=limit)
    module, x = filled(f, d_model, seed), inputs(batch, context, d_model, seed=seed)
    found, stats = module(x)
    wanted, chosen, dropped = mixture_by_tokens(x, module)
    same(found, wanted, [x, *module.parameters()])
    rows = len(chosen) * f.top_k
    load = [sum(e in best for best in chosen) / rows for e in range(f.n_experts)]
    assert stats.load_E.tolist() == pytest.approx(load)
    assert float(stats.dropped) == pytest.approx(dropped / rows)
    module.eval()
    torch.testing.assert_close(module(x), found, rtol=0, atol=0)


@settings(max_examples=60)
@given(mixtures(), st.integers(1, 6), st.integers(1, 3), st.integers(0, 99))
def test_losses_are_their_definitions(f: MixtureOfExperts, context: int, batch: int, seed: int) -> None:
    """Of each sequence the loads and mean probabilities, and what `loss` adds up, with gradients."""
    logits = inputs(batch * context, f.n_experts, seed=seed)
    stats = route(logits, f, n_sequences=batch)[2]
    score = logits.softmax(-1) if f.router == "softmax" else torch.sigmoid(logits)
    p = score / score.sum(-1, keepdim=True)
    best = score.argsort(-1, descending=True)[:, : f.top_k]
    chosen = nn.functional.one_hot(best, f.n_experts).sum(1).float()
    within = [
        f.n_experts * (c.mean(0) / f.top_k * q.mean(0)).sum()
        for c, q in zip(chosen.split(context), p.split(context), strict=True)
    ]
    balance = f.n_experts * (stats.load_E * p.mean(0)).sum()
    z = logits.exp().sum(-1).log().square().mean()
    wanted = f.balance_coef * balance + f.z_coef * z + f.sequence_balance_coef * torch.stack(within).mean()
    same(experts.MixtureOfExperts(f, 1).loss(stats) + 0 * logits.sum(), wanted + 0 * logits.sum(), [logits], 1e-5)
    assert -1e-5 <= float(stats.entropy.detach()) <= math.log(f.n_experts) + 1e-5


@settings(max_examples=100)
@given(feed_forwards(), st.integers(1, 12))
def test_parameters_are_the_modules(f: Mlp | MixtureOfExperts, d_model: int) -> None:
    with torch.device("meta"):
        module = built(f, d_model)
    sizes = {name: p.numel() for name, p in module.named_parameters()}
    part = feed_forward_parameters(f, d_model)
    assert part.total == sum(sizes.values())
    stacks = {name for name in sizes if name in ("gate_up", "up", "down", "gate_up_bias", "up_bias", "down_bias")}
    share = f.top_k / f.n_experts if isinstance(f, MixtureOfExperts) else 1
    active = {name: n * share if name in stacks else n for name, n in sizes.items()}
    assert part.active == pytest.approx(sum(active.values()))
    assert part.matmul == pytest.approx(sum(n for name, n in active.items() if not name.endswith("bias")))


@pytest.mark.parametrize("bf16", [False, True])
def test_few_rows_and_none(bf16: bool) -> None:
    """One token, and experts without any, in both types."""
    f = MixtureOfExperts(n_experts=7, top_k=2, d_ff=5, bias=True)
    module, x = filled(f, 6).eval(), inputs(1, 1, 6)
    wanted = mixture_by_tokens(x, module)[0]
    found = module(x.bfloat16() if bf16 else x)
    assert found.dtype == (torch.bfloat16 if bf16 else torch.float32)
    torch.testing.assert_close(found.float(), wanted, **({"rtol": 0.05, "atol": 0.05} if bf16 else {}))
    found.float().sum().backward()
    idle = module.down.grad.flatten(1).abs().sum(1) == 0
    assert int(idle.sum()) == 5 and all(p.grad.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize(("factor", "kept"), [(0.01, 1), (1.0, 2), (1.6, 4), (5.0, 10)])
def test_all_tokens_to_one_expert(factor: float, kept: int) -> None:
    """The first positions are served, to the last row of the capacity; of the others nothing is left."""
    f = MixtureOfExperts(n_experts=5, top_k=1, d_ff=4, router_bias=True, bias=True, capacity_factor=factor)
    module, x = filled(f, 3), inputs(2, 5, 3)
    module.router.bias.data[3] = 100.0
    y, stats = module(x)
    served = y.transpose(0, 1).flatten(0, 1).abs().sum(-1) > 0
    assert served.tolist() == [True] * kept + [False] * (10 - kept)
    assert float(stats.dropped) == pytest.approx(1 - kept / 10)
    assert stats.load_E.tolist() == [0, 0, 0, 1, 0]  # what the router asked for
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert (gradient.transpose(0, 1).flatten(0, 1).abs().sum(-1) > 0).tolist() == served.tolist()


def test_capacity_is_rounded_up_but_not_by_rounding_errors() -> None:
    f = MixtureOfExperts(n_experts=2, top_k=2, d_ff=1, capacity_factor=1.1)
    assert [capacity(f, n) for n in (10, 11, 1)] == [11, 13, 2]


def skewed(rate: float) -> tuple[nn.Module, Tensor]:
    f = MixtureOfExperts(
        n_experts=8, top_k=2, d_ff=4, router="sigmoid", selection_bias=True, bias_update_rate=rate, router_bias=True
    )
    module = filled(f, 6)
    module.selection_bias.zero_()
    module.router.bias.data = torch.linspace(-2, 2, 8)
    return module, inputs(4, 64, 6).detach()


def test_bias_updates_even_out_a_skewed_router() -> None:
    """With the weights held, 200 steps of the rule; without a rate the load stays where it was."""
    spreads = {}
    for rate in (0.0, 0.01):
        module, x = skewed(rate)
        for _ in range(200):
            _, stats = module(x)
            module.after_step(stats)
        spreads[rate] = float(stats.load_E.max() - stats.load_E.min()) * 8
    assert spreads[0.0] > 1.0 and spreads[0.01] < 0.2
    assert torch.equal(skewed(0.0)[0].selection_bias, torch.zeros(8))


def test_a_bias_moves_by_its_rate_against_the_load() -> None:
    module, x = skewed(0.25)
    _, stats = module(x)
    module.after_step(stats._replace(load_E=torch.tensor([0, 0, 0.25, 0.125, 0.125, 0.125, 0.125, 0.25])))
    assert module.selection_bias.tolist() == [0.25, 0.25, -0.25, 0, 0, 0, 0, -0.25]
    assert "selection_bias" in module.state_dict() and "selection_bias" not in dict(module.named_parameters())


def test_equal_runs_end_in_equal_bits() -> None:
    f = MixtureOfExperts(n_experts=6, top_k=3, d_ff=32, shared=SharedExperts(8), capacity_factor=1.0, bias=True)
    bits = []
    for _ in range(2):
        module, x = filled(f, 16), inputs(3, 40, 16)
        y, stats = module(x)
        (y.square().sum() + module.loss(stats)).backward()
        bits.append([y, x.grad, *(p.grad for p in module.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*bits, strict=True))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated")  # torch's own compiler does it
@pytest.mark.parametrize("weigh", ["output", "input"])
def test_compiled_is_eager(weigh: str) -> None:
    """Nothing breaks the graph; the selection bias may move between calls."""
    f = MixtureOfExperts(
        n_experts=6,
        top_k=2,
        d_ff=8,
        router="sigmoid",
        selection_bias=True,
        bias_update_rate=0.1,
        n_groups=3,
        top_groups=2,
        weigh=weigh,
        capacity_factor=1.0,
        bias=True,
        shared=SharedExperts(4, gated=True),
        sequence_balance_coef=0.01,
    )
    module, x = filled(f, 5), inputs(2, 9, 5)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True, dynamic=False)
    for _ in range(2):
        (y, stats), (wanted, _) = compiled(x), module(x)
        same(y, wanted, [x, *module.parameters()], 1e-5)
        module.after_step(stats)


def test_activations_far_out() -> None:
    h = torch.tensor([[-50.0, -9.0, -0.1, 0.0, 0.1, 9.0, 50.0, 3.0]]).requires_grad_()
    for kind in ACTIVATIONS:
        same(activate(h, kind), activation_by_definition(h, kind), [h], 1e-5)
