"""Metrics that look emergent: explained by a smooth loss where they are, and not where they are not."""

import numpy as np
import pytest

from isoflop.laws.emergence import explain

FLOPS = np.geomspace(1e18, 1e21, 24)


def runs(seed, jump=0.0, seen=0.02):
    """Loss falls smoothly but for the luck of each run; accuracy is a sharp sigmoid of it, and may jump beyond."""
    rng = np.random.default_rng(seed)
    loss = 1.8 + 2 * (FLOPS / 1e18) ** -0.15 * np.exp(seen * rng.normal(size=24))
    accuracy = 0.25 + 0.6 / (1 + np.exp(12 * (loss - 2.6))) + jump * (FLOPS > 10**20.3)
    return loss, np.clip(accuracy + 0.01 * rng.normal(size=24), 0, 1)


def test_a_sharp_metric_of_a_smooth_loss_is_explained():
    told = [explain(FLOPS, *runs(seed), chance=0.25) for seed in range(10)]
    assert sum(one.explained for one in told) >= 8
    assert all(one.r_squared > 0.95 for one in told)
    assert np.mean([one.steepest_metric for one in told]) > 0.8 > np.mean([one.steepest_loss for one in told])


def test_what_the_loss_does_not_explain_is_found():
    """Runs of one loss on both sides of the step: there no sigmoid can follow it."""
    told = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        loss = 2.6 + 0.4 * rng.normal(size=24)
        accuracy = 0.25 + 0.5 / (1 + np.exp(3 * (loss - 2.6))) + 0.15 * (FLOPS > 10**19.5) + 0.01 * rng.normal(size=24)
        told.append(explain(FLOPS, loss, np.clip(accuracy, 0, 1)))
    assert all(not one.explained for one in told)
    assert np.mean([one.step.size for one in told]) == pytest.approx(0.15, abs=0.03)
    assert all(1e19 < one.step.flops < 1e20 for one in told)


def test_ladders_may_differ_at_equal_loss():
    loss, accuracy = runs(0)
    is_b = np.arange(24) % 2
    same = explain(FLOPS, loss, accuracy, is_b=is_b)
    better = explain(FLOPS, loss, np.clip(accuracy + 0.05 * is_b, 0, 1), is_b=is_b)
    assert same.between.p_value > 0.05 and abs(same.between.size) < 0.02
    assert better.between.p_value < 0.05 and better.between.size == pytest.approx(0.05, abs=0.02)
    assert same.between.flops is None


def test_clusters_are_not_counted_as_runs():
    """Six runs of four checkpoints that err together say less than twenty-four runs."""
    loss, accuracy = runs(1)
    is_b = np.repeat([0.0, 1.0], 12)[np.argsort(np.random.default_rng(1).permutation(24))]
    labels = np.arange(24) // 4
    alone = explain(FLOPS, loss, accuracy + 0.02 * is_b, is_b=is_b)
    together = explain(FLOPS, loss, accuracy + 0.02 * is_b, is_b=is_b, clusters=labels)
    assert alone.between.size == together.between.size
    assert alone.between.p_value != together.between.p_value


def test_mistakes_are_told():
    loss, accuracy = runs(0)
    with pytest.raises(ValueError, match="7 rows cannot tell a jump from a steep curve"):
        explain(FLOPS[:7], loss[:7], accuracy[:7])
    with pytest.raises(ValueError, match="between 0 and 1"):
        explain(FLOPS, loss, 100 * accuracy)
    with pytest.raises(ValueError, match=r"every row has 0\.25"):
        explain(FLOPS, loss, np.full(24, 0.25))
