"""Experts of few bits beside experts of what their codes stand for."""

import copy

import pytest
import torch
from torch import nn

from isoflop.architecture import MixtureOfExperts
from isoflop.architecture.feed_forward import SharedExperts
from isoflop.model import experts
from isoflop.model.quantized import Format, Integer, NormalFloat, QuantizedWeight, round_to_nearest
from isoflop.model.quantized_experts import QuantizedExperts

D_MODEL = 24
CASES = {
    "plain": MixtureOfExperts(n_experts=5, top_k=2, d_ff=19),
    "biases": MixtureOfExperts(n_experts=5, top_k=3, d_ff=19, activation="swiglu-clamped", bias=True),
    "weighed inputs": MixtureOfExperts(n_experts=5, top_k=1, d_ff=19, router="sigmoid", weigh="input"),
    "capacity": MixtureOfExperts(n_experts=4, top_k=2, d_ff=19, capacity_factor=0.75),
    "shared": MixtureOfExperts(n_experts=5, top_k=2, d_ff=19, activation="relu2", shared=SharedExperts(d_ff=8)),
}


def twins(case: str, form: Format, only: str = "") -> tuple[experts.MixtureOfExperts, experts.MixtureOfExperts]:
    """The same experts in codes (of `only`, or all) and in plain matrices of what these stand for."""
    generator = torch.Generator().manual_seed(0)
    plain = experts.MixtureOfExperts(CASES[case], D_MODEL).eval()
    for parameter in plain.parameters():
        parameter.data.normal_(generator=generator)
    coded = copy.deepcopy(plain)
    for name in (plain.first, "down"):
        if only in ("", name):
            weight_EIO = getattr(plain, name).detach()
            n_experts, d_in, d_out = weight_EIO.shape
            rows = round_to_nearest(weight_EIO.mT.reshape(-1, d_in), form)
            coded.quantize(name, rows)
            setattr(plain, name, nn.Parameter(rows.dense().view(n_experts, d_out, d_in).mT.contiguous()))
    return coded, plain


@pytest.mark.parametrize("n_tokens", [1, 3, 9, 80])
@pytest.mark.parametrize("case", CASES)
def test_codes_are_what_they_stand_for(case: str, n_tokens: int) -> None:
    coded, plain = twins(case, Integer(bits=8, group=8, symmetric=case == "plain"))
    x_BTM = torch.randn(n_tokens, 1, D_MODEL, generator=torch.Generator().manual_seed(1))
    expected = plain(x_BTM).detach()
    torch.testing.assert_close(coded(x_BTM).detach(), expected, rtol=1e-5, atol=1e-4)
    with torch.no_grad():  # where the kernel rounds its inputs to 8 bits too
        assert float((coded(x_BTM) - expected).abs().max()) < 0.03 * float(expected.abs().max())
        half = coded(x_BTM.bfloat16())
        assert half.dtype == torch.bfloat16
        assert float((half - expected).abs().max()) < 0.06 * float(expected.abs().max())


def test_one_of_the_two_matrices_may_be_plain() -> None:
    coded, plain = twins("biases", NormalFloat(group=8), only="down")
    x_BTM = torch.randn(1, 3, D_MODEL)
    torch.testing.assert_close(coded(x_BTM).detach(), plain(x_BTM).detach(), rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        assert float((coded(x_BTM) - plain(x_BTM)).abs().max()) < 0.1 * float(plain(x_BTM).abs().max())


def test_company_changes_nothing() -> None:
    """Of what the experts multiply; the router's product and the sums over choices are as they are without codes."""
    coded, _ = twins("plain", Integer(bits=4, group=8))
    module, x_RI, expert_R = coded.down, torch.randn(80, 19), torch.arange(80) % 3
    with torch.no_grad():
        together_RO = module.rows(x_RI, expert_R)
        for r in (0, 41, 79):
            assert torch.equal(module.rows(x_RI[r : r + 1], expert_R[r : r + 1])[0], together_RO[r])


def test_order_and_scales_of_inputs_are_everybodys() -> None:
    generator = torch.Generator().manual_seed(0)
    plain = round_to_nearest(torch.randn(30, 16, generator=generator), Integer(bits=4, group=8, symmetric=False))
    for order, in_scales in ((torch.randperm(16, generator=generator), None), (None, torch.rand(16) + 0.5)):
        weight = QuantizedWeight(plain.format, 16, plain.codes, plain.scales, plain.zeros, order, in_scales)
        module, x_RI = QuantizedExperts(weight, 3), torch.randn(7, 16)
        expert_R = torch.tensor([2, 0, 0, 2, 1, 2, 2])
        expected = torch.einsum("ri,roi->ro", x_RI, weight.dense().view(3, 10, 16)[expert_R])
        torch.testing.assert_close(module.rows(x_RI, expert_R), expected, rtol=1e-5, atol=1e-5)
        ends_E = torch.tensor([2, 3, 7], dtype=torch.int32)
        order_R = expert_R.argsort(stable=True)
        torch.testing.assert_close(module.sorted_rows(x_RI[order_R], ends_E), expected[order_R], rtol=1e-5, atol=1e-5)
