import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data.permutation import permute
from isoflop.data.stream import BatchStream, bits_per_byte, evaluation_batches, evaluation_bytes

SEEDS = st.integers(0, 2**64) | st.integers(-5, 5)


def whole(n: int, seed: int = 0, epoch: int = 0) -> np.ndarray:
    return permute(np.arange(n), n, seed, epoch)


@given(n=st.integers(1, 3000), seed=SEEDS, epoch=st.integers(0, 1000))
def test_it_is_a_permutation(n, seed, epoch):
    assert np.array_equal(np.sort(whole(n, seed, epoch)), np.arange(n))


@pytest.mark.parametrize("n", [*range(1, 70), 2**16 - 1, 2**16, 2**16 + 1, 999_983])
def test_it_is_a_permutation_of_awkward_sizes(n):
    assert np.array_equal(np.sort(whole(n)), np.arange(n))


@given(n=st.integers(2**40, 2**60), start=st.integers(0, 2**40 - 1000))
def test_huge_sizes_neither_overflow_nor_collide(n, start):
    places = permute(np.arange(start, start + 1000), n, 1, 2)
    assert len(np.unique(places)) == 1000
    assert places.min() >= 0
    assert places.max() < n


@given(n=st.integers(1, 500), seed=SEEDS, data=st.data())
def test_each_index_is_sent_alone_where_it_is_sent_in_company(n, seed, data):
    some = data.draw(st.lists(st.integers(0, n - 1), min_size=1))
    assert np.array_equal(permute(np.array(some), n, seed, 3), whole(n, seed, 3)[some])


def test_seeds_and_epochs_differ():
    orders = [whole(100, seed, epoch).tobytes() for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def test_places_are_uniform_and_neighbours_unrelated():
    """Chi-squared of where one index goes over 5,000 seeds, and correlation of order and neighbours in one order."""
    stats = pytest.importorskip("scipy.stats")
    n = 10
    for index in (0, 1, n - 1):
        places = np.array([permute(np.array([index]), n, seed, 0)[0] for seed in range(5000)])
        assert stats.chisquare(np.bincount(places, minlength=n)).pvalue > 1e-4
    order = whole(100_003, seed=9)
    limit = 5 / math.sqrt(len(order))
    assert abs(np.corrcoef(order, np.arange(len(order)))[0, 1]) < limit
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < limit
    assert np.mean(np.abs(np.diff(order)) == 1) < 20 / len(order)


def test_small_orders_are_all_reached():
    assert len({tuple(whole(4, seed)) for seed in range(2000)}) == 24


def test_the_order_is_fixed_for_ever():
    """A run resumed by a later version must see the windows it would have seen: changing these breaks resumption."""
    assert whole(10, seed=0).tolist() == PINNED_0
    assert permute(np.array([0, 1, 123_456]), 1_000_000, 7, 3).tolist() == PINNED_7


PINNED_0 = [2, 8, 3, 5, 4, 9, 0, 7, 1, 6]
PINNED_7 = [43305, 166502, 481128]


def positions(n: int) -> np.ndarray:
    """Tokens that are their own position."""
    return np.arange(n, dtype=np.uint16)


@given(
    n_tokens=st.integers(5, 400),
    context=st.integers(1, 4),
    seed=SEEDS,
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=6),
    start=st.integers(0, 500),
)
def test_windows_are_the_same_whatever_the_batch(n_tokens, context, seed, sizes, start):
    stream = BatchStream(positions(n_tokens), context, seed)
    total = sum(sizes)
    together = stream.batch(start, total)
    resumed = BatchStream(positions(n_tokens), context, seed)
    at = start
    for size in sizes:
        inputs, targets = resumed.batch(at, size)
        assert np.array_equal(inputs, together[0][at - start : at - start + size])
        assert np.array_equal(targets, together[1][at - start : at - start + size])
        at += size


@given(n_tokens=st.integers(5, 400), context=st.integers(1, 4), seed=SEEDS, epoch=st.integers(0, 3))
def test_an_epoch_targets_every_position_once(n_tokens, context, seed, epoch):
    stream = BatchStream(positions(n_tokens), context, seed)
    n = stream.windows_per_epoch
    inputs, targets = stream.batch(epoch * n, n)
    assert inputs.shape == targets.shape == (n, context)
    assert inputs.dtype == targets.dtype == np.int64
    assert np.array_equal(targets, inputs + 1)
    assert np.array_equal(np.diff(inputs, axis=1), np.ones((n, context - 1)))
    assert np.array_equal(np.sort(targets, axis=None), np.arange(1, n * context + 1))
    assert n_tokens - 1 - n * context < context


def test_epochs_have_their_own_order():
    stream = BatchStream(positions(1000), 9, seed=1)
    n = stream.windows_per_epoch
    assert not np.array_equal(stream.batch(0, n)[0], stream.batch(n, n)[0])


@given(st.integers(0, 300))
def test_unique_tokens_are_those_seen(n_windows):
    stream = BatchStream(positions(200), 3, seed=4)
    seen = np.unique(stream.batch(0, n_windows)[1])
    assert stream.unique_tokens(n_windows) == len(seen)


def test_an_empty_batch_has_the_shape_of_one():
    assert BatchStream(positions(9), 3, 0).batch(0, 0)[0].shape == (0, 3)


def test_too_little_text_states_both_numbers():
    with pytest.raises(ValueError, match="holds 4 tokens, one window of context 4 needs 5"):
        BatchStream(positions(4), 4, 0)
    with pytest.raises(ValueError, match="context: 0 is not positive"):
        BatchStream(positions(4), 0, 0)
    stream = BatchStream(positions(13), 4, 0)
    stream.require(3)
    with pytest.raises(ValueError, match="holds 13 tokens, 3 windows of 4; one batch needs 4 windows, 17 tokens"):
        stream.require(4)


@settings(max_examples=50)
@given(n_tokens=st.integers(5, 400), context=st.integers(1, 4), batch=st.integers(1, 20), asked=st.integers(4, 500))
def test_evaluation_is_the_same_for_every_batch_and_does_not_overlap(n_tokens, context, batch, asked):
    tokens = positions(n_tokens)
    batches = list(evaluation_batches(tokens, context, batch, asked))
    targets = np.concatenate([targets for _, targets in batches])
    alone = np.concatenate([targets for _, targets in evaluation_batches(tokens, context, 1, asked)])
    assert np.array_equal(targets, alone)
    assert len(np.unique(targets)) == targets.size == min(asked // context, (n_tokens - 1) // context) * context
    assert all(len(inputs) == batch for inputs, _ in batches[:-1])


def test_evaluation_is_spread_over_the_whole_text():
    (inputs, _), *_ = evaluation_batches(positions(1001), 10, 99, max_tokens=40)
    assert inputs[:, 0].tolist() == [0, 250, 500, 750]


def test_evaluation_counts_the_bytes_of_its_targets():
    text = np.frombuffer(b"ab\0cde\0f", np.uint8)
    token_bytes = np.ones(256, np.uint32)
    token_bytes[0] = 0
    sizes = token_bytes[text]
    assert evaluation_bytes(sizes, 7, None) == 5  # b cde f: the first token is never a target
    assert evaluation_bytes(sizes, 2, None) == 4
    with pytest.raises(ValueError, match="max_tokens: 6 is less than one window of context 7"):
        evaluation_bytes(sizes, 7, 6)


def test_bits_per_byte_of_a_uniform_model_is_eight():
    assert bits_per_byte(100 * math.log(256), 100) == pytest.approx(8)
    with pytest.raises(ValueError, match="0 bytes"):
        bits_per_byte(1.0, 0)
