"""Choosing runs before they are trained: what must hold of any outlook, and of the laws' own."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.decide.candidates import grid
from isoflop.decide.choose import choose, widths
from isoflop.decide.experiment import LossAt, OptimalN, best_size, look, propose
from isoflop.decide.outlook import Knowledge, Outlook
from isoflop.laws.calibrated import calibrated_prediction
from isoflop.laws.discrepancy import posterior, unseen

SEEDS = st.integers(0, 2**32 - 1)


def outlook(seed, candidates=9, goals=2):
    """A random one: candidates and goals share a few unknowns."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(candidates + goals, 4)) * 10 ** rng.uniform(-2, 1, 4)
    covariance = loadings @ loadings.T
    floor = rng.uniform(0, 0.1, goals)
    return Outlook(
        cost_c=10 ** rng.uniform(0, 2, candidates),
        noise_c=rng.uniform(0.01, 1, candidates),
        covariance_cc=covariance[:candidates, :candidates],
        cross_cg=covariance[:candidates, candidates:],
        variance_g=np.diag(covariance)[candidates:] + floor,
        floor_g=floor,
    )


def finished(seed=0, rows=24):
    """N, D and loss of a ladder under a law we know."""
    rng = np.random.default_rng(seed)
    flops = np.repeat(np.geomspace(1e17, 1e20, rows // 4), 4)
    n = np.sqrt(flops / 6 / np.tile([5.0, 12.0, 30.0, 80.0], rows // 4))
    d = flops / 6 / n
    return n, d, (1.7 + 400 / n**0.34 + 1200 / d**0.37) * np.exp(0.003 * rng.normal(size=rows))


@given(SEEDS, st.lists(st.integers(0, 8), min_size=1, max_size=6, unique=True))
def test_another_run_never_widens_an_interval(seed, chosen):
    known = outlook(seed)
    before = known.variance_g
    for count in range(1, len(chosen) + 1):
        after = known.after(chosen[:count])
        assert (after <= before * (1 + 1e-9)).all()
        assert (after >= known.floor_g).all()
        before = after


@given(SEEDS, st.permutations(range(9)))
def test_one_at_a_time_is_all_at_once(seed, order):
    known = outlook(seed)
    step = Knowledge(known)
    left = known.variance_g.sum()
    for count, candidate in enumerate(order[:4], start=1):
        left -= step.gains()[candidate]
        step.add(candidate)
        assert left == pytest.approx(known.after(order[:count]).sum(), rel=1e-6, abs=1e-9)
    assert (step.gains()[order[:4]] == 0).all()


@given(SEEDS, st.floats(0.5, 300), st.none() | st.integers(1, 5))
def test_within_budget_and_the_same_again(seed, budget, most):
    known = outlook(seed)
    chosen = choose(known, budget, most)
    assert known.cost_c[chosen].sum() <= budget * (1 + 1e-12)
    assert len(set(chosen)) == len(chosen) <= (most or 9)
    assert choose(known, budget, most) == chosen
    assert (np.diff(widths(known, chosen)) <= 1e-9).all()


@settings(max_examples=30)
@given(SEEDS, st.floats(5, 150))
def test_nearly_as_good_as_the_best_set(seed, budget):
    known = outlook(seed, goals=1)
    sets = [s for k in range(10) for s in combinations(range(9), k) if known.cost_c[list(s)].sum() <= budget]
    best = min(float(known.after(s)[0]) for s in sets)
    ours = float(known.after(choose(known, budget))[0])
    taken, could = known.variance_g[0] - ours, known.variance_g[0] - best
    assert taken >= 0.8 * could


def test_half_width_before_is_that_of_the_forecast():
    n, d, loss = finished()
    goal = LossAt(2e9, 1e11)
    told = posterior(n, d, loss)
    proposal = propose(told, grid(1e20, n, d), goal, 1e20, 0.9)
    [forecast] = calibrated_prediction(n, d, loss, goal.n, goal.d, 0.9).forecasts
    assert np.exp(proposal.before) == pytest.approx(np.sqrt(forecast.high / forecast.low))
    assert proposal.middle == pytest.approx(forecast.loss)
    assert proposal.least <= proposal.after < proposal.before
    assert sum(run.took for run in proposal.runs) == pytest.approx(proposal.before - proposal.after)


def test_expected_shrinkage_is_what_comes():
    """Train what was proposed, refit: the interval is about as narrow as was said."""
    n, d, loss = finished()
    goal = LossAt(2e9, 1e11)
    proposal = propose(posterior(n, d, loss), grid(2e20, n, d), goal, 2e20, 0.9)
    new_n, new_d = (np.array([getattr(run, name) for run in proposal.runs]) for name in ("n", "d"))
    new_loss = (1.7 + 400 / new_n**0.34 + 1200 / new_d**0.37) * np.exp(
        0.003 * np.random.default_rng(1).normal(size=len(new_n))
    )
    after = propose(
        posterior(np.append(n, new_n), np.append(d, new_d), np.append(loss, new_loss)),
        grid(2e20, n, d), goal, 2e20, 0.9,
    ).before  # fmt: skip
    assert after < proposal.before
    assert after == pytest.approx(proposal.after, rel=0.35)


@pytest.mark.parametrize("goal", [LossAt(9e9, 1.8e11), OptimalN(1e22)])
def test_a_ladder_from_nothing_but_the_prior(goal):
    told = unseen(1e9, 2e10)
    none = np.zeros(0)
    small, large = (propose(told, grid(budget, none, none), goal, budget, 0.9) for budget in (1e18, 1e20))
    assert large.after < small.after < small.before == pytest.approx(large.before)
    assert len(large.runs) >= 3
    assert large.spent <= 1e20


def test_best_size_is_that_of_the_law():
    n, d, loss = finished(rows=60)
    size, tokens, curvature = best_size(posterior(n, d, loss), 1e20)
    exact = (0.34 * 400 / (0.37 * 1200)) ** (1 / 0.71) * (1e20 / 6) ** (0.37 / 0.71)
    assert 6 * size * tokens == pytest.approx(1e20)
    assert size == pytest.approx(exact, rel=0.3)
    assert curvature > 0


def test_no_best_size_is_said():
    n, d = np.geomspace(1e3, 1e4, 12), np.geomspace(1e12, 1e13, 12)
    with pytest.raises(ValueError, match="no best size between"):
        best_size(posterior(n, d, 1.7 + 10 / n**0.3 + 10 / d**0.3), 1e18)


def test_the_goal_of_a_size_that_was_trained_knows_its_offset():
    n, d, loss = finished()
    near, far = (look(posterior(n, d, loss), grid(1e20, n, d), LossAt(size, 4e10))[0] for size in (n[-1], n[-1] * 1.01))
    assert near.variance_g[0] <= far.variance_g[0] * 1.0001
