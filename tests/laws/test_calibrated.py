"""Calibrated forecasts and the rolling hold-out: by simulation with laws we know, of our form and of others."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.laws.anchored import Anchored
from isoflop.laws.backtest import backtest
from isoflop.laws.calibrated import calibrated_prediction

LOGITS = st.floats(-2, 2)
LOGS = st.floats(-2, 0.5)


def told(runs, new_n, new_d, level=0.9):
    return calibrated_prediction(runs.n, runs.d, runs.loss, new_n, new_d, level).forecasts


def kaplan(n, d):
    """Kaplan et al. 2020, eq. 1.5, with their constants."""
    return ((8.8e13 / n) ** (0.076 / 0.095) + 5.4e13 / d) ** 0.095


def broken(n, d):
    """Fast at first, slow later (Caballero et al. 2022, one break in each term)."""
    return 1.6 + 8 * (n / 1e6) ** -0.35 * (1 + n / 3e8) ** 0.1 + 5 * (d / 1e8) ** -0.3 * (1 + d / 1e10) ** 0.08


def burdened(n, d):
    """A warm-up that short runs pay dearly for."""
    return (1.7 + 400 / n**0.34 + 1200 / d**0.37) * (1 + 0.06 / (1 + d / (1e9 + 5 * n)))


@given(st.tuples(st.floats(0, 2), LOGITS, LOGITS, LOGS, LOGS, st.floats(-0.7, 0.7)), st.integers(0, 2**32 - 1))
def test_derivatives_of_the_anchored_law(theta, seed):
    form, theta = Anchored(20.0, 24.0), np.array(theta)
    features = np.random.default_rng(seed).uniform(-4, 4, (2, 5))
    _, jacobian = form.evaluate(theta, features)
    for k, step in enumerate(1e-6 * np.eye(6)):
        there, back = (form.evaluate(theta + sign * step, features)[0] for sign in (1, -1))
        np.testing.assert_allclose(jacobian[:, k], (there - back) / 2e-6, rtol=1e-5, atol=1e-7)


def test_the_anchored_law_holds_those_of_hoffmann_and_of_kaplan():
    n, d = np.array([1e7, 1e8, 3e9]), np.array([1e10, 2e9, 6e10])
    form = Anchored(np.log(1e8), np.log(2e9))
    at_n, at_d = 400 / 1e8**0.34, 1200 / 2e9**0.37
    floor = 1.7 / (at_n + at_d)
    theta = [np.log(1.7 + at_n + at_d), np.log(floor), np.log(at_n / at_d), np.log(0.34), np.log(0.37), 0.0]
    value, _ = form.evaluate(np.array(theta), form.features(n, d))
    np.testing.assert_allclose(np.exp(value), 1.7 + 400 / n**0.34 + 1200 / d**0.37)

    at_n, at_d = (8.8e13 / 1e8) ** (0.076 / 0.095), 5.4e13 / 2e9
    split = 0.095 * np.log(at_n / (at_n + at_d)), 0.095 * np.log(at_d / (at_n + at_d))
    # Terms enter as s and 1 - s; any common factor is the anchor's, so their ratio is what matters.
    theta = [np.log(kaplan(1e8, 2e9)), -40.0, split[0] - split[1], np.log(0.076), np.log(0.095), np.log(0.095)]
    value, _ = form.evaluate(np.array(theta), form.features(n, d))
    np.testing.assert_allclose(np.exp(value), kaplan(n, d))


def test_intervals_hold_where_the_form_is_right(ladder):
    """Nominal 90 % at four times the compute, ladders of 12 to 25 runs; never learnt from."""
    inside = []
    for seed in range(60):
        runs = ladder(9000 + seed)
        E, A, B, alpha, beta = runs.truth
        n, d = runs.target
        noise = np.random.default_rng(seed).normal() * runs.noise
        measured = (E + A / n**alpha + B / d**beta) * np.exp(noise)
        (forecast,) = told(runs, *runs.target)
        inside.append(forecast.low <= measured <= forecast.high)
    assert np.mean(inside) >= 0.85


@pytest.mark.parametrize("truth", [kaplan, broken, burdened])
def test_intervals_hold_where_the_form_is_wrong(ladder, truth):
    """The sizes of random ladders with losses of another form, forecast at four times the compute."""
    inside = []
    for seed in range(30):
        runs, rng = ladder(400 + seed), np.random.default_rng(seed)
        loss = truth(runs.n, runs.d) * np.exp(0.004 * rng.normal(size=len(runs.n)))
        measured = truth(*runs.target) * np.exp(0.004 * rng.normal())
        forecast = calibrated_prediction(runs.n, runs.d, loss, *runs.target).forecasts[0]
        inside.append(forecast.low <= measured <= forecast.high)
    assert np.mean(inside) >= 0.8


@settings(max_examples=8)
@given(st.integers(0, 500), st.floats(0.01, 100))
def test_neither_order_nor_unit_matters(ladder, seed, unit):
    runs = ladder(seed)
    order = np.random.default_rng(seed).permutation(len(runs.n))
    first = calibrated_prediction(runs.n, runs.d, runs.loss, *runs.target)
    again = calibrated_prediction(runs.n[order], runs.d[order], unit * runs.loss[order], *runs.target)
    assert again.notes == first.notes
    for name in ("loss", "low", "high"):
        ours, other = (getattr(one.forecasts[0], name) for one in (first, again))
        assert other == pytest.approx(unit * ours, rel=1e-6), name


def test_intervals_widen_with_level_and_distance(ladder):
    runs = ladder(3)
    n, d = np.outer(runs.target, [1.0, 3.0, 10.0])
    widths = [[f.high / f.low for f in told(runs, n, d, level)] for level in (0.5, 0.8, 0.9, 0.99)]
    assert (np.diff(widths, axis=0) > 0).all()
    assert (np.diff(widths, axis=1) > 0).all()


def test_one_wild_run_hardly_moves_the_forecast(ladder):
    runs = ladder(4, rows=24, noise=0.003)
    (before,) = told(runs, *runs.target)
    runs.loss[int(np.argsort(runs.n * runs.d)[3])] *= 1.2
    (after,) = told(runs, *runs.target)
    assert after.loss == pytest.approx(before.loss, rel=0.015)


def test_short_ladders_fall_back_on_public_tables_and_say_so(ladder):
    runs = ladder(5, rows=25)
    few = [np.array(column[:k]) for k in (1, 4) for column in (runs.n, runs.d, runs.loss)]
    one = calibrated_prediction(*few[:3], *runs.target)
    assert "few different runs (1): exponents and floor are mostly those of public tables" in one.notes
    four = calibrated_prediction(*few[3:], *runs.target)
    whole = calibrated_prediction(runs.n, runs.d, runs.loss, *runs.target)
    assert whole.notes == []
    width = [np.log(c.forecasts[0].high / c.forecasts[0].low) for c in (whole, four, one)]
    assert width == sorted(width)
    assert width[2] < 1  # even so not nonsense


def test_what_the_runs_do_not_show_is_said(ladder):
    runs = ladder(6, rows=20)
    same = calibrated_prediction(np.full(20, 1e8), runs.d, runs.loss, *runs.target)
    assert "every run has the same N: its exponent is that of public tables" in same.notes
    flat = calibrated_prediction(runs.n, 1e17 / runs.n, runs.loss, *runs.target)
    assert any("decades of compute" in note for note in flat.notes)


def test_a_hold_out_sees_nothing_of_what_it_forecasts(ladder):
    """Raising the dearer losses changes errors by just so much, and no interval."""
    runs = ladder(7, rows=24)
    compute = runs.n * runs.d
    raised = np.where(compute > compute.max() / 2 * 1.0001, 1.1, 1.0)
    first, second = (backtest(runs.n, runs.d, loss).folds[0].errors for loss in (runs.loss, runs.loss * raised))
    assert second.bias == pytest.approx(first.bias - np.log(1.1), abs=1e-9)
    assert second.width == pytest.approx(first.width, rel=1e-9)


def test_backtest_of_the_published_points(chinchilla):
    """Part of what the prior was learnt from, so a check of the machinery and not of the claim."""
    held = backtest(*chinchilla)
    assert held.pooled.coverage >= 0.85
    assert held.pooled.absolute_error < 0.7 * held.pooled.plain_absolute_error
    assert [band.above for band in held.bands] == [1, 3, 10, 30]
    assert all(fold.fitted + fold.errors.forecasts == 240 for fold in held.folds)


def test_backtest_without_a_plain_fit(ladder):
    """Few rows: the plain law has no answer, ours has."""
    runs = ladder(8, rows=8)
    n = np.array([1e7, 1e7, 1e7, 1e7, 1e7, 1e7, 3e7, 3e7])
    held = backtest(n, 20 * n * np.array([1, 1.1, 0.9, 1.2, 1, 0.8, 1, 1]), runs.loss)
    assert held.pooled.plain_bias is None
    assert held.pooled.width > 0


def test_refusals(ladder):
    runs = ladder(9, rows=15)
    bad = runs.loss.copy()
    bad[2] = np.nan
    with pytest.raises(ValueError, match=r"loss, entry 3: nan is not a positive, finite number"):
        calibrated_prediction(runs.n, runs.d, bad, *runs.target)
    with pytest.raises(ValueError, match=r"level: 1.5 must lie strictly between 0 and 1"):
        calibrated_prediction(runs.n, runs.d, runs.loss, *runs.target, level=1.5)
    with pytest.raises(ValueError, match=r"n, d and loss must be of one length"):
        backtest(runs.n[1:], runs.d, runs.loss)
    with pytest.raises(ValueError, match=r"no runs"):
        backtest([], [], [])
    with pytest.raises(ValueError, match=r"nothing to hold out: 15 runs over 0 decades of compute"):
        backtest(np.full(15, 1e8), np.full(15, 1e9), runs.loss)
