"""Weights of few bits: what formats stand for, and the kernel beside plain torch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isoflop.model.kernels import quantized as kernels
from isoflop.model.quantized import (
    Float8,
    Format,
    Integer,
    NormalFloat,
    QuantizedLinear,
    QuantizedWeight,
    groups_of,
    pack_halves,
    round_to_nearest,
    spread,
    unpack_halves,
)

GROUPS = st.sampled_from((0, 1, 5, 8, 16, 20, 32, 64, 128))
SCALES = st.sampled_from(("fp16", "bf16", "fp32"))
FORMATS = st.one_of(
    st.builds(Integer, bits=st.integers(2, 8), group=GROUPS, symmetric=st.booleans(), scales=SCALES),
    st.builds(NormalFloat, group=GROUPS, scales=SCALES),
    st.builds(Float8, group=GROUPS, scales=SCALES),
)
needs_kernel = pytest.mark.skipif(not kernels.available(), reason="no C++ compiler")


def rounded_rows(x_MI: Tensor, group: int) -> Tensor:
    """What the kernel makes of its input: 255 steps by row and group."""
    d_in, width = x_MI.shape[1], group or x_MI.shape[1]
    most_MG = F.pad(x_MI, (0, -d_in % width)).unflatten(1, (-1, width)).abs().amax(-1)
    factor_MI = spread(torch.where(most_MG > 0, 127 / most_MG, 0.0), width, d_in)
    return (x_MI * factor_MI).round() * spread(most_MG / 127, width, d_in)


@settings(max_examples=150, deadline=None)
@given(FORMATS, st.integers(1, 70), st.integers(1, 200), st.integers(1, 20), st.booleans(), st.booleans(), st.data())
@needs_kernel
def test_the_kernel_is_its_plain_twin_on_rounded_rows(
    form: Format, d_out: int, d_in: int, n_rows: int, reordered: bool, scaled: bool, data: st.DataObject
) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**20)))
    plain = round_to_nearest(torch.randn(d_out, d_in, generator=generator), form)
    order = torch.randperm(d_in, generator=generator) if reordered else None
    in_scales = torch.rand(d_in, generator=generator) + 0.5 if scaled else None
    weight = QuantizedWeight(form, d_in, plain.codes, plain.scales, plain.zeros, order, in_scales)
    bias = torch.randn(d_out, generator=generator)
    x = torch.randn(n_rows, d_in, generator=generator)

    met = x if in_scales is None else x * in_scales  # what meets the codes, in their order
    met = met if order is None else met[:, order]
    met = met if isinstance(form, Float8) else rounded_rows(met, form.group)
    exact = met.double() @ plain.dense(torch.float64).T + bias
    layer = QuantizedLinear(weight, bias)
    with torch.no_grad():
        y = layer(x)
    # NormalFloat's values are rounded to 127ths in the kernel
    slack = (met.abs() @ spread(plain.scales.float(), form.group, d_in).abs().T) / 254
    slack = slack if isinstance(form, NormalFloat) else torch.zeros_like(slack)
    tolerance = 2e-5 * (met.abs() @ plain.dense().abs().T + bias.abs()) + 1e-6 + slack * 1.001
    # a tie may be rounded the other way
    steps = met.abs().amax() / 127 * plain.dense().abs().amax() * (0 if isinstance(form, Float8) else 1)
    assert ((y - exact).abs() <= tolerance + 1.01 * steps).all()
    assert ((y - exact).abs() <= tolerance).float().mean() > 0.98
    packed = layer._packed
    assert packed is not None
    again = layer.weight
    assert all(torch.equal(again.tensors()[name], tensor) for name, tensor in weight.tensors().items())


@settings(max_examples=100, deadline=None)
@given(FORMATS, st.integers(1, 9), st.integers(1, 80), st.integers(0, 2**20))
def test_rounding_stays_within_half_a_step(form: Format, d_out: int, d_in: int, seed: int) -> None:
    weight = torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed))
    found = round_to_nearest(weight, form)
    assert found.scales.shape == (d_out, groups_of(d_in, form.group))
    scale = spread(found.scales.float().abs(), form.group, d_in)
    precision = {"fp16": 2**-11, "bf16": 2**-8, "fp32": 2**-23}[form.scales]
    match form:
        case Integer(bits=bits, symmetric=symmetric):
            # symmetric: one code more below than above, so half a step more where the extreme met its mirror image
            half = 1.0 if symmetric and bits < 8 else 0.5 if symmetric else 1.0
            steps, reach = torch.full_like(weight, half), 2**bits
        case NormalFloat():
            steps, reach = torch.full_like(weight, 0.16), 1
        case Float8():
            steps, reach = (weight.abs() / scale).clamp(min=2**-6) / 16, 448
    slack = scale * reach * precision * 2 + 1e-4 * scale
    assert ((found.dense() - weight).abs() <= scale * steps + slack).all()


def test_more_bits_and_smaller_groups_lose_less() -> None:
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    forms = (
        Integer(bits=2, group=32),
        Integer(bits=3, group=32),
        Integer(bits=4),
        Integer(bits=4, group=32),
        Integer(bits=8),
    )
    errors = [(round_to_nearest(weight, form).dense() - weight).norm().item() for form in forms]
    assert errors == sorted(errors, reverse=True)


def test_halves_come_back() -> None:
    codes = torch.randint(16, (3, 7), dtype=torch.uint8)
    assert torch.equal(unpack_halves(pack_halves(codes))[:, :7], codes)


def test_zeros_stay_zero() -> None:
    for form in (Integer(group=8), Integer(group=8, symmetric=False), NormalFloat(group=8), Float8()):
        layer = QuantizedLinear(round_to_nearest(torch.zeros(5, 16), form))
        with torch.no_grad():
            assert (layer(torch.randn(3, 16)) == 0).all() and (layer(torch.zeros(3, 16)) == 0).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("form", [Integer(group=16), Integer(bits=8), NormalFloat(group=16)])
def test_what_is_not_a_number_shows_in_its_row_alone(form: Format, bad: float) -> None:
    layer = QuantizedLinear(round_to_nearest(torch.randn(40, 32), form))
    x = torch.randn(3, 32)
    x[1, 20] = bad
    with torch.no_grad():
        y = layer(x)
    assert not y[1].isfinite().any() and y[[0, 2]].isfinite().all()


@needs_kernel
@pytest.mark.parametrize("form", [Integer(group=32), Integer(bits=8), NormalFloat(group=32), Float8()])
@pytest.mark.parametrize("n_rows", [1, 3, 7, 600])
def test_threads_change_no_bit(form: Format, n_rows: int) -> None:
    layer, x = QuantizedLinear(round_to_nearest(torch.randn(200, 96), form)), torch.randn(n_rows, 96)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            with torch.no_grad():
                found.append(layer(x))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_gradients_reach_the_input() -> None:
    layer = QuantizedLinear(round_to_nearest(torch.randn(8, 16), Integer(group=8)), torch.randn(8))
    with torch.no_grad():
        layer(torch.randn(2, 16))  # packed from here on
    x = torch.randn(2, 16, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dense_weight(torch.float32).sum(0).expand(2, 16))


def test_a_layer_is_saved_copied_moved_and_cast_unchanged() -> None:
    form = Integer(group=8, symmetric=False)
    layer = QuantizedLinear(round_to_nearest(torch.randn(8, 16), form), torch.randn(8))
    before, x = layer.state_dict(), torch.randn(2, 16)
    with torch.no_grad():
        y = layer(x)
        twin = copy.deepcopy(layer)
        assert torch.equal(twin(x), y)
        other = QuantizedLinear(round_to_nearest(torch.zeros(8, 16), form), torch.zeros(8))
        other(x)
        other.load_state_dict(layer.state_dict())
        assert torch.equal(other(x), y)
        assert torch.equal(layer.to(torch.bfloat16)(x), y)
        assert layer(x.bfloat16()).dtype == torch.bfloat16
    assert before.keys() == layer.state_dict().keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in layer.state_dict().items())


def test_a_compiled_layer_and_one_on_the_meta_device_take_the_plain_path() -> None:
    layer = QuantizedLinear(round_to_nearest(torch.randn(8, 16), Integer(group=8)))
    meta = copy.deepcopy(layer).to("meta")
    with torch.no_grad():
        assert meta(torch.empty(2, 16, device="meta")).shape == (2, 8)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"codes": torch.zeros(4, 16, dtype=torch.uint8)}, "codes are"),
        ({"scales": torch.zeros(4, 2)}, "scales are"),
        ({"zeros": torch.zeros(4, 2, dtype=torch.uint8)}, "zeros belong"),
        ({"order": torch.zeros(3, dtype=torch.int64)}, "order are"),
        ({"in_scales": torch.zeros(3)}, "in_scales are"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(wrong: dict[str, Tensor], message: str) -> None:
    good = round_to_nearest(torch.randn(4, 16), Integer(group=8))
    with pytest.raises(ValueError, match=message):
        QuantizedWeight(good.format, 16, **(good.tensors() | wrong))


@pytest.mark.parametrize("fields", [{"bits": 1}, {"bits": 9}, {"group": -1}])
def test_formats_that_cannot_be_are_refused(fields: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Integer(**fields)
