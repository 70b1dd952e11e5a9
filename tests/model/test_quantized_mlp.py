"""Norm, two matrices, the gate between them and a residual in one call, beside the same in plain torch."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.model.kernels import quantized as kernels
from isoflop.model.quantized import Float8, Integer, QuantizedLinear, round_to_nearest

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no C++ compiler")
FORMATS = st.sampled_from((Integer(bits=8), Integer(bits=8, group=32), Integer(bits=4, group=16), Float8()))


@settings(max_examples=60, deadline=None)
@given(FORMATS, st.integers(1, 90), st.integers(1, 90), st.integers(1, 15), st.integers(1, 2), st.integers(0, 2**20))
def test_one_call_is_its_parts(
    form: Integer | Float8, d_model: int, d_ff: int, n_rows: int, threads: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def layer(d_out: int, d_in: int) -> QuantizedLinear:
        weight = round_to_nearest(torch.randn(d_out, d_in, generator=generator) * d_in**-0.5, form)
        return QuantizedLinear(weight, torch.randn(d_out, generator=generator))

    gate_up, down = layer(2 * d_ff, d_model), layer(d_model, d_ff)
    x, norm = torch.randn(n_rows, d_model, generator=generator), torch.rand(d_model, generator=generator) + 0.5
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with torch.no_grad():
            first, second = gate_up.packed(x), down.packed(x)
            assert first is not None and second is not None
            y = kernels.mlp(x, first, second, norm, 1e-5, x)
            normed = F.rms_norm(x, (d_model,), norm, 1e-5)
            hidden = kernels.linear(x, first, norm, 1e-5)
            gate, up = hidden.chunk(2, dim=-1)
            parts = kernels.linear((F.silu(gate) * up).contiguous(), second, add_MO=x)
    finally:
        torch.set_num_threads(before)
    # a number that is rounded one step further, where the last bit before the rounding differs
    step = (F.silu(gate) * up).abs().amax() / 127 * down.dense_weight(torch.float32).abs().amax()
    assert ((y - parts).abs() <= 1e-4 * (1 + parts.abs()) + 2 * step).all()
    dense = F.linear(normed, gate_up.dense_weight(torch.float32), gate_up.bias)
    assert (hidden - dense).norm() <= 0.03 * dense.norm() + 1e-4
