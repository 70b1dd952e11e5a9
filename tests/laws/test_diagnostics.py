"""Profiles, influence, sensitivity, residual structure, status: against published reversals and known laws."""

from dataclasses import replace

import numpy as np
import pytest

from isoflop.laws.fit import fit_document, fit_law
from isoflop.laws.influence import influence
from isoflop.laws.optimum import optimal
from isoflop.laws.sensitivity import residual_structure
from isoflop.laws.solver import Problem, solve

FLOPS = 5.76e23  # the budget of Gopher and Chinchilla


def problem_of(fit):
    return Problem(
        fit.form, fit.form.features(fit.n, fit.d), np.log(fit.loss) - fit.form.log_loss0, np.ones(len(fit.n))
    )


def test_five_points_reverse_the_chinchilla_ratio_and_are_found(chinchilla, chinchilla_245):
    """Besiroglu et al. 2024 leave out five rows; nobody tells the diagnostic which."""
    rows = chinchilla_245
    every = fit_law(*rows, bootstrap=0)
    kept = fit_law(*chinchilla, bootstrap=0)
    ratio = [optimum.d / optimum.n for optimum in (optimal(kept.law, FLOPS), optimal(every.law, FLOPS))]
    assert ratio == pytest.approx([17.9, 6.8], abs=0.05)
    found = influence(problem_of(every), every.form, every.theta, (every.n, every.d, every.loss), 1e-3, FLOPS)
    assert found.flagged
    assert found.answer == pytest.approx(6.8, abs=0.05)
    up = max(found.groups, key=lambda group: group.shift)
    left_out = set(np.sort(rows[2])[-5:])
    assert len(left_out & {run.loss for run in up.runs}) >= 4
    assert up.answer == pytest.approx(17.9, rel=0.1)
    quiet = influence(problem_of(kept), kept.form, kept.theta, (kept.n, kept.d, kept.loss), 1e-3, FLOPS)
    assert not quiet.flagged


def test_the_certificate_of_all_245_rows_warns(chinchilla_245):
    certificate = fit_law(*chinchilla_245, bootstrap=0, diagnostics=True).certificate
    assert any("5 runs decide the answer" in told for told in certificate.warnings)


def test_every_removal_is_an_exact_refit(ladder):
    runs = ladder(3, rows=20)
    fit = fit_law(runs.n, runs.d, runs.loss, bootstrap=0, diagnostics=True)
    found = fit.certificate.influence
    for run in found.runs[:3]:
        kept = np.arange(20) != run.row
        alone = fit_law(fit.n[kept], fit.d[kept], fit.loss[kept], bootstrap=0)
        without = optimal(alone.law, found.flops)
        assert run.answer == pytest.approx(without.d / without.n, rel=1e-4)
    group = max(found.groups, key=lambda one: abs(one.shift))
    kept = ~np.isin(np.arange(20), [run.row for run in group.runs])
    without = optimal(fit_law(fit.n[kept], fit.d[kept], fit.loss[kept], bootstrap=0).law, found.flops)
    assert group.answer == pytest.approx(without.d / without.n, rel=1e-4)


def test_a_cluster_is_left_out_whole(ladder):
    runs = ladder(6, rows=24, noise=0.003)
    n, d, loss = (np.repeat(column, 2) for column in (runs.n, runs.d, runs.loss))
    loss[1::2] *= 1.002
    labels = np.repeat(np.arange(24), 2)
    fit = fit_law(n, d, loss, bootstrap=0, diagnostics=True, clusters=labels)
    first = fit.certificate.influence.runs[0]
    assert first.rows == 2
    kept = ~((n == first.n) & (d == first.d))
    without = optimal(fit_law(n[kept], d[kept], loss[kept], bootstrap=0).law, fit.certificate.influence.flops)
    assert first.answer == pytest.approx(without.d / without.n, rel=1e-4)


def test_profiles_hold_the_optimum_and_agree_with_the_bootstrap(chinchilla):
    fit = fit_law(*chinchilla, bootstrap=400)
    document = fit_document(fit, level=0.9)
    for name, profile in document["certificate"]["profile"].items():
        if name in document["intervals"]:
            interval, value = document["intervals"][name], document["law"][name]
            assert profile["low"] < value < profile["high"]
            width = np.log(profile["high"] / profile["low"]) / np.log(interval["high"] / interval["low"])
            assert 0.4 < width < 2, name
    ratio = fit.certificate.profile["tokens_per_parameter"]
    best = optimal(fit.law, fit.certificate.influence.flops)
    assert ratio.low < best.d / best.n < ratio.high
    assert fit.certificate.profile["n_optimal"].low < best.n < fit.certificate.profile["n_optimal"].high


def test_a_profile_ends_where_the_objective_of_a_held_fit_says(ladder):
    """The interval of alpha, checked by fits with alpha held at its ends: no refit between them is worse."""
    runs = ladder(6, rows=24, noise=0.003)
    fit = fit_law(runs.n, runs.d, runs.loss, bootstrap=0, diagnostics=True)
    profile, problem = fit.certificate.profile["alpha"], problem_of(fit)
    excess = []
    for alpha in (profile.low, profile.high):
        start = fit.theta.copy()
        start[3] = alpha
        held = np.array([[False, False, False, True, False]])
        solved = solve(replace(problem, held=held), start[None], 1e-3)
        assert solved.theta_Sp[0, 3] == alpha
        excess.append(solved.objective_S[0] - fit.certificate.objective)
    assert excess[0] == pytest.approx(excess[1], rel=0.05)
    assert excess[0] > 0


def test_profiles_cover_the_truth(ladder):
    """Nominal 90 %, five parameters of 8 ladders."""
    hits = []
    for seed in range(8):
        runs = ladder(700 + seed, rows=24)
        profile = fit_law(runs.n, runs.d, runs.loss, bootstrap=0, diagnostics=True).certificate.profile
        for k, name in enumerate(("E", "A", "B", "alpha", "beta")):
            if name in profile:
                low, high = profile[name].low or -np.inf, profile[name].high or np.inf
                hits.append(low <= runs.truth[k] <= high)
    assert np.mean(hits) > 0.75


def test_seeds_of_one_law_agree_whatever_the_delta_and_the_form(ladder):
    runs = ladder(4, rows=40, noise=0.0005)
    certificate = fit_law(
        runs.n, runs.d, runs.loss, bootstrap=0, diagnostics=True, conventions={"half of N": runs.n / 2}
    ).certificate
    kinds = {one.what for one in certificate.sensitivity}
    assert kinds == {"delta", "form", "convention"}
    (halved,) = [one for one in certificate.sensitivity if one.what == "convention"]
    assert halved.parameters["alpha"] == pytest.approx(fit_law(runs.n, runs.d, runs.loss, bootstrap=0).law.alpha)
    richer = [one for one in certificate.sensitivity if "F/" in one.choice]
    assert richer[0].objective <= certificate.objective * (1 + 1e-9)
    for one in certificate.sensitivity:
        if one.what == "delta":
            assert one.optimal_ratio == pytest.approx(certificate.influence.answer, rel=0.3)


def test_noise_has_no_shape_and_a_bend_has():
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(7, 9, 200), 10 ** rng.uniform(9, 11, 200)
    noise = 0.003 * rng.normal(size=200)
    assert residual_structure(n, d, noise).curvature_p > 1e-3
    bent = residual_structure(n, d, noise + 0.003 * (np.log10(n) - 8) ** 2)
    assert bent.curvature_p < 1e-3


def test_weights_are_repetitions(ladder):
    runs = ladder(8, rows=20)
    weights = np.where(np.arange(20) < 5, 3.0, 1.0)
    index = np.repeat(np.arange(20), weights.astype(int))
    weighted = fit_law(runs.n, runs.d, runs.loss, weights=weights, bootstrap=0).law
    repeated = fit_law(runs.n[index], runs.d[index], runs.loss[index], bootstrap=0).law
    np.testing.assert_allclose(weighted.parameters, repeated.parameters, rtol=1e-4)
    with pytest.raises(ValueError, match="weights"):
        fit_law(runs.n, runs.d, runs.loss, weights=-weights)


@pytest.mark.parametrize(
    "spoil, status, word",
    [
        ("one level", "refused", "one level of compute"),
        ("collinear", "refused", "cannot be told apart"),
        ("duplicated", "refused", "duplicates"),
        ("few", "weak", "6 rows for 5 parameters"),
        ("doubt", "refused", "another unit"),
        ("nothing", "sound", ""),
    ],
)
def test_the_status_says_what_is_wrong(ladder, spoil, status, word):
    runs = ladder(12, rows=24, noise=0.002)
    n, d, loss, doubts = runs.n, runs.d, runs.loss, ()
    if spoil == "one level":
        d = 1e19 / 6 / n
    if spoil == "collinear":
        d = 20 * n
    if spoil in ("one level", "collinear"):
        E, A, B, alpha, beta = runs.truth
        loss = (E + A / n**alpha + B / d**beta) * np.exp(0.002 * np.random.default_rng(0).normal(size=24))
    if spoil == "duplicated":
        n, d, loss = (np.concatenate([column, column[:3]]) for column in (n, d, loss))
    if spoil == "few":
        n, d, loss = n[:6], d[:6], loss[:6]
    if spoil == "doubt":
        doubts = ("tokens have another unit",)
    certificate = fit_law(n, d, loss, bootstrap=0, doubts=doubts).certificate
    assert certificate.status == status
    assert any(word in reason for reason in certificate.reasons) or not word
