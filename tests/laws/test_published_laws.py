"""Published fits that are no optima: a lower objective on their own rows, every start agreeing."""

import json

import numpy as np
import pytest
from published_tables import columns_of, numbers, published

from isoflop.laws.fit import fit_law
from isoflop.laws.solver import Problem, objective

TABLES = ("slim_chinchilla", "hot", "cool_end", "lr_ablation_hot", "hot_100b+")


@pytest.mark.parametrize("name", TABLES)
def test_gemstones(name):
    """McLeish et al. 2025 fit these rows at delta 1e-4; none of the five is an optimum."""
    theirs = json.loads(published("gemstones", "published.json").read_text())[f"delta=1e-4/{name}"]
    columns = columns_of(published("gemstones", f"{name}.csv"))
    fit = fit_law(*numbers(columns, "params_active_precise", "tokens", "final_loss"), delta=1e-4, bootstrap=0)
    exponents, logs = theirs["exponents"]["0"], theirs["coefficients"]["0"]
    law = np.array([np.exp(theirs["irreducible_error"]["0"]), *np.exp(logs), *exponents])
    features = fit.form.features(fit.n, fit.d)
    problem = Problem(fit.form, features, np.log(fit.loss) - fit.form.log_loss0, np.ones(len(fit.n)))
    at_theirs = float(objective(problem, fit.form.to_internal(law)[None], 1e-4)[0])
    assert at_theirs == pytest.approx(theirs["loss"]["0"], rel=1e-4), "their objective on their rows"
    assert fit.certificate.objective < at_theirs * (1 - 1e-7)
    assert fit.certificate.share_of_starts_at_optimum > 0.9
    if name == "slim_chinchilla":
        assert fit.certificate.objective == pytest.approx(1.30364e-5, rel=1e-5)


def test_chinchilla(chinchilla):
    """Besiroglu et al. 2024: the exact optimum on the 240 rows."""
    fit = fit_law(*chinchilla, bootstrap=0)
    assert fit.certificate.objective == pytest.approx(0.001018274018, rel=1e-9)
    assert fit.law.parameters == pytest.approx([1.817218, 477.826, 2143.417, 0.347310, 0.367172], rel=2e-6)
    assert fit.certificate.share_of_starts_at_optimum == 1.0
