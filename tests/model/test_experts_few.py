"""Rows without gradients, few or of small experts, beside the same rows sorted by expert."""

import pytest
import torch

from isoflop.architecture import MixtureOfExperts
from isoflop.architecture.feed_forward import SharedExperts
from isoflop.model import experts

CASES = {
    "plain": MixtureOfExperts(n_experts=5, top_k=2, d_ff=19),
    "biases": MixtureOfExperts(n_experts=5, top_k=3, d_ff=19, activation="swiglu-clamped", bias=True),
    "weighed inputs": MixtureOfExperts(n_experts=5, top_k=1, d_ff=19, router="sigmoid", weigh="input"),
    "shared": MixtureOfExperts(n_experts=5, top_k=2, d_ff=19, activation="relu2", shared=SharedExperts(d_ff=8)),
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("n_tokens", [1, 2, 9, 21])
@pytest.mark.parametrize("case", CASES)
def test_unsorted_rows_give_what_sorted_rows_do(case: str, n_tokens: int, threads: int) -> None:
    before = torch.get_num_threads()
    generator = torch.Generator().manual_seed(0)
    module = experts.MixtureOfExperts(CASES[case], 8).eval()
    for parameter in module.parameters():
        parameter.data.normal_(generator=generator)
    x_BTM = torch.randn(n_tokens, 1, 8, generator=generator)
    try:
        torch.set_num_threads(threads)
        with torch.no_grad():
            few = module(x_BTM)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(few, module(x_BTM).detach(), rtol=1e-5, atol=1e-5)
