"""Two ladders of known laws: the multiplier between them, how often its interval holds, and its test is wrong."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.laws.ladders import Ladders, evaluate, own_of_both
from isoflop.laws.multiplier import Side, cluster_labels, compare_ladders

FLOPS = np.repeat(np.geomspace(1e18, 1e20, 4), 3)
RATIO = np.tile([8.0, 20.0, 50.0], 4)


def loss_of(n, d, truth=(1.8, 0.34, 0.37), moved=0.0):
    floor, alpha, beta = truth
    n, d = n * np.exp(moved / 2), d * np.exp(moved / 2)
    return floor + (n / 1.2e8) ** -alpha + 0.8 * (d / 2.5e9) ** -beta


def ladder(rng, noise=0.004, moved=0.0, truth=(1.8, 0.34, 0.37), rows=12, shared=None):
    n = np.sqrt(FLOPS / 6 / RATIO)[:rows]
    d = FLOPS[:rows] / 6 / n
    scatter = rng.normal(size=rows) if shared is None else np.sqrt(0.3) * rng.normal(size=rows) + np.sqrt(0.7) * shared
    return Side(n, d, loss_of(n, d, truth, moved) * np.exp(noise * scatter), seeds=rng.uniform(size=rows))


@settings(max_examples=10, deadline=None)
@given(st.floats(-1.0, 1.0), st.floats(1.0, 2.4), st.floats(0.25, 0.5), st.floats(0.25, 0.5))
def test_without_noise_the_multiplier_is_found(moved, floor, alpha, beta):
    rng = np.random.default_rng(0)
    a, b = (ladder(rng, 0.0, by, (floor, alpha, beta)) for by in (0.0, moved))
    told = compare_ladders(a, b)
    assert told.law == "shared"
    assert np.log(told.at.multiplier) == pytest.approx(moved, abs=0.02)
    for point in told.curve:
        assert np.log(point.multiplier) == pytest.approx(moved, abs=0.05)


def test_a_multiplier_that_changes_with_compute_is_a_curve():
    """B's exponents are steeper: it is worse at the bottom and better at the top."""
    rng = np.random.default_rng(1)
    a, b = ladder(rng, 0.002), ladder(rng, 0.002, truth=(1.8, 0.5, 0.5))
    told = compare_ladders(a, b)
    assert told.law == "separate" and told.changes_p_value < 0.05
    first, last = told.curve[0], told.curve[-1]
    assert last.multiplier > 1.3 * first.multiplier
    for point in (first, last):
        n = np.sqrt(point.flops / 6 / np.geomspace(8, 50, 400))
        right = [loss_of(n, point.flops / 6 / n, law).min() for law in ((1.8, 0.34, 0.37), (1.8, 0.5, 0.5))]
        assert (point.loss_a, point.loss_b) == pytest.approx(right, rel=5e-3)


def test_runs_that_no_law_describes_speak_for_themselves():
    """A pays 12 % at the bottom of the range and nothing above it, which no floor and exponents can follow."""
    rng = np.random.default_rng(4)
    flops = np.repeat(np.geomspace(1e17, 1e20, 10), 4)
    n = np.sqrt(flops / 6 / np.tile([8.0, 15.0, 30.0, 60.0], 10))
    loss = loss_of(n, flops / 6 / n)
    paid = 0.12 * np.exp(-((np.log(flops / 1e17) / 2) ** 2))
    sides = [Side(n, flops / 6 / n, loss * np.exp(by + 0.003 * rng.normal(size=40))) for by in (paid, 0.0)]
    told = compare_ladders(*sides)
    assert told.law == "separate" and told.winner is None
    assert 0.8 < told.at.multiplier < 1.25
    assert told.curve[0].low > 1.1


def test_a_table_against_itself_is_within_noise():
    side = ladder(np.random.default_rng(2))
    told = compare_ladders(side, side)
    assert told.winner is None and told.pairs == 12
    assert told.at.p_value == pytest.approx(1) and told.at.multiplier == pytest.approx(1, abs=1e-4)


def test_swapping_the_ladders_swaps_the_answer():
    rng = np.random.default_rng(3)
    a, b = ladder(rng), ladder(rng, moved=0.3)
    one, other = compare_ladders(a, b), compare_ladders(b, a)
    assert (one.winner, other.winner) == ("B", "A")
    assert one.at.p_value == pytest.approx(other.at.p_value, rel=1e-3)
    assert one.at.loss_a == pytest.approx(other.at.loss_b, rel=1e-6)
    assert one.at.multiplier * other.at.multiplier == pytest.approx(1, rel=0.02)


def test_interval_and_test_agree():
    for seed in range(12):
        rng = np.random.default_rng(seed)
        told = compare_ladders(ladder(rng), ladder(rng, moved=0.08))
        held = told.at.low <= 1 <= told.at.high
        assert held == (told.winner is None)
        assert (told.at.p_value < 0.05) == (told.winner is not None)


def test_intervals_hold_and_the_test_is_silent_as_often_as_they_say():
    """Over 80 pairs of ladders: 90 % intervals hold about 90 %, and 5 % tests speak about 5 % where nothing differs.
    The bounds are those of a binomial at odds of about a thousand to one."""
    held, spoke = 0, 0
    for seed in range(80):
        rng = np.random.default_rng(seed)
        truth = rng.uniform(1, 2.4), *rng.uniform(0.25, 0.5, 2)
        a, b, same = (ladder(rng, moved=moved, truth=truth) for moved in (0.0, 0.5, 0.0))
        point = compare_ladders(a, b, level=0.9).at
        held += point.low <= np.exp(0.5) <= point.high
        spoke += compare_ladders(a, same).winner is not None
    assert 62 <= held <= 79
    assert spoke <= 11


def test_pairs_sharpen_what_their_runs_share():
    """Scatter that runs of one N, D and seed share cancels where they are pairs."""
    rng = np.random.default_rng(5)
    shared = rng.normal(size=12)
    a, b = (ladder(rng, 0.01, moved, shared=shared) for moved in (0.0, 0.2))
    alone = compare_ladders(a, b)
    seeds = np.arange(12.0)
    paired = compare_ladders(Side(a.n, a.d, a.loss, seeds=seeds), Side(b.n, b.d, b.loss, seeds=seeds))
    assert (alone.pairs, paired.pairs) == (0, 12)
    assert paired.at.p_value < alone.at.p_value
    assert np.log(paired.at.high / paired.at.low) < 0.8 * np.log(alone.at.high / alone.at.low)


def test_checkpoints_of_a_run_are_no_runs():
    """The same rows, told to be two checkpoints each of six runs, say less."""
    rng = np.random.default_rng(6)
    a, b = ladder(rng), ladder(rng, moved=0.1)
    # A run's checkpoints err alike.
    runs = [str(k // 2) for k in range(12)]
    err = np.repeat(0.01 * rng.normal(size=6), 2), np.repeat(0.01 * rng.normal(size=6), 2)
    a, b = (Side(s.n, s.d, s.loss * np.exp(e)) for s, e in ((a, err[0]), (b, err[1])))
    rows = compare_ladders(Side(a.n, a.d, a.loss, seeds=np.zeros(12)), Side(b.n, b.d, b.loss, seeds=np.ones(12)))
    clustered = compare_ladders(Side(a.n, a.d, a.loss, runs, np.zeros(12)), Side(b.n, b.d, b.loss, runs, np.ones(12)))
    assert rows.clusters == 24 and clustered.clusters == 12
    assert clustered.at.high / clustered.at.low > rows.at.high / rows.at.low


def test_labels_join_twins_and_their_clusters():
    n, d = np.array([1e7, 1e7, 2e7]), np.array([1e8, 2e8, 2e8])
    a = Side(n, d, n, ["x", "x", "y"], np.array([0.0, 0.0, 0.0]))
    b = Side(n, d, n, None, np.array([0.0, 1.0, 0.0]))
    labels, pairs = cluster_labels(a, b)
    assert pairs == 2
    assert labels[0] == labels[1] == labels[3] != labels[4]
    assert labels[2] == labels[5] and len(set(labels.tolist())) == 3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["shared", "separate"]))
def test_derivatives_are_those_of_the_law(seed, kind):
    rng = np.random.default_rng(seed)
    a = ladder(rng)
    rows = Ladders.joined((a.n, a.d, a.loss), (a.n, a.d, a.loss))
    theta = rng.normal(size=(1, 7 if kind == "shared" else 10)) * 0.5
    value, jacobian = evaluate(rows, theta, kind)
    for k, step in enumerate(1e-6 * np.eye(theta.shape[1])):
        ends = [evaluate(rows, theta + sign * step, kind)[0][0] for sign in (1, -1)]
        np.testing.assert_allclose((ends[0] - ends[1]) / 2e-6, jacobian[0, k], atol=1e-7)
    if kind == "shared":
        np.testing.assert_allclose(evaluate(rows, own_of_both(theta), "separate")[0], value, rtol=1e-12, atol=1e-12)


def test_what_cannot_be_answered_is_refused_or_noted():
    rng = np.random.default_rng(7)
    a, b = ladder(rng), ladder(rng)
    with pytest.raises(ValueError, match="3 runs cannot say how far runs scatter"):
        compare_ladders(a, ladder(rng, rows=3))
    with pytest.raises(ValueError, match="every run has the same compute"):
        level = np.full(6, 1e18)
        n = np.sqrt(level / 6 / np.geomspace(5, 50, 6))
        compare_ladders(a, Side(n, level / 6 / n, np.full(6, 3.0)))
    with pytest.raises(ValueError, match="level: 95 must lie strictly between"):
        compare_ladders(a, b, level=95)
    rough = [ladder(np.random.default_rng(seed), 0.06, moved) for seed, moved in ((0, 0.0), (1, 3.0))]
    told = compare_ladders(*rough)
    assert told.winner is None and any("no verdict" in note for note in told.notes)
    bits = compare_ladders(a, Side(b.n, b.d, b.loss / np.log(2)))
    assert any("are both of one unit" in note for note in bits.notes)
    assert any("is outside the" in note for note in compare_ladders(a, b, at=1e23).notes)
    elsewhere = Side(b.n * 10, b.d / 10, b.loss)
    assert any("no D/N in common" in note for note in compare_ladders(a, elsewhere).notes)
