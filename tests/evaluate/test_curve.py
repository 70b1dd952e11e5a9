"""Buckets cover every position once, means agree with plain ones, errors with the textbook's."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.evaluate.curve import Sample, bucket_edges, clustered


@given(border=st.integers(1, 5000), more=st.integers(1, 60_000))
def test_buckets_cover_every_position_once_and_none_crosses_the_border(border, more):
    edges = bucket_edges(border + more, border)
    assert edges[0] == 1
    assert edges[-1] == border + more + 1
    assert edges == sorted(set(edges))
    assert border + 1 in edges


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_a_window_a_document_gives_the_usual_standard_error(values):
    mean, error = clustered(np.array(values), np.arange(len(values)))
    assert mean == pytest.approx(np.mean(values), abs=1e-12)
    assert error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-12)


def test_windows_of_a_document_that_go_together_count_once():
    values = np.array([1.0, 2.0, 4.0])
    once, error = clustered(values, np.arange(3))
    twice, same_error = clustered(np.repeat(values, 5), np.repeat(np.arange(3), 5))
    assert (once, error) == pytest.approx((twice, same_error))
    assert clustered(values, np.zeros(3, np.int64))[1] == math.inf


@given(seed=st.integers(0, 99), border=st.integers(2, 20))
def test_buckets_and_halves_add_up_to_the_whole(seed, border):
    random = np.random.default_rng(seed)
    nats, reference = random.random((6, 40)), random.random((6, 40))
    sizes = random.integers(1, 5, (6, 40))
    sample = Sample(np.array([0, 0, 1, 2, 2, 3]), sizes, border)
    curve = sample.curve("a", "scaled", "digest", border, nats, reference)
    assert curve.buckets[0].first == 1 and curve.buckets[-1].last == 40
    total = sum(b.nats * (b.last - b.first + 1) for b in curve.buckets)
    assert total == pytest.approx(nats.mean(0).sum())
    assert curve.inside.nats == pytest.approx(nats[:, :border].mean())
    assert curve.beyond.difference == pytest.approx((nats - reference)[:, border:].mean())
    assert curve.beyond.bits_per_byte == pytest.approx(nats[:, border:].sum() / math.log(2) / sizes[:, border:].sum())
