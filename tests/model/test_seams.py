"""The two seams where kernels can be exchanged, against plain products: values and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isoflop.architecture import Attention, MixtureOfExperts
from isoflop.model import experts
from isoflop.model.attention import causal_attention
from isoflop.model.experts import grouped_matmul
from references import causal_by_mask, causal_by_rows, experts_by_loop
from strategies import attentions


def same_values_and_gradients(found: Tensor, wanted: Tensor, inputs: tuple[Tensor, ...], tolerance: float) -> None:
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)
    seed = torch.randn(found.shape, generator=torch.Generator().manual_seed(4), dtype=found.dtype)
    gradients = (torch.autograd.grad(y, inputs, seed, retain_graph=True) for y in (found, wanted))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


@settings(max_examples=30)
@given(attentions(), st.integers(1, 9), st.integers(1, 2))
def test_attention(m: Attention, context: int, batch: int) -> None:
    generator = torch.Generator().manual_seed(5)
    q, k, v = (
        torch.randn(batch, context, heads, m.d_head, generator=generator, requires_grad=True)
        for heads in (m.n_heads, m.n_kv_heads, m.n_kv_heads)
    )
    scale = m.d_head**-0.5 if m.scale is None else m.scale
    found = causal_attention(q, k, v, scale)
    same_values_and_gradients(found, causal_by_rows(q, k, v, scale), (q, k, v), 1e-5)
    same_values_and_gradients(found, causal_by_mask(q, k, v, scale), (q, k, v), 1e-5)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=5).filter(any), st.integers(1, 20), st.integers(1, 20))
def test_grouped_matmul(counts: list[int], width: int, columns: int) -> None:
    """Any widths, any experts without a token."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(sum(counts), width, generator=generator, requires_grad=True)
    weight = torch.randn(len(counts), width, columns, generator=generator, requires_grad=True)
    ends = torch.tensor(counts).cumsum(0).to(torch.int32)
    same_values_and_gradients(grouped_matmul(x, weight, ends), experts_by_loop(x, weight, ends), (x, weight), 1e-5)


@pytest.mark.parametrize("width", [8, 12, 5])
def test_grouped_matmul_in_bf16(width: int) -> None:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(6, width, generator=generator).bfloat16().requires_grad_()
    weight = torch.randn(3, width, 16, generator=generator, requires_grad=True)
    ends = torch.tensor([2, 2, 6], dtype=torch.int32)
    found = grouped_matmul(x, weight, ends)
    assert found.dtype == torch.bfloat16
    same_values_and_gradients(found, experts_by_loop(x, weight, ends), (x, weight), 2e-2)


def mixture(f: MixtureOfExperts, d_model: int) -> experts.MixtureOfExperts:
    module, generator = experts.MixtureOfExperts(f, d_model), torch.Generator().manual_seed(8)
    for parameter in module.parameters():
        parameter.data.normal_(0, 0.5, generator=generator)
    return module


def test_gradients_without_strides_are_no_obstacle() -> None:
    """The grouped kernel's backward refuses gradients whose strides are zero, as those of a sum are: inside the
    mixture it never gets any."""
    module = mixture(MixtureOfExperts(n_experts=4, top_k=2, d_ff=8), 8)
    y, _ = module(torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(10)))
    y.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())
