"""A belief moved by many steps at once: where it leads far from where kernels pointed, no single slope will do."""

import math
import statistics
from collections.abc import Sequence

import msgspec
import numpy as np
from scipy.optimize import least_squares

from isoflop.cost.belief import Belief
from isoflop.cost.efficiency import Efficiency
from isoflop.cost.step_time import Ideal, step_seconds

BUSY = 0.1  # logarithm of how much longer steps took by the clock, from which on it is said


def fitted_to(belief: Belief, steps: Sequence[tuple[Ideal, float]]) -> Belief:
    """The most probable efficiencies given the belief and measured seconds of steps, and how sure they are then. The
    noise becomes what these steps scatter about the fit, if that is more."""
    mean, factor = np.array(belief.mean), np.linalg.inv(np.linalg.cholesky(np.array(belief.covariance)))
    measured = np.array([math.log(seconds) for _, seconds in steps])

    def misfit(theta: np.ndarray) -> np.ndarray:
        efficiency = Efficiency(*np.exp(theta))
        return np.asarray([math.log(float(step_seconds(ideal, efficiency))) for ideal, _ in steps] - measured)

    def residuals(theta: np.ndarray) -> np.ndarray:
        return np.asarray(np.concatenate([misfit(theta) / belief.noise, factor @ (theta - mean)]))

    found = least_squares(residuals, mean)
    covariance = np.linalg.inv(found.jac.T @ found.jac)
    scatter = float(np.sqrt(np.mean(misfit(found.x) ** 2)))
    return msgspec.structs.replace(
        belief,
        mean=tuple(found.x.tolist()),
        covariance=tuple(map(tuple, covariance.tolist())),
        noise=max(belief.noise, scatter),
        source="measured",
    )


def shared(belief: Belief, slower: Sequence[float]) -> Belief:
    """The belief on a device that other work shares: steps took `slower` times what they took on the processor. What
    comes may have the device alone or find it as busy: rates fall by half of the mean (of logarithms), and an interval
    reaches past both; how unsteady the steps were adds to it. On a quiet device nothing changes."""
    logs = [math.log(max(1.0, factor)) for factor in slower]
    half = statistics.fmean(logs) / 2
    changed = belief.efficiency
    rates = [math.log(rate) - half for rate in changed]
    overhead, spread = Efficiency._fields.index("overhead_s"), Efficiency._fields.index("spread")
    rates[overhead], rates[spread] = math.log(changed.overhead_s) + half, belief.mean[spread]
    busy = f"; the device was busy: steps took {math.exp(2 * half):.1f} times their own" if half > BUSY / 2 else ""
    noise = math.hypot(belief.noise, half, statistics.pstdev(logs))
    return msgspec.structs.replace(belief, mean=tuple(rates), noise=noise, note=belief.note + busy)
