"""Choosing tokens: beside Transformers' processors, whatever the batch, and with the right distribution."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from transformers.generation import logits_process as theirs

from isoflop.engine.draw import Row, adjusted, invert, probabilities, sample, uniform
from isoflop.engine.sampling import Sampling

V = 509  # no multiple of any vector's width


def logits(seed: int, n: int = 1, v: int = V, spread: float = 3.0) -> Tensor:
    return torch.randn(n, v, generator=torch.Generator().manual_seed(seed)) * spread


def row(history: tuple[int, ...] = (1, 2, 3), n_prompt: int = 2, seed: int = 0, **choices: Any) -> Row:
    return Row(Sampling(**choices), seed, n_prompt, history)


@st.composite
def samplings(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "temperature": draw(st.sampled_from([0.0, 0.3, 1.0, 1.7])),
        "top_k": draw(st.sampled_from([0, 1, 2, 17, V, 10 * V])),
        "top_p": draw(st.sampled_from([1.0, 0.999, 0.9, 0.5, 0.01])),
        "min_p": draw(st.sampled_from([0.0, 0.02, 0.3, 1.0])),
        "repetition_penalty": draw(st.sampled_from([1.0, 1.3, 0.8])),
        "presence_penalty": draw(st.sampled_from([0.0, 0.7])),
        "frequency_penalty": draw(st.sampled_from([0.0, 0.4, -0.2])),
    }


@given(
    st.integers(0, 99),
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from([0, 2, 17, V]),
    st.sampled_from([1.0, 0.97, 0.9, 0.5, 0.01]),
    st.sampled_from([0.0, 0.02, 0.3]),
    st.sampled_from([1.0, 1.3, 0.8]),
    st.sampled_from([0.02, 3.0]),
)
def test_the_distribution_is_transformers(
    seed: int, temperature: float, k: int, p: float, min_p: float, penalty: float, spread: float
) -> None:
    logits_BV = logits(seed, spread=spread)
    history = (5, 7, 7, 11)
    expected = logits_BV.clone()
    chain = [theirs.RepetitionPenaltyLogitsProcessor(penalty), theirs.TemperatureLogitsWarper(temperature)]
    chain += [theirs.TopKLogitsWarper(k)] if k else []
    chain += [theirs.TopPLogitsWarper(p)] if p < 1 else []
    chain += [theirs.MinPLogitsWarper(min_p)] if min_p else []
    for step in chain:
        expected = step(torch.tensor([history]), expected)
    got = probabilities(
        logits_BV,
        [row(history, temperature=temperature, top_k=k, top_p=p, min_p=min_p, repetition_penalty=penalty)],
    )
    torch.testing.assert_close(got, expected.softmax(-1), rtol=1e-4, atol=1e-7)


def test_biases_are_added() -> None:
    logits_BV = torch.randn(2, 12)
    got = adjusted(logits_BV, [row(logit_bias=((3, 1.5), (7, -2.0))), row()])
    assert torch.equal(got[1], logits_BV[1])
    changed = dict(enumerate((got[0] - logits_BV[0]).tolist()))
    assert changed.pop(3) == pytest.approx(1.5, abs=1e-5)
    assert changed.pop(7) == pytest.approx(-2.0, abs=1e-5)
    assert set(changed.values()) == {0.0}


def test_openai_penalties_are_of_the_output() -> None:
    logits_BV = logits(0)
    got = adjusted(logits_BV, [row((4, 4, 9, 9, 6), n_prompt=2, presence_penalty=0.5, frequency_penalty=0.25)])
    taken = torch.zeros(V)
    taken[9], taken[6] = 0.5 + 2 * 0.25, 0.5 + 0.25
    torch.testing.assert_close(got[0], logits_BV[0] - taken)


@given(st.lists(samplings(), min_size=2, max_size=6), st.integers(0, 9))
def test_rows_do_not_see_each_other(choices: list[dict[str, Any]], seed: int) -> None:
    logits_BV = logits(seed, len(choices))
    rows = [row((i, 3, 3, 8), seed=i, logprobs=i % 3, **choice) for i, choice in enumerate(choices)]
    together = sample(logits_BV, rows)
    assert together == [sample(logits_BV[i : i + 1], [rows[i]])[0] for i in range(len(rows))]
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed)).tolist()
    assert sample(logits_BV[order], [rows[i] for i in order]) == [together[i] for i in order]
    kept = probabilities(logits_BV, rows)
    assert all(kept[i, drawn.token] > 0 for i, drawn in enumerate(together))
    torch.testing.assert_close(kept.sum(-1), torch.ones(len(rows)))


def test_ties_stay_together() -> None:
    """Logits of half precision tie often: what is kept must not hang on the order of a sort."""
    logits_BV = logits(1).round()
    for choice in ({"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.1}):
        kept_V = probabilities(logits_BV, [row(**choice)])[0] > 0
        assert float(logits_BV[0][kept_V].min()) > float(logits_BV[0][~kept_V].max())


def test_a_wide_nucleus_is_sorted_whole() -> None:
    flat = logits(2, v=4001, spread=0.01)
    kept = int((probabilities(flat, [row(top_p=0.7)]) > 0).sum())
    assert 0.65 * 4001 < kept < 0.75 * 4001


@given(st.integers(0, 99), st.integers(1, 1100), st.floats(0, 1, exclude_max=True), st.sampled_from([0.0, 0.5, 0.99]))
def test_a_draw_is_where_the_cumulated_weights_pass_the_number(seed: int, v: int, number: float, empty: float) -> None:
    weights_BV = logits(seed, 3, v).exp()
    weights_BV[:, : int(empty * v)] = 0
    weights_BV[:, v - 1 :] *= v % 2
    weights_BV[:, int(empty * v)] += 0.1
    exact_BV = weights_BV.double().cumsum(-1).numpy()
    for token, sums_V, weights_V in zip(invert(weights_BV, [number] * 3), exact_BV, weights_BV, strict=True):
        assert weights_V[token] > 0
        before = sums_V[token - 1] if token else 0.0
        assert before - 1e-12 * sums_V[-1] <= number * sums_V[-1] <= sums_V[token] + 1e-12 * sums_V[-1]


def test_greedy_is_the_first_of_the_likeliest() -> None:
    logits_BV = torch.zeros(3, V)
    logits_BV[:, 40:] = 2.0
    rows = [row(temperature=0.0), row(top_k=1), row(temperature=0.0, top_p=0.1)]
    assert [drawn.token for drawn in sample(logits_BV, rows)] == [40, 40, 40]
    assert probabilities(logits_BV, rows)[0, 40] == 1


def test_draws_have_the_distribution() -> None:
    n, v = 20_000, 23
    logits_BV = logits(3, v=v, spread=1.0)
    choices = {"temperature": 0.8, "top_k": 15}
    p_V = probabilities(logits_BV, [row(**choices)])[0].double().numpy()
    rows = [Row(Sampling(**choices), 7, 0, range(i)) for i in range(n)]  # every place of one seed
    tokens = [drawn.token for drawn in sample(logits_BV.expand(n, v), rows)]
    counts = np.bincount(tokens, minlength=v)
    assert counts[p_V == 0].sum() == 0
    expected = p_V[p_V > 0] / p_V.sum() * n
    assert stats.chisquare(counts[p_V > 0], expected).pvalue > 1e-3


def test_numbers_are_uniform_and_independent() -> None:
    by_place = [uniform(12345, i) for i in range(20_000)]
    by_seed = [uniform(i, 77) for i in range(20_000)]
    by_stream = [uniform(12345, i, 1) for i in range(20_000)]
    for numbers in (by_place, by_seed, by_stream):
        assert stats.kstest(numbers, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(numbers[1:], numbers[:-1])[0, 1]) < 0.03
    assert abs(np.corrcoef(by_place, by_stream)[0, 1]) < 0.03
    assert uniform(1, 2) != uniform(2, 1)


def test_log_probabilities_are_the_models() -> None:
    logits_BV = logits(4, 2)
    before = logits_BV.clone()
    rows = [row(temperature=0.5, top_k=3, presence_penalty=9.0, logprobs=4), row()]
    told, nothing = sample(logits_BV, rows)
    expected_V = logits_BV[0].double().log_softmax(-1)
    assert nothing.logprobs is None and told.logprobs is not None
    assert math.isclose(told.logprobs.token, float(expected_V[told.token]), abs_tol=1e-5)
    values, tokens = expected_V.topk(4)
    assert [token for token, _ in told.logprobs.top] == tokens.tolist()
    np.testing.assert_allclose([value for _, value in told.logprobs.top], values, atol=1e-5)
    assert torch.equal(logits_BV, before)


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 100.0])
def test_extreme_temperatures(temperature: float) -> None:
    logits_BV = logits(5, spread=1e4)
    p = probabilities(logits_BV, [row(temperature=temperature)])
    assert bool(p.isfinite().all()) and sample(logits_BV, [row(temperature=temperature)])[0].token < V


@pytest.mark.parametrize(
    ("choice", "words"),
    [
        ({"temperature": -1.0}, "temperature -1.0: must be from 0 to 100"),
        ({"temperature": math.nan}, "temperature nan: must be a finite number"),
        ({"top_p": 0.0}, "top_p 0.0: must be above 0 and at most 1"),
        ({"top_k": -1}, "top_k -1: must be 0 (all) or more"),
        ({"min_p": 1.5}, "min_p 1.5: must be from 0 to 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty 0.0: must be above 0"),
        ({"seed": 2**64}, "seed"),
        ({"logprobs": 1000}, "logprobs 1000: must be from 0 to 64"),
        ({"max_tokens": 0}, "max_tokens 0: must be 1 or more"),
        ({"stop_tokens": (3, -1)}, "stop_tokens -1: tokens are 0 or more"),
    ],
)
def test_what_is_not_valid(choice: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as told:
        Sampling(**choice)
    assert words in str(told.value) and "\n" not in str(told.value)
