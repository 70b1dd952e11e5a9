"""Published laws: what they say, and that their status is earned."""

import numpy as np
import pytest

from isoflop.laws.expression import names
from isoflop.laws.fit import fit_law
from isoflop.laws.optimum import Law, optimal
from isoflop.laws.presets import (
    BESIROGLU,
    CLARK,
    HOFFMANN,
    KRAJEWSKI,
    KUMAR,
    LLAMA_3,
    MUENNIGHOFF,
    PRESETS,
    TAO,
    preset_named,
)


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_every_preset_is_complete(preset):
    formula = preset.as_formula()
    parameters, columns = names(formula.expression)
    assert set(parameters) == set(preset.parameters) and set(columns) == set(preset.columns)
    middle = {name: float(np.sqrt(np.prod(preset.fitted.get(name, (1e9, 1e10))))) for name in preset.columns}
    (value,) = np.atleast_1d(preset.value(**middle))
    assert np.isfinite(value) and (value > 0 or "negative" in preset.units)
    assert not preset.outside(**middle)
    assert preset.units and preset.convention and preset.source


def test_hoffmanns_unrounded_constants_round_to_the_published_ones():
    p = HOFFMANN.parameters
    assert (round(p["E"], 2), round(p["A"], 1), round(p["B"], 1)) == (1.69, 406.4, 410.7)
    assert (round(p["alpha"], 2), round(p["beta"], 2)) == (0.34, 0.28)


def test_reproduced_is_reproduced(chinchilla):
    law = fit_law(*chinchilla, bootstrap=0).law
    for name, value in BESIROGLU.parameters.items():
        assert getattr(law, name) == pytest.approx(value, rel=2e-6)


def test_muennighoffs_law_meets_its_check_value():
    p = MUENNIGHOFF.parameters
    best = 25e9 * (p["A"] / p["B"]) ** (1 / p["alpha"])
    assert MUENNIGHOFF.value(N=6.34e9, D=242e9, U=25e9, UN=best) == pytest.approx(2.2256440889984477, rel=1e-14)


def test_llama_3_at_its_own_budget():
    """3.8e25 FLOPs: 402 billion parameters on 16.55 trillion tokens, says the report; its own line gives 16.10."""
    tokens = float(LLAMA_3.value(C=3.8e25))
    assert tokens == pytest.approx(16.55e12, rel=0.03)
    assert LLAMA_3.outside(C=3.8e25)


def test_krajewskis_law_meets_its_own_table():
    """Table 2: models of 64 times a dense size with 12 d^2 parameters a block, so 8 * 64 + 4 in all."""
    for dense, d, granularity, loss in (
        (100e6, 4.37e9, 8, 3.133),
        (7e9, 137.6e9, 32, 2.076),
        (1e12, 7.94e12, 64, 1.367),
    ):
        total = dense / 12 * (8 * 64 + 4)
        assert float(KRAJEWSKI.value(N=total, D=d, G=granularity)) == pytest.approx(loss, rel=0.01)


def test_clarks_experts_stop_helping_where_the_paper_says():
    """S-BASE: no gain from experts beyond a dense model of 937 billion parameters; one expert is the dense law."""
    experts = np.array([1.0, 16.0, 256.0])
    assert (np.diff(CLARK.value(N=np.full(3, 1e9), X=experts)) < 0).all()
    assert (np.diff(CLARK.value(N=np.full(3, 2e12), X=experts)) > 0).all()
    dense = (3.568e13 / np.array([1e8, 1e9])) ** 0.078  # the paper's own dense fit
    assert CLARK.value(N=np.array([1e8, 1e9]), X=np.ones(2)) == pytest.approx(dense, rel=0.02)


@pytest.mark.parametrize(
    ("n", "width", "low", "high"), [(7e9, 4096, 60e3, 67e3), (13e9, 5120, 81e3, 91e3), (70e9, 8192, 212e3, 231e3)]
)
def test_taos_best_vocabulary_is_the_papers(n, width, low, high):
    """Table 1: the vocabularies of its three approaches, at the budget where N is optimal, N = .08 C^.5."""
    flops, size = (n / 0.08) ** 2, np.geomspace(1e4, 1e6, 2000)
    tokens = flops / 6 / (n + size * width)
    assert low <= size[TAO.value(N=np.full(2000, n), V=size * width, D=tokens).argmin()] <= high


def test_precision_saves_parameters():
    """At 4 bits of weights the main text's form leaves 78 % of the parameters; 16 bits of everything, nearly all."""
    whole = KUMAR.value(N=1e8, D=1e10, W=16, X=16, K=16)
    p = KUMAR.parameters
    assert float(whole) == pytest.approx(p["E"] + p["A"] * 1e8 ** -p["alpha"] + p["B"] * 1e10 ** -p["alpha"], rel=2e-3)
    bits = KUMAR.value(
        N=np.full(4, 1e8), D=np.full(4, 1e10), W=np.array([3, 4, 6, 12]), X=np.full(4, 16), K=np.full(4, 16)
    )
    assert (np.diff(bits) < 0).all()


def test_best_is_the_closed_form_where_there_is_one():
    for flops in (1e20, 5.76e23):
        told, right = BESIROGLU.best(flops), optimal(Law(**BESIROGLU.parameters), flops)
        assert (told.n, told.d, told.value) == pytest.approx((right.n, right.d, right.loss), rel=1e-4)
    repeated = MUENNIGHOFF.best(1e21, U=1e9, UN=1e8)
    assert repeated.value > MUENNIGHOFF.best(1e21, U=1e12, UN=1e11).value
    with pytest.raises(ValueError, match="only a loss of N and D has a best N"):
        LLAMA_3.best(1e20)
    with pytest.raises(ValueError, match="is not a budget"):
        BESIROGLU.best(0)


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="did you mean 'besiroglu-2024'"):
        preset_named("besiroglu")
    with pytest.raises(ValueError, match="needs N, D; D is missing"):
        HOFFMANN.value(N=1e9)
    assert preset_named("kaplan-2020").name == "kaplan-2020"
