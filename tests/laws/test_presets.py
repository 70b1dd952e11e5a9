"""Published laws: what they say, and that their status is earned."""

import numpy as np
import pytest

from isoflop.laws.expression import names
from isoflop.laws.fit import fit_law
from isoflop.laws.presets import BESIROGLU, HOFFMANN, LLAMA_3, MUENNIGHOFF, PRESETS, preset_named


@pytest.mark.parametrize("preset", PRESETS, ids=lambda preset: preset.name)
def test_every_preset_is_complete(preset):
    formula = preset.as_formula()
    parameters, columns = names(formula.expression)
    assert set(parameters) == set(preset.parameters) and set(columns) == set(preset.columns)
    middle = {name: float(np.sqrt(np.prod(preset.fitted.get(name, (1e9, 1e10))))) for name in preset.columns}
    (value,) = np.atleast_1d(preset.value(**middle))
    assert np.isfinite(value) and value > 0
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


def test_mistakes_are_told():
    with pytest.raises(ValueError, match="did you mean 'besiroglu-2024'"):
        preset_named("besiroglu")
    with pytest.raises(ValueError, match="needs N, D; D is missing"):
        HOFFMANN.value(N=1e9)
    assert preset_named("kaplan-2020").name == "kaplan-2020"
