"""Two steps: a law's loss, and the accuracy that a sigmoid makes of it."""

import numpy as np
import pytest

from isoflop.laws.fit import fit_law
from isoflop.laws.task import fit_accuracy, forecast_task


def accuracy_of(loss, noise=0.0, seed=0):
    return 0.25 + 0.6 / (1 + np.exp(4 * (loss - 2.4))) + noise * np.random.default_rng(seed).normal(size=np.shape(loss))


def test_a_task_is_forecast_through_its_loss(ladder):
    runs = ladder(6, rows=24, noise=0.003)
    scale = 2.4 / np.median(runs.loss)
    fit = fit_law(runs.n, runs.d, runs.loss * scale, bootstrap=100)
    task = fit_accuracy(runs.loss * scale, accuracy_of(runs.loss * scale, 0.005), chance=0.25, bootstrap=100)
    E, A, B, alpha, beta = runs.truth
    n, d = runs.target
    truth = accuracy_of(scale * (E + A / n**alpha + B / d**beta))
    (told,) = forecast_task(fit, task, n, d, 0.9)
    assert told.low < told.accuracy < told.high
    assert told.accuracy == pytest.approx(float(truth), abs=0.05)
    assert "outside the fitted" in told.warning
    assert "low" not in task.parameters


def test_percentages_are_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        fit_accuracy([3.0, 2.5, 2.0, 1.5, 1.0], [25, 30, 45, 60, 70])
