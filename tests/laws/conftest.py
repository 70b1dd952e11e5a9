"""Tables to fit: the published Chinchilla points, and random ladders of known laws."""

from dataclasses import dataclass

import numpy as np
import pytest
from published_tables import columns_of, numbers, published


@dataclass(frozen=True)
class Ladder:
    """Runs of a known law, and a target at four times the largest compute."""

    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray
    truth: np.ndarray  # E, A, B, alpha, beta
    noise: float
    target: tuple[float, float]


def law_value(truth, n, d):
    E, A, B, alpha, beta = truth
    return E + A / n**alpha + B / d**beta


def make_ladder(seed: int, rows: int | None = None, noise: float | None = None) -> Ladder:
    """A ladder of 12 to 25 runs on 3 to 6 levels of compute, D/N from 5 to 100, noise of 0.3 to 1 %."""
    rng = np.random.default_rng(seed)
    rows = int(rng.integers(12, 26)) if rows is None else rows
    levels = int(rng.integers(3, 7))
    first, span = 10 ** rng.uniform(16.5, 19), 10 ** rng.uniform(1, 2.2)
    compute = first * span ** (np.arange(rows) % levels / (levels - 1))
    alpha, beta = rng.uniform(0.25, 0.5, 2)
    n0 = np.sqrt(first / 120)
    truth = np.array(
        [rng.uniform(1, 2.4), rng.uniform(0.3, 1.5) * n0**alpha, rng.uniform(0.3, 1.5) * (20 * n0) ** beta, alpha, beta]
    )
    ratio = 10 ** rng.uniform(np.log10(5), 2, rows)
    n = np.sqrt(compute / 6 / ratio)
    d = compute / 6 / n
    noise = rng.uniform(0.003, 0.01) if noise is None else noise
    loss = law_value(truth, n, d) * np.exp(noise * rng.normal(size=rows))
    top = 4 * compute.max()
    return Ladder(n, d, loss, truth, noise, (np.sqrt(top / 120), np.sqrt(top * 20 / 6)))


@pytest.fixture(scope="session")
def ladder():
    return make_ladder


@pytest.fixture(scope="session")
def chinchilla_245():
    """N, D and loss of all rows."""
    n, flops, loss = numbers(columns_of(published("chinchilla_245.csv")), "Model Size", "Training FLOP", "loss")
    return n, flops / 6 / n, loss


@pytest.fixture(scope="session")
def chinchilla(chinchilla_245):
    """N, D and loss of the 240 rows that the published refit keeps."""
    n, d, loss = chinchilla_245
    kept = loss < np.sort(loss)[-5]
    assert kept.sum() == 240
    return n[kept], d[kept], loss[kept]
