"""A few rows times a matrix, and their norm, beside plain torch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop import architecture
from isoflop.model.kernels import rows
from isoflop.model.linear import Linear
from isoflop.model.norm import RmsNorm

TYPES = ((torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16))
pytestmark = pytest.mark.skipif(rows._functions() is None, reason="no C++ compiler")


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(TYPES),
    st.integers(1, 70),
    st.integers(1, 100),
    st.integers(1, 8),
    st.integers(1, 2),
    st.booleans(),
    st.integers(0, 2**20),
)
def test_few_rows_are_multiplied_as_torch_would(
    types: tuple[torch.dtype, torch.dtype], d_out: int, d_in: int, n_rows: int, threads: int, bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    layer = Linear(d_in, d_out, bias)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator).to(types[1])
    x = torch.randn(n_rows, 1, d_in, generator=generator).to(types[0])
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.no_grad():
            assert rows.multiplies(x, layer.weight)
            y = layer(x)
    finally:
        torch.set_num_threads(before)
    of_bias = None if layer.bias is None else layer.bias.double()
    exact = F.linear(x.double(), layer.weight.double(), of_bias)
    assert y.dtype == types[0] and y.shape == (n_rows, 1, d_out)
    precision = 1e-2 if types[0] == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y.double(), exact, rtol=precision, atol=precision)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 5), st.integers(0, 2**20))
def test_norms_are_torchs(d: int, n_rows: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    norm = RmsNorm(architecture.RmsNorm(), d)
    norm.weight.data = torch.randn(d, generator=generator)
    x = torch.randn(1, n_rows, d, generator=generator)
    with torch.no_grad():
        assert rows.norms(x, norm.weight)
        torch.testing.assert_close(norm(x), F.rms_norm(x, (d,), norm.weight, norm.eps))


def test_what_is_learnt_compiled_or_faked_is_left_to_torch() -> None:
    layer, x = Linear(8, 4), torch.randn(2, 8)
    layer.weight.data.normal_()
    assert not rows.multiplies(x, layer.weight) and not rows.norms(x, torch.ones(8))
    layer(x).sum().backward()
    assert layer.weight.grad is not None
    with torch.no_grad():
        assert not rows.multiplies(torch.empty(2, 8, device="meta"), layer.weight)
        assert not rows.multiplies(x.double(), layer.weight)
        assert not rows.multiplies(x, layer.weight.t())
        assert not rows.multiplies(torch.randn(1000, 8), layer.weight)


def test_what_is_not_a_number_shows() -> None:
    x = torch.tensor([[1.0, float("nan")], [1.0, float("inf")], [1.0, 2.0]])
    with torch.no_grad():
        y = rows.linear(x, torch.ones(3, 2), None)
        assert not y[:2].isfinite().any() and y[2].isfinite().all()
        assert rows.rms_norm(x, torch.ones(2), 1e-5)[0].isnan().all()
