"""Rows times a matrix, and their norm, beside plain torch."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop import architecture
from isoflop.model.kernels import quantized, rows
from isoflop.model.linear import Linear
from isoflop.model.norm import RmsNorm
from isoflop.model.quantized import Integer, QuantizedLinear, round_to_nearest
from lesser import assert_runs, needs_x86

TYPES = ((torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.bfloat16, torch.bfloat16))
pytestmark = pytest.mark.skipif(rows._functions() is None, reason="no C++ compiler")


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(TYPES),
    st.integers(1, 70),
    st.integers(1, 100),
    st.integers(1, 70),
    st.integers(1, 2),
    st.booleans(),
    st.integers(0, 2**20),
)
def test_rows_are_multiplied_as_torch_would(
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
    met = x.to(types[1]).double()  # rows that meet bf16 are rounded to it
    exact = F.linear(met, layer.weight.double(), of_bias)
    assert y.dtype == types[0] and y.shape == (n_rows, 1, d_out)
    precision = 1e-2 if types[0] == torch.bfloat16 else 1e-5
    torch.testing.assert_close(y.double(), exact, rtol=precision, atol=precision)


@pytest.mark.parametrize("types", TYPES)
@pytest.mark.parametrize("d_in", (37, 2500))  # in one span of columns, in several
def test_a_row_gives_the_same_whatever_is_beside_it(types: tuple[torch.dtype, torch.dtype], d_in: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(45, d_in, generator=generator).to(types[1]), torch.randn(45, generator=generator)
    x = torch.randn(1100, d_in, generator=generator).to(types[0])
    before = torch.get_num_threads()
    try:
        with torch.no_grad():
            torch.set_num_threads(1)
            alone = torch.cat([rows.linear(row[None], weight, bias) for row in x])
            for threads in (1, 2):
                torch.set_num_threads(threads)
                for n_rows in (*range(1, 71), 130, len(x)):
                    assert torch.equal(rows.linear(x[-n_rows:], weight, bias), alone[-n_rows:])
    finally:
        torch.set_num_threads(before)


@needs_x86
@pytest.mark.parametrize("lesser", ("-mno-avx512bf16", "-mno-avx"))
def test_processors_with_fewer_instructions(tmp_path: Path, lesser: str) -> None:
    program = (
        "import torch; from isoflop.model.kernels import rows\n"
        "fp32, bf16 = torch.float32, torch.bfloat16\n"
        "for of_x, of_weight in ((fp32, fp32), (fp32, bf16), (bf16, bf16)):\n"
        "    for n_rows, d_in, d_out in ((1, 5, 3), (3, 70, 9), (40, 1500, 41)):\n"
        "        x, weight = torch.randn(n_rows, d_in).to(of_x), torch.randn(d_out, d_in).to(of_weight)\n"
        "        y, exact = rows.linear(x, weight, None), x.to(of_weight).double() @ weight.double().T\n"
        "        torch.testing.assert_close(y, exact.to(of_x), rtol=1e-2 if of_x == bf16 else 1e-5, atol=1e-4)\n"
        "        assert torch.equal(rows.linear(x[-1:], weight, None), y[-1:])\n"
    )
    assert_runs(program, lesser, tmp_path)


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


@torch.no_grad()
def test_a_norm_is_the_same_whatever_is_beside_it() -> None:
    """By itself, among many rows, and where rows are normed as they meet a matrix of few bits."""
    d, n_rows = 768, 200
    x_MI, weight_I = torch.randn(n_rows, d, generator=torch.Generator().manual_seed(0)), torch.linspace(0.5, 2, d)
    assert rows.norms(x_MI, weight_I)
    normed_MI = rows.rms_norm(x_MI, weight_I, 1e-5)
    alone = [rows.rms_norm(x_I[None], weight_I, 1e-5) for x_I in x_MI]
    assert torch.equal(normed_MI, torch.cat(alone))
    linear = torch.nn.Linear(d, 64, bias=False)
    packed = QuantizedLinear(round_to_nearest(linear.weight.detach(), Integer(bits=8))).packed(x_MI)
    assert packed is not None
    y_MO = torch.empty(n_rows, 64)
    pointers = x_MI.data_ptr(), weight_I.data_ptr(), 1e-5, None, y_MO.data_ptr()
    quantized._function()(packed.call, *pointers, n_rows, 1)
    assert torch.equal(y_MO, quantized.linear(normed_MI, packed))


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
        assert not rows.multiplies(torch.randn(rows.MOST_ROWS + 1, 8), layer.weight)


def test_what_is_not_a_number_shows() -> None:
    x = torch.tensor([[1.0, float("nan")], [1.0, float("inf")], [1.0, 2.0]])
    with torch.no_grad():
        y = rows.linear(x, torch.ones(3, 2), None)
        assert not y[:2].isfinite().any() and y[2].isfinite().all()
        assert rows.rms_norm(x, torch.ones(2), 1e-5)[0].isnan().all()
