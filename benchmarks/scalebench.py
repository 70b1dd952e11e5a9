"""ScaleBench (Li et al. 2026, arXiv 2604.22753): laws fitted to the whole pool, or to what a budget buys of it, predict
the expensive region.

    python benchmarks/scalebench.py FOLDER             FOLDER holds <task>_train.csv and <task>_test.csv
    python benchmarks/scalebench.py FOLDER --budgets   1, 5 and 10 % of the pool's cost, mean over ten seeds
    python benchmarks/scalebench.py FOLDER --held-out  the same with the pool's own top levels as the region

Every task has a few candidate laws from its literature, with weak beliefs about their parameters. The law is chosen
without the test rows: each feature's top quarter of levels is held out of the pool in turn, and the candidate with the
least mean rms error of what was held out is refitted to the whole pool. Score: R2 over the test rows of all groups.
With a budget the law is that one, and the design that of `scalebench_design`; groups share nothing.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import least_squares

from scalebench_design import forecast
from scalebench_laws import TASKS, Law, Task

SHARES = (0.01, 0.05, 0.1)
NOISE = 0.01  # scale of the residuals at which they start to count less (soft L1)


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


def r_squared(told, y):
    """Share of the variance explained, clipped to [-1, 1]."""
    return float(np.clip(1 - ((told - y) ** 2).sum() / ((y - y.mean()) ** 2).sum(), -1, 1))


def budgeted(task: Task, pool, region, share, seed):
    """R2 in the region with what `share` of each group's pool buys, and the runs bought; pool and region are (x, y,
    group)."""
    (x, y, group), (x_test, y_test, group_test), told, runs = pool, region, np.empty(len(region[1])), 0
    for one in np.unique(group):
        mine, there = group == one, group_test == one
        told[there], bought = forecast(task, x[mine], y[mine], x_test[there], share, seed)
        runs += len(bought)
    return r_squared(told, y_test), runs


def held_out_regions(x, y, group):
    """(pool, region) for each feature: its top quarter of levels is the region."""
    for column in x.T:
        levels = np.unique(column)
        top = column >= levels[len(levels) - max(1, len(levels) // 4)]
        yield (x[~top], y[~top], group[~top]), (x[top], y[top], group[top])


def print_budgets(folder: Path, seeds: int, held_out: bool):
    """The table beside the published one."""
    table = Table(title="R2 of the expensive region at 1 / 5 / 10 % of the pool's cost", title_justify="left")
    for column in ("task", "V-optimal", "the paper's", "ours", "sd over seeds", "runs bought", "CPU s"):
        table.add_column(column)
    every = []
    for name, task in TASKS.items():
        began, pool = time.process_time(), read(folder, name, "train")
        splits = list(held_out_regions(*pool)) if held_out else [(pool, read(folder, name, "test"))]
        told = np.array([[[budgeted(task, *split, share, seed) for split in splits] for seed in range(seeds)]
                         for share in SHARES]).mean(axis=2)  # fmt: skip
        every.append((task.v_optimal, task.paper, told[..., 0].mean(axis=1)))
        runs = " ".join(f"{count:.0f}" for count in told[..., 1].mean(axis=1))
        cells = _three(task.v_optimal), _three(task.paper), _three(every[-1][2]), _three(told[..., 0].std(axis=1))
        table.add_row(name, *cells, runs, f"{time.process_time() - began:.0f}")
    table.add_row("mean", *(_three(np.mean(column, axis=0)) for column in zip(*every, strict=True)))
    Console(width=160).print(table)


def _three(values):
    return "  ".join(f"{value:.3f}" for value in values)


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
        candidates.append((held_out_error(law, task, x, y, group), r_squared(told, y_test), law.name))
    return min(candidates), candidates


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--budgets", action="store_true")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--seeds", type=int, default=10)
    args = parser.parse_args()
    if args.budgets or args.held_out:
        print_budgets(args.folder, args.seeds, args.held_out)
    else:
        print_all_data(args.folder)


def print_all_data(folder: Path):
    """Our R2 beside the published one, and every candidate's."""
    table = Table(title="R2 of the expensive region, fitted to the whole pool", title_justify="left")
    for column in ("task", "published", "ours", "law chosen", "every candidate: hold-out rms, R2", "CPU s"):
        table.add_column(column)
    for name, task in TASKS.items():
        began = time.process_time()
        (_, r2, law), candidates = score(folder, name)
        every = "\n".join(f"{one} {error:.4f}, {value:.4f}" for error, value, one in candidates)
        table.add_row(name, f"{task.published:.2f}", f"{r2:.4f}", law, every, f"{time.process_time() - began:.1f}")
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
