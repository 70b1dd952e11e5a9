"""Bootstrap and prediction intervals: against published errors and by simulation with known laws."""

from itertools import pairwise

import numpy as np
import pytest

from isoflop.laws.bootstrap import resample
from isoflop.laws.certificate import support
from isoflop.laws.fit import fit_document, fit_law, parameter_intervals
from isoflop.laws.optimum import Law, optimal
from isoflop.laws.prediction import predict


def test_chinchilla_standard_errors_are_the_published_ones(chinchilla):
    """Besiroglu et al. 2024: 4000 resamples. A and B have long tails, so their errors are noisy themselves."""
    errors = fit_law(*chinchilla, bootstrap=4000, seed=1, diagnostics=False).certificate.bootstrap.standard_errors
    published = {"E": 0.0257, "A": 124.5, "B": 1293, "alpha": 0.0154, "beta": 0.0206}
    for name, within in (("E", 0.04), ("alpha", 0.04), ("beta", 0.06), ("A", 0.06), ("B", 0.12)):
        assert errors[name] == pytest.approx(published[name], rel=within), name


def test_replicates_are_fits_of_their_resamples(ladder):
    """A replicate is what fitting the resampled rows, one by one, gives."""
    runs = ladder(6, rows=24)
    fit = fit_law(runs.n, runs.d, runs.loss, bootstrap=6, seed=3)
    counts = resample(24, 6, 3).astype(int)
    for replicate, draw in zip(counts, fit.draws, strict=True):
        index = np.repeat(np.arange(24), replicate)
        alone = fit_law(fit.n[index], fit.d[index], fit.loss[index], bootstrap=0).law
        E, A, B, alpha, beta = draw
        np.testing.assert_allclose(alone.loss(fit.n, fit.d), E + A / fit.n**alpha + B / fit.d**beta, rtol=1e-4)


def test_clusters_are_drawn_whole():
    labels = np.array([0, 0, 1, 2, 2, 2])
    counts = resample(6, 50, 0, labels)
    assert (counts[:, 0] == counts[:, 1]).all()
    assert (counts[:, 3] == counts[:, 5]).all()
    np.testing.assert_array_equal(counts[:, [0, 2, 3]].sum(axis=1), 3)


def test_clustered_runs_widen_the_interval(ladder):
    """Four copies of every run tell no more than one; only the clustered bootstrap knows."""
    runs = ladder(6, rows=24, noise=0.003)
    n, d, loss = (np.repeat(column, 4) for column in (runs.n, runs.d, runs.loss))
    clusters = [f"trunk {k}" for k in np.repeat(np.arange(24), 4)]
    apart = fit_law(n, d, loss, bootstrap=100).certificate.bootstrap
    together = fit_law(n, d, loss, bootstrap=100, clusters=clusters).certificate.bootstrap
    assert together.clusters == 24
    assert together.standard_errors["alpha"] > 1.3 * apart.standard_errors["alpha"]
    few = fit_law(n, d, loss, bootstrap=20, clusters=[one[-1] for one in clusters], diagnostics=False).certificate
    assert "only 10 clusters" not in " ".join(few.warnings)
    fewer = fit_law(n, d, loss, bootstrap=20, clusters=[len(one) for one in clusters], diagnostics=False).certificate
    assert "only 2 clusters to resample" in " ".join(fewer.warnings)


def test_intervals_of_new_runs_hold(ladder):
    """Nominal 80 % at four times the compute, pooled over random ladders of 12 to 25 runs; 200 gave 89 %."""
    hits, widths = [], []
    for seed in range(30):
        runs = ladder(5000 + seed)
        fit = fit_law(runs.n, runs.d, runs.loss, bootstrap=0)
        E, A, B, alpha, beta = runs.truth
        n, d = runs.target
        curve = E + A / n**alpha + B / d**beta
        measured = curve * np.exp(runs.noise * np.random.default_rng(seed).normal())
        (forecast,) = predict(fit, n, d)
        hits.append(forecast.low <= measured <= forecast.high)
        widths.append((forecast.high - forecast.low) / curve)
    assert np.mean(hits) >= 0.7  # 30 ladders: a standard error of 0.07
    assert np.median(widths) < 0.06


def test_intervals_widen_with_level_and_with_distance(ladder):
    runs = ladder(8)
    fit = fit_law(runs.n, runs.d, runs.loss, bootstrap=200)
    ends = [predict(fit, *runs.target, level)[0] for level in (0.5, 0.8, 0.9, 0.99)]
    for narrow, wide in pairwise(ends):
        assert wide.low <= narrow.low <= narrow.loss <= narrow.high <= wide.high
    near, far = predict(fit, *(np.array([size, size * 30]) for size in runs.target))
    assert far.high / far.low > near.high / near.low
    assert far.warning and "times the largest fitted" in far.warning


def test_a_seed_gives_the_same_document(ladder):
    runs = ladder(9)
    target = ([runs.target[0]], [runs.target[1]])
    documents = [fit_document(fit_law(runs.n, runs.d, runs.loss, bootstrap=50, seed=s), target) for s in (1, 1, 2)]
    assert documents[0] == documents[1]
    assert documents[0]["intervals"] != documents[2]["intervals"]
    assert documents[0]["predictions"] == documents[2]["predictions"]
    assert documents[0]["law"] == documents[2]["law"]


def test_a_table_that_bends_away_widens_the_interval(ladder):
    """Dearer runs that went wrong, as when a learning rate is not retuned."""
    runs = ladder(10, rows=25, noise=0.002)
    order = np.argsort(runs.n * runs.d)
    loss = runs.loss.copy()
    loss[order[13:]] *= 1.06
    straight, bent = (predict(fit_law(runs.n, runs.d, y, bootstrap=0), *runs.target)[0] for y in (runs.loss, loss))
    assert np.log(bent.high / bent.low) > 1.5 * np.log(straight.high / straight.low)


def test_few_rows_make_a_wide_forecast_that_says_so(ladder):
    runs = ladder(11, rows=12)
    five = np.array([0, 3, 5, 8, 10])
    fit = fit_law(runs.n[five], runs.d[five], runs.loss[five], bootstrap=20)
    (forecast,) = predict(fit, *runs.target)
    assert forecast.status == "weak" and "the law is weak (5 rows for 5 parameters" in forecast.warning
    assert "mostly those of public tables" in forecast.warning
    assert any("5 rows for 5 parameters" in told for told in fit.certificate.warnings)


def test_a_refused_law_gives_no_interval_but_by_force(ladder):
    runs = ladder(12, rows=24)
    d = 1e19 / 6 / runs.n
    fit = fit_law(runs.n, d, runs.loss, bootstrap=0)
    (forecast,) = predict(fit, *runs.target)
    assert (forecast.status, forecast.low, forecast.high) == ("refused", None, None)
    assert forecast.warning.startswith("no interval: the law is refused (one level of compute")
    (forced,) = predict(fit, *runs.target, force=True)
    assert forced.low < forced.loss < forced.high and forced.warning.startswith("the law is refused")


@pytest.mark.parametrize("name, scale", [("compute", (10, 10)), ("n", (11, 0.1)), ("d", (0.1, 11))])
def test_support_counts_what_lies_beyond(ladder, name, scale):
    runs = ladder(12)
    fit = fit_law(runs.n, runs.d, runs.loss, bootstrap=0)
    times, warning = support(fit.certificate.ranges, runs.n.max() * scale[0], runs.d.max() * scale[1])
    assert times["n"] == pytest.approx(scale[0])
    assert times["d"] == pytest.approx(scale[1])
    assert warning
    inside, nothing = support(fit.certificate.ranges, runs.n[0], runs.d[0])
    assert nothing is None and inside["compute"] <= 1


def test_optimum_is_the_minimum_on_the_budget():
    law = Law(E=1.8, A=480.0, B=2100.0, alpha=0.35, beta=0.37)
    flops = 5.76e23
    found = optimal(law, flops)
    n = found.n * np.exp(np.linspace(-1, 1, 2001))
    losses = law.loss(n, flops / 6 / n)
    assert n[losses.argmin()] == pytest.approx(found.n, rel=1e-3)
    assert found.loss <= losses.min()
    assert 6 * found.n * found.d == pytest.approx(flops)
    assert found.a + found.b == pytest.approx(1)
    assert found.n == pytest.approx(found.G * (flops / 6) ** found.a)


def test_chinchilla_optimum_and_what_five_rows_do(chinchilla):
    fit = fit_law(*chinchilla, bootstrap=200)
    found = optimal(fit.law, 5.76e23, fit.draws)
    assert found.d / found.n == pytest.approx(17.9, abs=0.1)
    for name in ("n", "d", "a", "b"):
        assert found.intervals[name].low <= getattr(found, name) <= found.intervals[name].high
    assert parameter_intervals(fit, 0.8)["alpha"].low < 0.3473 < parameter_intervals(fit, 0.8)["alpha"].high


def test_a_law_at_its_bound_has_no_optimum():
    with pytest.raises(ValueError, match="no compute optimum"):
        optimal(Law(E=1.8, A=0.0, B=2100.0, alpha=0.35, beta=0.37), 1e21)
