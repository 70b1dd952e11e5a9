"""Formulas: the grammar and its refusals, exact derivatives, every named form recovered from its own losses."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.laws.expression import Evaluator, derivative, names
from isoflop.laws.families import DATA_CONSTRAINED, FORMS, KAPLAN, POWER, form_named
from isoflop.laws.fit import fit_law
from isoflop.laws.formula import Coefficient, Formula, FormulaForm, Prior, user_formula
from isoflop.laws.general import fit_formula, formula_document
from isoflop.laws.parse import parse

CHINCHILLA = "E + A/N^alpha + B/D^beta"


def value(text, **named):
    constants = {name: np.array(float(number)) for name, number in named.items()}
    return float(Evaluator({}, constants)(parse(text, ())))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("2 + 3*4", 14),
        ("2*3^2", 18),
        ("-2^2", -4),
        ("2^-1", 0.5),
        ("2^3^2", 512),
        ("x^y", 8),
        ("exp(log(x))", 2),
        ("log10(100) + log2(8) + sqrt(16)", 9),
        ("max(x, y) - min(x, y)", 1),
        ("sigmoid(0)", 0.5),
        ("tanh(1)", np.tanh(1)),
        ("(x - y)^2", 1),
        ("1/3", 1 / 3),
    ],
)
def test_arithmetic(text, expected):
    assert value(text, x=2, y=3) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("text", [
    "__import__('os').system('true')", "E.real", "a if b else c", "[1]", "'a'", "lambda: 1", "True", "x and y", "x < y",
    "1j", "f(x)", "max(x)", "exp", "exp(x, base=2)", "x[0]", "x := 1", "*x", "1 +", "", "(" * 300 + "x" + ")" * 300,
    "x + " * 900 + "x", "-" * 100 + "x", "`missing` + x",
])  # fmt: skip
def test_anything_but_arithmetic_is_refused(text):
    with pytest.raises(ValueError, match="formula"):
        parse(text, {"N"})


def test_columns_are_told_from_parameters_and_may_have_any_name():
    read = parse("E + A/`Model Size`^alpha", {"Model Size"})
    assert names(read) == (["E", "A", "alpha"], ["Model Size"])
    with pytest.raises(ValueError, match="no parameter to fit"):
        user_formula("N + D", {"N": np.ones(3), "D": np.ones(3)})
    with pytest.raises(ValueError, match="no column of the table"):
        user_formula("E + A", {"N": np.ones(3)})


EXPRESSIONS = st.recursive(
    st.sampled_from(["a", "b", "x", "2", "0.7"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/"]), inner).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
        st.tuples(st.sampled_from(["exp(0.1*%s)", "log(1 + (%s)^2)", "sigmoid(%s)", "tanh(%s)", "(%s)^2"]), inner).map(
            lambda t: t[0] % t[1]
        ),
        st.tuples(inner, inner).map(lambda t: f"(1 + ({t[0]})^2)^({t[1]})"),
    ),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(EXPRESSIONS, st.floats(0.3, 1.7), st.floats(0.3, 1.7))
def test_derivatives_are_those_of_differences(text, a, b):
    read = parse(text, {"x"})
    x = {"x": np.array([0.5, 1.3])}
    step = 1e-6

    def at(a):
        return Evaluator(x, {"a": np.array(a), "b": np.array(b)})(read)

    with np.errstate(all="ignore"):
        exact = Evaluator(x, {"a": np.array(a), "b": np.array(b)})(derivative(read, "a"))
        numeric, size = (at(a + step) - at(a - step)) / (2 * step), np.abs(at(a))
    if np.isfinite(numeric).all() and np.max(size) < 1e3 and np.max(np.abs(numeric)) < 1e3:
        np.testing.assert_allclose(np.broadcast_to(exact, (2,)), np.broadcast_to(numeric, (2,)), rtol=2e-3, atol=2e-3)


def table_for(formula, rng, rows=160):
    ranges = {
        "N": (7, 10), "D": (9, 12), "x": (0, 4), "C": (18, 22), "m": (0.5, 3), "U": (8.5, 10.5), "UN": (7, 9),
        "V": (6, 8), "lr": (-4, -2), "batch": (5, 7),
    }  # fmt: skip
    drawn = {name: 10 ** rng.uniform(*decades, rows) for name, decades in ranges.items()}
    drawn |= {"X": 2.0 ** rng.integers(0, 8, rows), "G": 2.0 ** rng.integers(0, 5, rows)}
    drawn |= {"P": rng.choice([3, 4, 5, 6, 8, 12, 16.0], rows), "L": rng.uniform(0.5, 3, rows)}
    streams, idle = 2.0 ** rng.integers(0, 4, rows), rng.choice([0, 0.5, 0.75, 0.95], rows)
    drawn["S"] = streams if formula.name == "parallel" else idle
    return {name: drawn[name] for name in formula.columns}


def truth_for(formula, columns, rng):
    """Parameters near the middle of the starts; amplitudes of .2 to .5 at the smallest row."""
    form = FormulaForm.scaled(formula, columns, np.full(len(next(iter(columns.values()))), 2.5))
    point = [rng.uniform(0.2, 0.5) if k in form.linear else 0.5 for k in range(form.size)]
    for k, one in enumerate(formula.coefficients):
        if one.starts and k not in form.linear:
            point[k] = one.starts[len(one.starts) // 2] * rng.uniform(0.9, 1.1)
    point = np.clip(point, form.lower, form.upper)
    return dict(zip(form.parameters, form.to_published(point).tolist(), strict=True))


@pytest.mark.parametrize("formula", FORMS, ids=lambda formula: formula.name)
def test_every_form_is_recovered_from_its_own_losses(formula):
    rng = np.random.default_rng(1)
    columns = table_for(formula, rng)
    truth = truth_for(formula, columns, rng)
    clean = formula.value(truth, columns)
    noise = 0.001 * rng.normal(size=len(clean))
    fit = fit_formula(formula, columns, clean * np.exp(noise) if formula.log else clean + noise, bootstrap=0)
    assert fit.certificate.residual_rms < 0.0013
    fitted = formula.value(fit.parameters, columns)
    np.testing.assert_allclose(fitted, clean, atol=0.005 * np.abs(clean).max())
    assert formula.source


def test_the_formula_engine_finds_the_optimum_of_the_hand_written_one(chinchilla):
    n, d, loss = chinchilla
    settings = {name: Coefficient(name, 0.0, 10.0) for name in ("alpha", "beta")}
    formula = user_formula(CHINCHILLA, {"N": n, "D": d}, settings)
    fit = fit_formula(formula, {"N": n, "D": d}, loss, bootstrap=0)
    law = fit_law(n, d, loss, bootstrap=0).law
    assert fit.certificate.objective == pytest.approx(0.001018274018, rel=1e-8)
    for name, number in fit.parameters.items():
        assert number == pytest.approx(getattr(law, name), rel=1e-4)


def test_fixed_parameters_stay_and_the_rest_is_the_profile(chinchilla):
    n, d, loss = chinchilla
    exponents = {name: Coefficient(name, 0.0, 10.0) for name in ("alpha", "beta")}
    formula = user_formula(CHINCHILLA, {"N": n, "D": d}, exponents)
    fit = fit_formula(formula, {"N": n, "D": d}, loss, fixed={"alpha": 0.34, "E": 1.8}, bootstrap=0)
    assert set(fit.parameters) == {"A", "B", "beta"}
    assert fit.certificate.objective > 0.001018274018
    with pytest.raises(ValueError, match="--fix gamma: the form's parameters are E, A, alpha, B, beta"):
        fit_formula(formula, {"N": n, "D": d}, loss, fixed={"gamma": 1})


def test_a_prior_draws_as_strongly_as_it_is_narrow(ladder):
    runs = ladder(3, rows=12, noise=0.01)
    columns = {"N": runs.n, "D": runs.d}
    exponents = {name: Coefficient(name, 0.0, 10.0) for name in ("alpha", "beta")}
    formula = user_formula(CHINCHILLA, columns, exponents)

    def alpha(priors):
        return fit_formula(formula, columns, runs.loss, priors=priors, bootstrap=0).parameters["alpha"]

    free, wide, some, hard = alpha({}), *(alpha({"alpha": Prior(0.9, spread)}) for spread in (1e3, 0.1, 1e-4))
    assert wide == pytest.approx(free, abs=1e-3)
    assert free < some < hard
    assert hard == pytest.approx(0.9, abs=1e-3)
    floor = fit_formula(formula, columns, runs.loss, priors={"E": Prior(1.0, 1e-4)}, bootstrap=20).parameters["E"]
    assert floor == pytest.approx(1.0, abs=1e-3)
    with pytest.raises(ValueError, match="is an amplitude"):
        alpha({"A": Prior(400, 10)})


def test_muennighoffs_check_value():
    """The published law at N 6.34e9, D 242e9, U 25e9 (Muennighoff et al. 2023, the repository's README)."""
    alpha, (A, B, E) = 0.3526596, np.exp([6.255414, 7.3049974, 0.6254804])
    best = 25e9 * (A / B) ** (1 / alpha)  # parameters that are optimal for U unique tokens
    columns = {"N": [6.34e9], "D": [242e9], "U": [25e9], "UN": [best]}
    law = {"E": E, "A": A, "B": B, "alpha": alpha, "RN": 5.309743, "RD": 15.387756}
    assert DATA_CONSTRAINED.value(law, {k: np.array(v) for k, v in columns.items()})[0] == pytest.approx(
        2.2256440889984477, rel=1e-14
    )


def test_derived_constants():
    columns = {"N": np.geomspace(1e6, 1e9, 12), "D": np.tile([1e9, 3e10], 6)}
    loss = ((8.8e13 / columns["N"]) ** (0.076 / 0.095) + 5.4e13 / columns["D"]) ** 0.095
    fit = fit_formula(KAPLAN, columns, loss, bootstrap=0)
    assert fit.derived == pytest.approx({"N_c": 8.8e13, "D_c": 5.4e13}, rel=1e-3)
    assert fit.parameters["alpha_N"] == pytest.approx(0.076, rel=1e-4)


def test_the_document_has_the_keys_of_every_fit():
    rng = np.random.default_rng(0)
    x = np.geomspace(10, 1e5, 30)
    fit = fit_formula(POWER, {"x": x}, (2 + 3 / x**0.4) * np.exp(0.002 * rng.normal(size=30)), bootstrap=100)
    document = formula_document(fit, {"x": [1e6, 20.0]}, 0.9)
    assert set(document) == {"law", "objective", "certificate", "intervals", "predictions"}
    assert document["law"]["name"] == "power" and document["law"]["E"] == pytest.approx(2, abs=0.05)
    far, near = document["predictions"]
    assert far["low"] < far["loss"] < far["high"] and "outside the fitted" in far["warning"]
    assert near["warning"] is None
    profile = document["certificate"]["profile"]
    assert set(profile) == {"E", "alpha"} and profile["E"]["low"] < 2 < profile["E"]["high"]
    assert document["certificate"]["status"] == "sound" and len(document["certificate"]["influence"]) == 5


@pytest.mark.parametrize(
    "spoil, match",
    [
        (lambda c, y: (c, -y), "has no logarithm"),
        (lambda c, y: (c, y * np.nan), "loss, entry 1: nan"),
        (lambda c, y: ({}, y), "needs x; add --column x=COL"),
        (lambda c, y: ({"x": c["x"][:2]}, y[:2]), "2 different rows cannot determine the 3 parameters of power"),
        (lambda c, y: ({"x": c["x"][:3]}, y), "one length"),
    ],
)
def test_bad_tables_are_refused_in_a_line(spoil, match):
    columns, loss = spoil({"x": np.geomspace(1, 100, 10)}, np.linspace(3, 2, 10))
    with pytest.raises(ValueError, match=match):
        fit_formula(POWER, columns, loss)


def test_a_column_that_does_not_vary_is_refused():
    columns = {"N": np.geomspace(1e6, 1e9, 20), "D": np.full(20, 1e9)}
    formula = Formula("three", "E + A/N^a + B*D", ("N", "D"), tuple(Coefficient(name) for name in ("E", "A", "a", "B")))
    certificate = fit_formula(formula, columns, 2 + 50 / columns["N"] ** 0.3, bootstrap=0).certificate
    assert certificate.status == "refused" and "every row has the same D" in certificate.reasons[0]


def test_unknown_forms_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'kaplan'"):
        form_named("kaplen")


@pytest.mark.parametrize("text", ["9^9^9", "x*9**9**9", "1e999 + x", f"x + {'9' * 800}", "exp(1e9)^9", "x + 0^-1"])
def test_numbers_that_no_float_holds(text):
    with pytest.raises(ValueError, match="too large"):
        parse(text, {"x"})


@pytest.mark.parametrize("text", ["E + A/N^alpha/0", "E + A*(0 - 9)^0.5/N"])
def test_a_formula_that_is_nowhere_a_number_is_refused(ladder, text):
    runs = ladder(0)
    certificate = fit_formula(user_formula(text, {"N"}), {"N": runs.n}, runs.loss, bootstrap=0).certificate
    assert certificate.status == "refused"
    assert "no positive, finite number" in certificate.reasons[0]
