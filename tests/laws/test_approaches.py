"""Approaches 1 and 2: published exponents, known laws, and grids that cannot carry them."""

import numpy as np
import pytest
from published_tables import columns_of, numbers, published

from isoflop.laws.approaches import bias_of_design, envelope_line, isoflop_line
from isoflop.laws.optimum import Law, optimal

EVEN = Law(E=1.7, A=400.0, B=400.0, alpha=0.35, beta=0.35)
UNEVEN = Law(E=1.7, A=200.0, B=12000.0, alpha=0.30, beta=0.45)


def design(law, budgets=6, points=9, width=8.0, off=1.0):
    """N and FLOPs of isoFLOPs about the law's optimum, `off` times it."""
    flops = np.repeat(np.geomspace(1e18, 1e21, budgets), points)
    centre = np.array([optimal(law, one).n for one in flops])
    return centre * off * np.tile(np.geomspace(1 / width, width, points), budgets), flops


def test_llama_3():
    """The report's figure 2 and 3: D* = .29936 C^.53678 (Grattafiori et al. 2024, section 3.2.1)."""
    columns = columns_of(published("llama3_isoflop_133.csv"))
    flops, tokens, loss = numbers(columns, "compute_budget", "training_tokens", "validation_loss")
    line = isoflop_line(tokens, flops, loss, axis="D")
    assert line.a == pytest.approx(0.53678, abs=1e-5)
    assert pytest.approx(0.29936, abs=1e-5) == line.K
    assert line.a_interval.low < 0.537 < line.a_interval.high
    assert line.a_interval.high - line.a_interval.low < 0.07  # ten budgets, the dear ones of few runs


PORIAN = (
    ("base", "long", "kaplan", "kaplan", "train"),
    ("base", "long", "kaplan", "standard", "val"),
    ("base", "short", "kaplan", "standard", "val"),
    ("base", "short", "chinchilla", "standard", "val"),
    ("tuned", "short", "const", "standard", "val"),
)


@pytest.mark.parametrize("setting", PORIAN)
def test_porian(setting):
    """Porian et al. 2024, figure 1: from Kaplan's exponent to Hoffmann's in four corrections, on RefinedWeb."""
    names = ("hparams", "warmup", "decay", "param_count", "val")
    theirs = columns_of(published("porian_published.csv"))
    columns = columns_of(published("porian_1745.csv"))

    def chosen(table):
        wanted = dict(zip(names, setting, strict=True)) | {"dataset": "rw"}
        return np.all([np.array(table[name]) == value for name, value in wanted.items()], axis=0)

    (row,) = np.flatnonzero(chosen(theirs))
    exponent, low, high = (float(theirs[name][row]) for name in ("n_exponent", "n_exp_lo95", "n_exp_hi95"))
    rows = chosen(columns)
    n, flops, loss = (column[rows] for column in numbers(columns, "n", "flops", "loss"))
    line = isoflop_line(n, flops, loss, how="akima", level=0.95)
    assert line.a == pytest.approx(exponent, abs=0.007)
    assert low < line.a < high
    assert line.a_interval.low < exponent < line.a_interval.high
    assert line.a_interval.high - line.a_interval.low < 0.15


@pytest.mark.parametrize("how", ["parabola", "akima"])
def test_an_even_law_on_a_centred_grid_has_no_bias(how):
    n, flops = design(EVEN)
    line = isoflop_line(n, flops, EVEN.loss(n, flops / 6 / n), how=how)
    assert line.a == pytest.approx(0.5, abs=1e-3)
    assert line.at(1e24) == pytest.approx(optimal(EVEN, 1e24).n, rel=0.01)
    assert not line.warnings


def test_the_bias_of_a_design_is_what_it_does():
    """Uneven exponents and a wide grid: the parabola is off, and by what `bias_of_design` says."""
    narrow, flops = design(UNEVEN, width=2.0)
    wide, _ = design(UNEVEN, width=16.0)
    small, large = (bias_of_design(UNEVEN, n, flops, isoflop_line) for n in (narrow, wide))
    assert abs(np.log(small.at_largest)) < 0.02 < abs(np.log(large.at_largest))
    line = isoflop_line(wide, flops, UNEVEN.loss(wide, flops / 6 / wide))
    assert line.at(1e21) / optimal(UNEVEN, 1e21).n == pytest.approx(large.at_largest)
    assert large.exponent_true == pytest.approx(0.6)
    tokens = flops / 6 / wide
    of_d = bias_of_design(UNEVEN, tokens, flops, lambda x, c, y: isoflop_line(x, c, y, axis="D"), "D")
    assert of_d.at_largest == pytest.approx(1 / large.at_largest)


def test_akima_bends_where_a_parabola_cannot():
    n, flops = design(UNEVEN, width=16.0)

    def akima(x, c, y):
        return isoflop_line(x, c, y, how="akima")

    straight, bent = (bias_of_design(UNEVEN, n, flops, fit) for fit in (isoflop_line, akima))
    assert abs(np.log(bent.at_largest)) < 0.3 * abs(np.log(straight.at_largest))


def test_a_grid_off_the_middle_says_so():
    n, flops = design(EVEN, off=3.0)
    line = isoflop_line(n, flops, EVEN.loss(n, flops / 6 / n))
    assert {one.shape for one in line.budgets} == {"off-centre"}
    assert len(line.warnings) == 6 and "parabola is biased" in line.warnings[0]


def test_a_maximum_and_an_edge_are_told_and_left_out():
    n, flops = design(EVEN)
    loss = EVEN.loss(n, flops / 6 / n)
    loss[:9] = 8 - loss[:9]
    loss[9:18] = np.linspace(2, 1, 9) ** 2
    line = isoflop_line(n, flops, loss)
    assert [one.shape for one in line.budgets[:3]] == ["maximum", "edge", "minimum"]
    assert [one.used for one in line.budgets] == [False, False, True, True, True, True]
    assert line.a == pytest.approx(0.5, abs=1e-3)
    assert any("a maximum" in told for told in line.warnings)


def test_one_budget_is_refused():
    n, flops = design(EVEN, budgets=6)
    with pytest.raises(ValueError, match="1 of 1 budgets"):
        isoflop_line(n[:9], flops[:9], EVEN.loss(n, flops / 6 / n)[:9])
    with pytest.raises(ValueError, match="0 of 6 budgets"):
        isoflop_line(n, flops, -n)


def test_the_envelope_of_training_curves():
    """Approach 1 on the curves of a known law: constant learning rate, so that a checkpoint is a run."""
    sizes = np.geomspace(1e7, 1e10, 25)
    tokens = np.geomspace(1e8, 1e12, 60)
    n, d = (grid.ravel() for grid in np.meshgrid(sizes, tokens, indexing="ij"))
    line = envelope_line(n, 6 * n * d, UNEVEN.loss(n, d), runs=n)
    assert line.a == pytest.approx(0.6, abs=0.02)
    assert line.a_interval.low < 0.6 < line.a_interval.high
    with pytest.raises(ValueError, match="checkpoints of at least 3 runs"):
        envelope_line(n[:120], (6 * n * d)[:120], UNEVEN.loss(n, d)[:120], runs=n[:120])
