"""ScaleBench's tasks, and for each a few laws from its literature, with weak beliefs about their parameters."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Law:
    """A form, and for every parameter what is believed of it (mean, standard deviation)."""

    name: str
    value: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (parameters, features (n, k)) -> target (n,)
    beliefs: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Task:
    """Columns, candidate laws, and what was published: R2 for all of the pool, and at 1, 5 and 10 % of its cost."""

    features: tuple[str, ...]
    target: str
    log: bool  # the target is positive, and residuals are of its logarithm
    published: float
    v_optimal: tuple[float, float, float]
    paper: tuple[float, float, float]  # the method of the paper itself
    cost: Callable[[np.ndarray], np.ndarray]  # of runs with these features (n, k)
    chosen: str  # the law that hold-outs within the pool choose (benchmarks/scalebench.py prints them)
    noise: float  # what the scatter of a run is taken for before runs are seen, in the unit of the residuals
    discrepancy: float  # size of what the law cannot say, in units of the scatter; chosen by --held-out
    laws: tuple[Law, ...]


def logs(x, *units):
    """log of each column in its unit, one array a column."""
    return np.log(x / np.array(units)).T


def repeats(p, x, excess=False):
    """Muennighoff et al. 2023, eq. 5 and 6: repeated tokens and surplus parameters decay. With `excess`, a term more
    for what repeating does to models that can memorise: a power of N, epochs and unique tokens.
    p: log E, log of the N term at 1e9, of the D term at 1e10, log alpha, log beta, log R_D*, log R_N*."""
    unique, n, d = x.T
    alpha, beta, r_d, r_n = np.exp(p[3:7])
    big_a, big_b = np.exp(p[1:3])
    best = 1e9 * np.exp((np.log(big_a * alpha / (big_b * beta)) + beta * np.log(unique / 1e10)) / alpha)
    base = np.minimum(best, n)
    epochs = np.maximum(d / unique - 1, 0)
    tokens = unique * (1 + r_d * (1 - np.exp(-epochs / r_d)))
    size = base * (1 + r_n * (1 - np.exp(-(n / base - 1) / r_n)))
    loss = np.exp(p[0]) + big_a * (size / 1e9) ** -alpha + big_b * (tokens / 1e10) ** -beta
    if excess:
        loss = loss + np.exp(p[7] + p[8] * np.log(n / 1e9) + p[9] * np.log1p(epochs) + p[10] * np.log(unique / 1e10))
    return loss


def experts(p, x, floor=False):
    """Clark et al. 2022, eq. 1: log L bilinear in log N and log experts; with `floor`, above an irreducible loss."""
    e, n = logs(x, 1, 1e8)
    reducible = np.exp(p[0] + p[1] * n + p[2] * e + p[3] * n * e)
    return reducible + (np.exp(p[4]) if floor else 0)


def experts_saturating(p, x):
    """Clark et al. 2022, eq. 2: the benefit of experts starts and ends smoothly."""
    count = 1 / (1 / (x[:, 0] - 1 + np.exp(p[4])) + np.exp(-p[5]))
    return experts(p, np.column_stack([count, x[:, 1]]))


def hyperparameters(p, x, skewed=False, floor=True):
    """A law in N and D under a bowl in log learning rate and log batch, whose middle moves with N and D by powers (Li
    et al. 2025, Step Law) and with the batch; with `skewed`, its far sides rise at different rates."""
    lr, batch, d, n = logs(x, 1e-3, 256, 2e10, 3e8)
    off_lr = lr - (p[5] + p[6] * n + p[7] * d + p[12] * batch)
    off_batch = batch - (p[8] + p[9] * n + p[10] * d)
    loss = np.exp(p[1] - np.exp(p[2]) * n) + np.exp(p[3] - np.exp(p[4]) * d) + (np.exp(p[0]) if floor else 0)
    skew = p[14:16] if skewed else (0, 0)
    bowl = np.exp(p[11] + skew[0] * off_lr) * off_lr**2 + np.exp(p[13] + skew[1] * off_batch) * off_batch**2
    return loss * np.exp(np.minimum(bowl, 5))


def streams(p, x, power=False):
    """Parallel scaling (Chen et al. 2025): P streams count as parameters times (k log P + 1), or as a power of P."""
    n = np.log(x[:, 0] / 1e9)
    more = np.exp(p[3]) * np.log(x[:, 1])
    return np.exp(p[0]) + np.exp(p[1] - np.exp(p[2]) * (n + (more if power else np.log1p(more))))


def vocabulary(p, x, own=False):
    """Tao et al. 2024, eq. 6: unigram-normalised loss of N, V and characters, terms in N and characters scaled by
    powers of V; with `own`, a term of V alone, that falls as a power of V and rises with its logarithm, else a parabola
    in log V."""
    n, v, c = logs(x, 3e8, 16384, 1e10)
    alone = np.exp(p[7] - np.exp(p[8]) * v - p[10] * n) + p[11] * v if own else p[7] * v + p[8] * v * v
    return (
        p[0]
        + alone
        + np.exp(p[1] - np.exp(p[2]) * n + p[9] * v)
        + np.exp(p[3] - np.exp(p[4]) * c + p[5] * v + p[6] * n)
    )


EXPONENT = (float(np.log(0.35)), 0.6)
ANY = (0.0, 1.0)
SOME = (0.0, 0.4)
LITTLE = (0.0, 0.1)
REPEATS = ((0.5, 0.3), (-0.7, 1.0), (-0.7, 1.0), EXPONENT, EXPONENT, (2.7, 1.0), (1.7, 1.0))
EXPERTS = ((1.0, 0.5), (-0.08, 0.05), (-0.03, 0.05), (0.0, 0.02))
# Clark et al. 2022 (log L falls by .08 log N and .04 log E at 1e8, and rises by .004 log N log E), of what lies above a
# floor of about 1.5 nats (Hoffmann et al. 2022: 1.69), about half of the loss.
EXPERTS_AND_FLOOR = ((0.0, 0.4), (-0.16, 0.05), (-0.07, 0.04), (0.008, 0.01), (0.4, 0.2))
BOWL = (
    (0.5, 0.4), (-1.0, 1.0), EXPONENT, (-1.0, 1.0), EXPONENT,
    ANY, (-0.7, 0.5), (0.3, 0.5), ANY, SOME, (0.6, 0.4), (-4.5, 1.0), SOME, (-4.5, 1.0),
)  # fmt: skip
STREAMS = ((0.2, 0.5), (-0.5, 1.0), EXPONENT, (-1.0, 1.0))
VOCABULARY = ((-6.0, 1.0), (-0.5, 1.0), EXPONENT, (0.0, 1.0), EXPONENT, SOME, SOME)

TASKS = {
    "lr_bsz": Task(("lr", "bsz", "data_size", "non_embedding_param_size"), "lm_loss", True, 0.04,
        (-0.70, -0.06, 0.18), (-0.66, 0.00, 0.22),
        lambda x: 6 * x[:, 3] * x[:, 2], "skewed bowl", 0.02, 3.0, (
        Law("bowl", hyperparameters, BOWL),
        Law("skewed bowl", lambda p, x: hyperparameters(p, x, skewed=True), (*BOWL, SOME, SOME)),
        Law("skewed bowl, no floor", lambda p, x: hyperparameters(p, x, True, False), (*BOWL, SOME, SOME)),
    )),
    "vocab": Task(
        ("non_vocab_parameters", "vocab_size", "num_characters"), "unigram_normalized_loss", False, 0.93,
        (0.96, 0.97, 0.98), (0.96, 0.98, 0.98),
        lambda x: x[:, 0] * x[:, 2], "power of V and log V", 0.05, 3.0, (
            Law("parabola in log V", vocabulary, (*VOCABULARY, SOME, LITTLE, LITTLE)),
            Law("power of V and log V", lambda p, x: vocabulary(p, x, own=True),
                (*VOCABULARY, (-3.0, 1.0), (0.0, 0.5), LITTLE, SOME, SOME)),
        ),
    ),
    "parallel": Task(("num_params", "parallel_size"), "loss", True, 0.99,
        (-1.00, 0.69, 0.99), (-1.00, 0.77, 0.99),
        lambda x: x[:, 0], "logarithm of P", 0.02, 3.0, (
        Law("logarithm of P", streams, STREAMS),
        Law("power of P", lambda p, x: streams(p, x, power=True), STREAMS),
    )),
    "moe": Task(("num_experts", "dense_parameter_count"), "loss_validation", True, 0.81,
        (0.67, 0.80, 0.80), (0.59, 0.65, 0.83),
        lambda x: x[:, 0] * x[:, 1], "bilinear above a floor", 0.02, 0.3, (
        Law("bilinear", experts, EXPERTS),
        Law("bilinear above a floor", lambda p, x: experts(p, x, floor=True), EXPERTS_AND_FLOOR),
        Law("bilinear, saturating", experts_saturating, (*EXPERTS, ANY, (6.0, 2.0))),
    )),
    "data_constrained": Task(("unique_tokens", "params", "tokens"), "loss", True, 0.79,
        (0.58, 0.83, 0.85), (0.73, 0.85, 0.86),
        lambda x: 6 * x[:, 1] * x[:, 2], "decaying repeats", 0.02, 3.0, (
        Law("decaying repeats", repeats, REPEATS),
        Law("decaying repeats and excess", lambda p, x: repeats(p, x, excess=True),
            (*REPEATS, (-3.0, 1.5), (0.5, 0.5), (0.5, 0.5), (-0.5, 0.5))),
    )),
}  # fmt: skip
