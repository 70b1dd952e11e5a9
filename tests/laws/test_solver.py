"""The solver against published optima, against scipy, and at the edges of its bounds."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad, minimize

from isoflop.laws.fit import START_EXPONENTS, fit_law
from isoflop.laws.forms import EXPONENT_MAX, PowerSum
from isoflop.laws.solver import Problem, _local, objective, solve


def scipy_objective(u, n, d, loss, delta):
    """Hoffmann's objective of (log E, log A, log B, alpha, beta), and its gradient, written apart from ours."""
    terms = np.stack([np.full(len(n), u[0]), u[1] - u[3] * np.log(n), u[2] - u[4] * np.log(d)])
    log_sum = np.logaddexp.reduce(terms)
    residual = log_sum - np.log(loss)
    inside = np.abs(residual) <= delta
    value = np.where(inside, residual**2 / 2, delta * (np.abs(residual) - delta / 2)).sum()
    pull = np.where(inside, residual, delta * np.sign(residual))
    share = np.exp(terms - log_sum) * pull
    return value, np.array([*share.sum(axis=1), -(share[1] * np.log(n)).sum(), -(share[2] * np.log(d)).sum()])


def scipy_best(n, d, loss, delta, seed, starts=12):
    """The least objective L-BFGS finds from random starts in Hoffmann's ranges, each restarted where it stalls."""
    rng = np.random.default_rng(seed)
    best = np.inf
    for _ in range(starts):
        alpha, beta = rng.uniform(0.1, 0.9, 2)
        shares = np.log(loss.mean() * rng.uniform(0.1, 0.6, 3))
        u = [shares[0], shares[1] + alpha * np.log(n).mean(), shares[2] + beta * np.log(d).mean(), alpha, beta]
        for _ in range(3):
            u = minimize(scipy_objective, u, (n, d, loss, delta), "L-BFGS-B", jac=True, options={"ftol": 1e-15}).x
        best = min(best, scipy_objective(u, n, d, loss, delta)[0])
    return best


def test_chinchilla_reaches_the_published_optimum(chinchilla):
    began = time.process_time()
    fit = fit_law(*chinchilla, bootstrap=0)
    assert time.process_time() - began < 1.0
    assert fit.certificate.objective <= 0.0010182741
    assert fit.certificate.share_of_starts_at_optimum == 1.0
    assert fit.certificate.gradient_norm < 1e-8
    assert fit.certificate.at_bound == []
    expected = [1.817218, 477.826, 2143.417, 0.347310, 0.367172]
    np.testing.assert_allclose(fit.law.parameters, expected, rtol=3e-6)


def test_objective_is_the_one_scipy_was_given(chinchilla):
    fit = fit_law(*chinchilla, bootstrap=0)
    u = [*np.log(fit.law.parameters[:3]), fit.law.alpha, fit.law.beta]
    assert scipy_objective(u, *chinchilla, 1e-3)[0] == pytest.approx(fit.certificate.objective, rel=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_scipy_finds_nothing_lower(ladder, seed):
    runs = ladder(100 + seed)
    delta = [1e-3, 1e-2][seed % 2]
    fit = fit_law(runs.n, runs.d, runs.loss, delta=delta, bootstrap=0)
    assert fit.certificate.objective <= scipy_best(runs.n, runs.d, runs.loss, delta, seed) * (1 + 1e-9)


def test_every_start_reaches_the_optimum_on_nearly_all_ladders(ladder):
    shares = []
    for seed in range(12):
        runs = ladder(seed)
        shares.append(fit_law(runs.n, runs.d, runs.loss, bootstrap=0).certificate.share_of_starts_at_optimum)
    assert np.mean(shares) > 0.97


def test_derivatives_are_exact(ladder):
    runs = ladder(3)
    form = PowerSum.scaled(runs.n, runs.d, runs.loss)
    features = form.features(runs.n, runs.d)
    weights = np.linspace(0.5, 2, len(runs.n))
    problem = Problem(form, features, np.log(runs.loss) - form.log_loss0, weights)
    theta = np.array([0.4, 0.5, 0.3, 0.3, 0.4])
    delta = 0.01

    def value(t):
        return objective(problem, t[None], delta)[0]

    def gradient(t):
        return _local(problem, t[None], delta).gradient_Sp[0]

    assert check_grad(value, gradient, theta) < 1e-6
    hessian = _local(problem, theta[None], delta).hessian_Spp[0]
    steps = 1e-6 * np.eye(5)
    numeric = np.stack([(gradient(theta + s) - gradient(theta - s)) / 2e-6 for s in steps])
    np.testing.assert_allclose(hessian, numeric, rtol=1e-5, atol=1e-6 * np.abs(hessian).max())


@pytest.mark.parametrize("seed", range(5))
def test_a_noiseless_law_is_recovered(ladder, seed):
    runs = ladder(seed, noise=0.0)
    fit = fit_law(runs.n, runs.d, runs.loss, bootstrap=0)
    np.testing.assert_allclose(fit.law.parameters, runs.truth, rtol=1e-4)
    assert fit.certificate.objective < 1e-18


def test_outliers_do_not_move_the_law(ladder):
    runs = ladder(4, rows=25, noise=0.0)
    loss = runs.loss.copy()
    loss[[3, 11]] *= 1.2
    law = fit_law(runs.n, runs.d, loss, bootstrap=0).law
    np.testing.assert_allclose(law.loss(runs.n, runs.d), runs.loss, rtol=1e-3)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 10_000), random=st.randoms(use_true_random=False))
def test_the_order_of_the_runs_does_not_matter(ladder, seed, random):
    runs = ladder(seed)
    order = list(range(len(runs.n)))
    random.shuffle(order)
    one = fit_law(runs.n, runs.d, runs.loss, bootstrap=20)
    two = fit_law(runs.n[order], runs.d[order], runs.loss[order], bootstrap=20)
    assert one.law == two.law
    assert one.certificate == two.certificate


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), log_n=st.floats(-6, 9), log_d=st.floats(-6, 9), log_loss=st.floats(-1, 1))
def test_units_change_only_what_has_units(ladder, seed, log_n, log_d, log_loss):
    runs = ladder(seed)
    kn, kd, kl = 10**log_n, 10**log_d, 10**log_loss
    one = fit_law(runs.n, runs.d, runs.loss, bootstrap=0)
    two = fit_law(runs.n * kn, runs.d * kd, runs.loss * kl, bootstrap=0)
    assert two.certificate.objective == pytest.approx(one.certificate.objective, rel=1e-6)
    np.testing.assert_allclose([two.law.alpha, two.law.beta], [one.law.alpha, one.law.beta], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(two.law.loss(runs.n * kn, runs.d * kd), kl * one.law.loss(runs.n, runs.d), rtol=1e-5)


def test_e_at_its_bound_is_exactly_zero_and_told(ladder):
    runs = ladder(1, rows=25, noise=0.003)
    loss = runs.loss - 0.999 * runs.truth[0]  # what is left falls without a floor, and less steeply at the end
    loss = loss * (1 - 0.02 * np.log(runs.n * runs.d / (runs.n * runs.d).min()) ** 1.5 / 10)
    fit = fit_law(runs.n, runs.d, loss, bootstrap=50)
    assert fit.law.E == 0.0
    assert "E" in fit.certificate.at_bound
    assert any(told.startswith("E at its bound") for told in fit.certificate.warnings)
    assert fit.certificate.objective <= scipy_best(runs.n, runs.d, loss, 1e-3, 0) * (1 + 1e-9)


def test_a_loss_that_ignores_n_puts_a_at_its_bound(ladder):
    runs = ladder(2, rows=24)
    rng = np.random.default_rng(0)
    loss = (1.5 + 0.8 * (runs.d / runs.d.min()) ** -0.4) * (runs.n / runs.n.min()) ** 0.05
    fit = fit_law(runs.n, runs.d, loss * np.exp(0.002 * rng.normal(size=24)), bootstrap=0)
    assert {"A", "alpha"} & set(fit.certificate.at_bound)
    assert fit.law.A == 0.0 or fit.law.alpha in (0.0, EXPONENT_MAX)
    assert any("at its bound" in told for told in fit.certificate.warnings)


def test_a_step_at_the_smallest_n_drives_alpha_to_its_bound():
    n = np.repeat([1e7, 1e8, 1e9, 1e10], 6)
    d = np.tile(np.geomspace(1e9, 1e11, 6), 4)
    loss = 1.5 + 0.5 * (d / 1e9) ** -0.3 + np.where(n == 1e7, 0.4, 0.0)
    fit = fit_law(n, d, loss, bootstrap=0)
    np.testing.assert_allclose(fit.law.loss(n, d), loss, rtol=1e-5)
    assert fit.law.alpha > 3
    assert np.isfinite(fit.law.parameters).all()


def test_solving_together_is_solving_apart(ladder):
    runs = ladder(5)
    form = PowerSum.scaled(runs.n, runs.d, runs.loss)
    features, log_loss = form.features(runs.n, runs.d), np.log(runs.loss) - form.log_loss0
    starts = form.starts(features, log_loss, np.array(START_EXPONENTS))[:3]
    weights = np.random.default_rng(0).uniform(0.5, 1.5, (3, len(log_loss)))
    together = solve(Problem(form, features, log_loss, weights), starts, 1e-2)
    for k in range(3):
        apart = solve(Problem(form, features, log_loss, weights[k]), starts[[k]], 1e-2)
        np.testing.assert_allclose(apart.objective_S, together.objective_S[k], rtol=1e-9)
