"""Feed-forwards in one call, beside the same in plain torch: any matrices, rows, activation and threads.

M d_model, H width after the first matrix, F before the second, N row.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isoflop.architecture.feed_forward import GATED
from isoflop.model.activation import activate
from isoflop.model.kernels import layers as kernels
from isoflop.model.quantized import Float8, Format, Integer, NormalFloat, QuantizedLinear, round_to_nearest

pytestmark = pytest.mark.skipif(not kernels.available(), reason="no C++ compiler")
FORMATS = Integer(bits=8), Integer(bits=8, group=32), Integer(bits=4, group=16), NormalFloat(group=16), Float8(), None
EPS, NOWHERE = 1e-5, kernels.Places([], [], 0, 0)


@dataclass(frozen=True)
class Case:
    """A layer without a mixer, and rows for it. Without a format, its matrices are fp32."""

    form: Format | None
    activation: Any
    d_model: int
    d_ff: int
    n_rows: int
    seed: int

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def linear(d_out: int, d_in: int) -> Any:
            weight_OI = torch.randn(d_out, d_in, generator=generator) * d_in**-0.5
            bias_O = torch.randn(d_out, generator=generator)
            if self.form is None:
                return weight_OI, bias_O
            return QuantizedLinear(round_to_nearest(weight_OI, self.form), bias_O)

        width = self.d_ff * (2 if self.activation in GATED else 1)
        up, down = linear(width, self.d_model), linear(self.d_model, self.d_ff)
        x_NM = torch.randn(self.n_rows, self.d_model, generator=generator)
        norm_M = torch.rand(self.d_model, generator=generator) + 0.5
        object.__setattr__(self, "parts", (up, down, x_NM, norm_M, (width, self.d_ff)))

    def one_call(self, rows: slice, threads: int = 1) -> Tensor:
        up, down, x_NM, norm_M, widths = self.parts  # type: ignore[attr-defined]
        matrices = _matrix(up), _matrix(down)
        layer = kernels.layer(None, kernels.FeedForward(*matrices, norm_M, widths, self.activation), EPS)
        y_NM = x_NM[rows].clone()
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            kernels.run(layer, 1, y_NM, NOWHERE, [])
        finally:
            torch.set_num_threads(before)
        return y_NM

    @torch.no_grad()
    def modules(self) -> tuple[Tensor, Tensor]:
        """The same, and by how much it may differ: by a number that is rounded one step further, where the last bit
        before the rounding differs."""
        up, down, x_NM, norm_M, _ = self.parts  # type: ignore[attr-defined]
        hidden_NF = activate(_times(up)(F.rms_norm(x_NM, x_NM.shape[1:], norm_M, EPS)), self.activation)
        weight_MF = down[0] if self.form is None else down.dense_weight(torch.float32)
        step = hidden_NF.abs().amax() / 127 * weight_MF.abs().amax()
        y_NM = x_NM + _times(down)(hidden_NF)
        return y_NM, 1e-4 * (1 + y_NM.abs()) + (0 if self.form is None else 8 * step)


def _matrix(linear: Any) -> kernels.Matrix:
    if isinstance(linear, tuple):
        return kernels.as_it_lies(*linear)
    packed = linear.packed(torch.zeros(1))
    assert packed is not None
    return kernels.of_few_bits(packed)


def _times(linear: Any) -> Callable[[Tensor], Tensor]:
    return linear if isinstance(linear, QuantizedLinear) else lambda x: F.linear(x, *linear)


CASES = st.builds(
    Case,
    form=st.sampled_from(FORMATS),
    activation=st.sampled_from(kernels.ACTIVATIONS),
    d_model=st.integers(1, 90),
    d_ff=st.integers(1, 90),
    n_rows=st.integers(1, 130),
    seed=st.integers(0, 2**20),
)


@settings(max_examples=100, deadline=None)
@given(CASES)
@torch.no_grad()
def test_one_call_is_its_parts(case: Case) -> None:
    wanted, far = case.modules()
    assert ((case.one_call(slice(None)) - wanted).abs() <= far).all()


@settings(max_examples=60, deadline=None)
@given(CASES, st.data())
@torch.no_grad()
def test_neither_threads_nor_other_rows_change_a_bit(case: Case, data: st.DataObject) -> None:
    everything = case.one_call(slice(None))
    assert torch.equal(case.one_call(slice(None), threads=2), everything)
    one = data.draw(st.integers(0, case.n_rows - 1))
    assert torch.equal(case.one_call(slice(one, one + 1)), everything[one : one + 1])
