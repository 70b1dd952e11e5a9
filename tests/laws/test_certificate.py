"""The certificate, and tables that cannot carry a law."""

import hashlib
import json

import numpy as np
import pytest

from isoflop.laws.fit import fit_document, fit_law


def test_certificate_is_plain_json_and_complete(ladder):
    runs = ladder(0)
    document = fit_document(fit_law(runs.n, runs.d, runs.loss, bootstrap=30, convention="N without embeddings"))
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    certificate = document["certificate"]
    assert certificate["convention"] == "N without embeddings"
    assert certificate["n_used"] == certificate["n_rows"] == len(runs.n)
    assert certificate["ranges"]["compute"]["high"] == pytest.approx((6 * runs.n * runs.d).max())
    assert certificate["bootstrap"]["n"] == 30
    assert certificate["condition_number"] > 1


def test_digest_is_of_the_sorted_columns():
    n, d = np.array([2e8, 1e8, 1e8, 3e8, 4e8, 5e8]), np.array([3e9, 2e9, 4e9, 4e9, 6e9, 5e9])
    loss = np.array([3.0, 3.3, 3.2, 2.9, 2.7, 2.75])
    rows = sorted(zip(n, d, loss, strict=True))
    columns = np.array(rows).T.astype("<f8").tobytes()
    expected = hashlib.sha256(b"n,d,loss\n" + columns).hexdigest()
    assert fit_law(n, d, loss, bootstrap=0).certificate.data_digest == expected


def test_residual_rms_is_of_the_law(ladder):
    runs = ladder(1)
    fit = fit_law(runs.n, runs.d, runs.loss, bootstrap=0)
    residuals = np.log(runs.loss) - np.log(fit.law.loss(runs.n, runs.d))
    assert fit.certificate.residual_rms == pytest.approx(np.sqrt((residuals**2).mean()))
    np.testing.assert_allclose(np.sort(fit.residuals), np.sort(residuals), atol=1e-12)


def test_one_level_of_compute_is_warned_of():
    n = np.geomspace(1e7, 1e9, 15)
    d = 1e19 / 6 / n
    loss = (1.7 + 400 / n**0.34 + 1000 / d**0.37) * np.exp(0.003 * np.random.default_rng(0).normal(size=15))
    certificate = fit_law(n, d, loss, bootstrap=30).certificate
    assert certificate.compute_levels == 1
    assert any("one level of compute" in told for told in certificate.warnings)
    assert any("collinear" in told for told in certificate.warnings)


def test_a_fixed_ratio_of_tokens_is_warned_of():
    n = np.geomspace(1e7, 1e9, 12)
    loss = (1.7 + 400 / n**0.34 + 1000 / (20 * n) ** 0.37) * np.exp(0.003 * np.random.default_rng(0).normal(size=12))
    certificate = fit_law(n, 20 * n, loss, bootstrap=30).certificate
    assert certificate.correlation_log_n_log_d == pytest.approx(1)
    assert any("collinear" in told for told in certificate.warnings)


@pytest.mark.parametrize("column, match", [("n", "every row has the same N"), ("d", "every row has the same D")])
def test_a_size_that_does_not_vary_is_refused(ladder, column, match):
    runs = ladder(2)
    columns = {"n": runs.n, "d": runs.d, "loss": runs.loss}
    columns[column] = np.full_like(runs.n, 1e9)
    with pytest.raises(ValueError, match=match):
        fit_law(**columns)


def test_too_few_rows_states_both_numbers(ladder):
    runs = ladder(3)
    with pytest.raises(ValueError, match=r"4 rows cannot determine the law's 5 parameters"):
        fit_law(runs.n[:4], runs.d[:4], runs.loss[:4])
    repeated = np.tile(np.arange(4), 5)
    with pytest.raises(ValueError, match=r"20 rows at 4 different \(N, D\)"):
        fit_law(runs.n[repeated], runs.d[repeated], runs.loss[repeated])


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_bad_numbers_are_named(ladder, bad):
    runs = ladder(4)
    loss = runs.loss.copy()
    loss[2] = bad
    with pytest.raises(ValueError, match=r"loss, entry 3"):
        fit_law(runs.n, runs.d, loss)


@pytest.mark.parametrize("name, value", [("delta", 0.0), ("delta", np.nan), ("bootstrap", -1)])
def test_bad_settings_are_named(ladder, name, value):
    runs = ladder(5)
    with pytest.raises(ValueError, match=name):
        fit_law(runs.n, runs.d, runs.loss, **{name: value})


def test_constant_loss_ends_in_bounds_not_in_numbers(ladder):
    runs = ladder(6)
    fit = fit_law(runs.n, runs.d, np.full_like(runs.loss, 2.5), bootstrap=20)
    np.testing.assert_allclose(fit.law.loss(runs.n, runs.d), 2.5, rtol=1e-6)
    assert fit.certificate.warnings


def test_rising_loss_is_not_called_a_law(ladder):
    runs = ladder(7)
    fit = fit_law(runs.n, runs.d, 2 + (runs.n / runs.n.min()) ** 0.1, bootstrap=20)
    assert fit.certificate.at_bound
    assert fit.certificate.warnings


def test_a_table_that_the_form_misses_is_warned_of():
    n, d = np.repeat(np.geomspace(1e7, 1e9, 5), 5), np.tile(np.geomspace(1e9, 1e11, 5), 5)
    loss = 1.7 + 400 / n**0.34 + 1000 / d**0.37
    loss *= np.where(np.arange(25) % 2, 1.1, 0.9)  # no power of N and D does this
    certificate = fit_law(n, d, loss, bootstrap=0).certificate
    assert certificate.residual_rms > 0.05
    (told,) = [told for told in certificate.warnings if "does not fit this table" in told]
    assert certificate.status == "weak"
    assert any("does not fit this table" in reason for reason in certificate.reasons)
    assert f"misses its own rows by {certificate.residual_rms:.1%}" in told


@pytest.mark.parametrize("factor, side", [(1.04, "above"), (0.99, "below")])
def test_the_worst_row_is_named(ladder, factor, side):
    runs = ladder(3, rows=20, noise=0.0005)
    loss = runs.loss.copy()
    loss[7] *= factor
    told = [t for t in fit_law(runs.n, runs.d, loss, bootstrap=0).certificate.warnings if "fits worst" in t]
    assert len(told) == 1
    assert f"N = {runs.n[7]:.4g}, D = {runs.d[7]:.4g} lies " in told[0]
    assert f"% {side} the law" in told[0]


def test_a_law_that_fits_has_no_warning_of_its_residuals(ladder):
    for noise in (0.0, 0.003):
        runs = ladder(3, rows=20, noise=noise)
        warnings = fit_law(runs.n, runs.d, runs.loss, bootstrap=0).certificate.warnings
        assert not [told for told in warnings if "misses" in told or "fits worst" in told]


def test_the_parameters_at_a_bound_among_the_replicates_are_named(ladder):
    runs = ladder(1, rows=14, noise=0.02)
    fit = fit_law(runs.n, runs.d, runs.loss - 0.97 * runs.truth[0], bootstrap=100)
    (told,) = [told for told in fit.certificate.warnings if "replicates have a parameter at a bound" in told]
    share = (fit.draws[:, 0] == 0).mean()
    assert share > 0.1
    assert f"E in {share:.0%}" in told
