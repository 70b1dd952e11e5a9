"""ScaleBench (Li et al. 2026, arXiv 2604.22753): laws fitted to the whole pool predict the expensive region.

    python benchmarks/scalebench.py FOLDER        FOLDER holds <task>_train.csv and <task>_test.csv

Every task has a few candidate laws from its literature, with weak beliefs about their parameters. The law is chosen
without the test rows: each feature's top quarter of levels is held out of the pool in turn, and the candidate with the
least mean rms error of what was held out is refitted to the whole pool. Score: R2 over the test rows of all groups.
"""

import argparse
import csv
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import least_squares

NOISE = 0.01  # scale of the residuals at which they start to count less (soft L1)


@dataclass(frozen=True)
class Law:
    """A form, and for every parameter what is believed of it (mean, standard deviation)."""

    name: str
    value: Callable[[np.ndarray, np.ndarray], np.ndarray]  # (parameters, features (n, k)) -> target (n,)
    beliefs: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Task:
    """Columns, candidate laws, and the R2 published for all of the pool."""

    features: tuple[str, ...]
    target: str
    log: bool  # the target is positive, and residuals are of its logarithm
    published: float
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
BOWL = (
    (0.5, 0.4), (-1.0, 1.0), EXPONENT, (-1.0, 1.0), EXPONENT,
    ANY, (-0.7, 0.5), (0.3, 0.5), ANY, SOME, (0.6, 0.4), (-4.5, 1.0), SOME, (-4.5, 1.0),
)  # fmt: skip
STREAMS = ((0.2, 0.5), (-0.5, 1.0), EXPONENT, (-1.0, 1.0))
VOCABULARY = ((-6.0, 1.0), (-0.5, 1.0), EXPONENT, (0.0, 1.0), EXPONENT, SOME, SOME)

TASKS = {
    "lr_bsz": Task(("lr", "bsz", "data_size", "non_embedding_param_size"), "lm_loss", True, 0.04, (
        Law("bowl", hyperparameters, BOWL),
        Law("skewed bowl", lambda p, x: hyperparameters(p, x, skewed=True), (*BOWL, SOME, SOME)),
        Law("skewed bowl, no floor", lambda p, x: hyperparameters(p, x, True, False), (*BOWL, SOME, SOME)),
    )),
    "vocab": Task(
        ("non_vocab_parameters", "vocab_size", "num_characters"), "unigram_normalized_loss", False, 0.93, (
            Law("parabola in log V", vocabulary, (*VOCABULARY, SOME, LITTLE, LITTLE)),
            Law("power of V and log V", lambda p, x: vocabulary(p, x, own=True),
                (*VOCABULARY, (-3.0, 1.0), (0.0, 0.5), LITTLE, SOME, SOME)),
        ),
    ),
    "parallel": Task(("num_params", "parallel_size"), "loss", True, 0.99, (
        Law("logarithm of P", streams, STREAMS),
        Law("power of P", lambda p, x: streams(p, x, power=True), STREAMS),
    )),
    "moe": Task(("num_experts", "dense_parameter_count"), "loss_validation", True, 0.81, (
        Law("bilinear", experts, EXPERTS),
        Law("bilinear above a floor", lambda p, x: experts(p, x, floor=True), (*EXPERTS, (0.2, 0.5))),
        Law("bilinear, saturating", experts_saturating, (*EXPERTS, ANY, (6.0, 2.0))),
    )),
    "data_constrained": Task(("unique_tokens", "params", "tokens"), "loss", True, 0.79, (
        Law("decaying repeats", repeats, REPEATS),
        Law("decaying repeats and excess", lambda p, x: repeats(p, x, excess=True),
            (*REPEATS, (-3.0, 1.5), (0.5, 0.5), (0.5, 0.5), (-0.5, 0.5))),
    )),
}  # fmt: skip


def fit(law: Law, task: Task, x, y):
    """Parameters (p,) of the law fitted to these rows."""
    mean, sd = np.array(law.beliefs).T

    def residuals(p):
        value = law.value(p, x)
        off = np.log(np.maximum(value, 1e-9)) - np.log(y) if task.log else value - y
        return np.concatenate([off, NOISE * (p - mean) / sd])

    return least_squares(residuals, mean, loss="soft_l1", f_scale=NOISE, x_scale=sd, max_nfev=300).x


def predict(law: Law, task: Task, x, y, x_test):
    """Fit and predict."""
    with np.errstate(over="ignore"):
        return law.value(fit(law, task, x, y), x_test)


def held_out_error(law: Law, task: Task, x, y, group):
    """Mean over features of the rms error at the top quarter of a feature's levels, fitted to the rows below."""
    errors = []
    for column in x.T:
        levels = np.unique(column)
        top = column >= levels[len(levels) - max(1, len(levels) // 4)]
        told = [
            predict(law, task, x[~top & one], y[~top & one], x[top & one]) - y[top & one]
            for one in (group == name for name in np.unique(group))
        ]
        errors.append(np.sqrt((np.concatenate(told) ** 2).mean()))
    return float(np.mean(errors))


def read(folder: Path, name: str, part: str):
    """Features (n, k), target (n,) and group (n,)."""
    task = TASKS[name]
    with (folder / f"{name}_{part}.csv").open() as file:
        rows = list(csv.DictReader(file))
    x = np.array([[float(row[column]) for column in task.features] for row in rows])
    return x, np.array([float(row[task.target]) for row in rows]), np.array([row["group"] for row in rows])


def score(folder: Path, name: str):
    """The chosen law, its R2 on the test rows, and the hold-out error and R2 of every candidate."""
    task = TASKS[name]
    x, y, group = read(folder, name, "train")
    x_test, y_test, group_test = read(folder, name, "test")
    candidates = []
    for law in task.laws:
        told = np.empty(len(y_test))
        for one in np.unique(group):
            told[group_test == one] = predict(law, task, x[group == one], y[group == one], x_test[group_test == one])
        r2 = 1 - ((told - y_test) ** 2).sum() / ((y_test - y_test.mean()) ** 2).sum()
        candidates.append((held_out_error(law, task, x, y, group), float(np.clip(r2, -1, 1)), law.name))
    return min(candidates), candidates


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    table = Table(title="R2 of the expensive region, fitted to the whole pool", title_justify="left")
    for column in ("task", "published", "ours", "law chosen", "every candidate: hold-out rms, R2", "CPU s"):
        table.add_column(column)
    for name, task in TASKS.items():
        began = time.process_time()
        (_, r2, law), candidates = score(args.folder, name)
        every = "\n".join(f"{one} {error:.4f}, {value:.4f}" for error, value, one in candidates)
        table.add_row(name, f"{task.published:.2f}", f"{r2:.4f}", law, every, f"{time.process_time() - began:.1f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
