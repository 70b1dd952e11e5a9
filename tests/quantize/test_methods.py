"""The methods on single matrices: what each promises, against what it is to beat or to be equal to."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isoflop.architecture import Dense
from isoflop.model import DecoderModel
from isoflop.model.quantized import Float8, Format, Integer, NormalFloat, round_to_nearest
from isoflop.quantize.awq import Read, best_scales
from isoflop.quantize.clip import nearest_with_best_scales, output_error
from isoflop.quantize.gptq import gptq, inverse_factor
from isoflop.quantize.measure import mean_over_documents
from isoflop.quantize.mixed import Sensitivity, cheapest, require_room
from isoflop.quantize.sites import sites_of, untie

groups = st.sampled_from((0, 1, 3, 8, 64))
formats: st.SearchStrategy[Format] = st.one_of(
    st.builds(Integer, bits=st.sampled_from((2, 3, 4, 8)), group=groups, symmetric=st.booleans()),
    st.builds(NormalFloat, group=groups),
    st.builds(Float8, group=groups),
)


def matrix_and_inputs(seed: int, d_out: int = 12, d_in: int = 24) -> tuple[Tensor, Tensor]:
    """A matrix and the mean of x xᵀ of inputs that go together and differ in size, as activations do."""
    g = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(d_out, d_in, generator=g)
    mixing_II = torch.randn(d_in, d_in, generator=g) / d_in**0.5 + torch.eye(d_in)
    sizes_I = torch.exp(torch.randn(d_in, generator=g))
    x_NI = torch.randn(400, d_in, generator=g) @ mixing_II * sizes_I
    return weight_OI, x_NI.T @ x_NI / len(x_NI)


@given(format=formats, seed=st.integers(0, 99))
@settings(max_examples=25)
def test_scales_are_no_worse_than_the_extremes(format: Format, seed: int) -> None:
    weight_OI, gram_II = matrix_and_inputs(seed)
    blocks_II = gram_II if format.group == 0 else gram_II * _same_group(24, format.group)
    cut = nearest_with_best_scales(weight_OI, gram_II, format).dense() - weight_OI
    plain = round_to_nearest(weight_OI, format).dense() - weight_OI
    assert output_error(cut, blocks_II) <= output_error(plain, blocks_II) * (1 + 1e-5) + 1e-9


def _same_group(d_in: int, group: int) -> Tensor:
    of_I = torch.arange(d_in) // group
    return (of_I[:, None] == of_I).float()


@given(format=formats, seed=st.integers(0, 99), act_order=st.booleans())
@settings(max_examples=25)
def test_without_correlations_gptq_rounds_to_nearest(format: Format, seed: int, act_order: bool) -> None:
    weight_OI, gram_II = matrix_and_inputs(seed)
    alone_II = torch.diag(gram_II.diagonal())
    found = gptq(weight_OI, alone_II, format, act_order=act_order)
    expected = nearest_with_best_scales(weight_OI, alone_II, format)
    assert torch.equal(found.scales, expected.scales)
    torch.testing.assert_close(found.dense(), expected.dense())


@pytest.mark.parametrize("format", [Integer(bits=4, group=8), Integer(bits=2, group=8, symmetric=False), NormalFloat()])
@pytest.mark.parametrize(("act_order", "share"), [(False, 1.0), (True, 0.8)])
def test_gptq_leaves_less_error_than_rounding(format: Format, act_order: bool, share: float) -> None:
    for seed in range(4):
        weight_OI, gram_II = matrix_and_inputs(seed, d_in=150)  # more columns than a block
        off = gptq(weight_OI, gram_II, format, act_order=act_order).dense() - weight_OI
        plain = nearest_with_best_scales(weight_OI, gram_II, format).dense() - weight_OI
        assert output_error(off, gram_II) < share * output_error(plain, gram_II)


def test_gptq_with_channels_that_are_always_zero() -> None:
    weight_OI, gram_II = matrix_and_inputs(0)
    gram_II[5], gram_II[:, 5] = 0, 0
    found = gptq(weight_OI, gram_II, Integer(bits=4, group=8))
    nearest = nearest_with_best_scales(weight_OI, gram_II, Integer(bits=4, group=8))
    assert torch.equal(found.dense()[:, 5], nearest.dense()[:, 5])
    silent = gptq(weight_OI, torch.zeros_like(gram_II), Integer(bits=4, group=8))
    assert bool(silent.dense().isfinite().all())


def test_the_factor_is_that_of_the_damped_inverse() -> None:
    _, gram_II = matrix_and_inputs(1)
    upper_II = inverse_factor(gram_II, 0.01)
    damped_II = gram_II + 0.01 * gram_II.diagonal().mean() * torch.eye(24)
    torch.testing.assert_close(upper_II.T @ upper_II @ damped_II, torch.eye(24), atol=1e-3, rtol=0)
    assert bool(inverse_factor(torch.ones(24, 24), 0.0).isfinite().all())  # of rank one: damped until it has a factor


@given(format=formats, seed=st.integers(0, 99))
@settings(max_examples=15)
def test_scales_of_channels_never_hurt(format: Format, seed: int) -> None:
    weight_OI, gram_II = matrix_and_inputs(seed)
    scales_I = best_scales([Read(weight_OI, gram_II, format)], gram_II.diagonal().sqrt())
    assert bool((scales_I > 0).all())
    scaled = round_to_nearest(weight_OI * scales_I, format).dense() / scales_I - weight_OI
    plain = round_to_nearest(weight_OI, format).dense() - weight_OI
    assert output_error(scaled, gram_II) <= output_error(plain, gram_II) * (1 + 1e-5)


@given(seed=st.integers(0, 99), budget=st.floats(2.2, 8.0))
@settings(max_examples=15)
def test_mixed_bits_are_the_best_of_all_choices(seed: int, budget: float) -> None:
    rng, candidates = np.random.default_rng(seed), [Integer(bits=2), Integer(bits=4), Integer(bits=8)]
    weights_U = rng.integers(1, 9, 4).astype(float)
    nats_UF = np.sort(rng.random((4, 3)), axis=1)[:, ::-1]
    bits_UF = weights_U[:, None] * np.array([2.0, 4.0, 8.0])
    found = Sensitivity([[str(u)] for u in range(4)], list(candidates), nats_UF, bits_UF, weights_U)
    chosen = [candidates.index(format) for format in cheapest(found, budget).values()]  # type: ignore[arg-type]

    def cost(choice: tuple[int, ...]) -> float:
        return sum(nats_UF[u, f] for u, f in enumerate(choice))

    within = [
        choice
        for choice in itertools.product(range(3), repeat=4)
        if sum(bits_UF[u, f] for u, f in enumerate(choice)) <= budget * weights_U.sum() + 1e-9
    ]
    assert cost(tuple(chosen)) == pytest.approx(min(map(cost, within)))


def test_budgets_below_the_smallest_formats_are_refused() -> None:
    model = DecoderModel(Dense().build(32, 64, 64))
    untie(model)
    sites = list(sites_of(model))
    candidates = [Integer(bits=2), Integer(bits=4)]  # a row of 32 or more weights shares a scale of 16 bits
    require_room(sites, candidates, 2.5)
    with pytest.raises(ValueError, match=r"smallest formats take 2\."):
        require_room(sites, candidates, 1.9)


def test_intervals_are_of_documents() -> None:
    """Windows of one document say the same: the interval must be that of the documents, not of the windows."""
    rng = np.random.default_rng(0)
    documents_W = np.repeat(np.arange(50), 8)
    by_document = rng.normal(size=50)
    values_WT = np.repeat(by_document[documents_W][:, None], 16, axis=1)
    found = mean_over_documents(values_WT, documents_W)
    error = by_document.std(ddof=1) / 50**0.5
    assert found.mean == pytest.approx(by_document.mean())
    assert 0.8 * 3.92 * error < found.high - found.low < 1.2 * 3.92 * error
    assert mean_over_documents(values_WT[:8], documents_W[:8]).high == np.inf
