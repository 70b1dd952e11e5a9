"""Do intervals hold? Laws fitted to the cheap runs of public tables forecast the dear ones.

    python benchmarks/backtest.py FOLDER [--bootstrap 200]

FOLDER holds chinchilla_245.csv, llama3_isoflop_133.csv, muennighoff_229.csv, porian_1745.csv and gemstones/. A split
fits the runs that cost at most 1/3, 1/10 or 1/30 of a table's dearest and forecasts all others; it counts where at
least ten rows are fitted and five held out: 17 splits of seven tables. Porian's 15 configurations are fitted each for
itself and averaged.

What is printed of a table comes from a prior whose settings were learnt without any table of the same source: for each
source left out, the setting of `GRID` with the best mean log score on the others, and the least stretch at which 90 %
intervals held 90 % of the time there, and in no split of a whole table less than 75 %. Learning sees the splits and
short ladders of 8 and 16 runs drawn from them.
"""

import argparse
import csv
import itertools
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.stats import t as student

from isoflop.laws.backtest import hold_out, summary
from isoflop.laws.discrepancy import DEGREES, posterior, quantile
from isoflop.laws.fit import fit_law
from isoflop.laws.priors import PUBLIC, Belief, Prior

FACTORS = (3, 10, 30)
FEWEST_FITTED, FEWEST_HELD = 10, 5
SHORT = (8, 16)  # runs of a short ladder
USUAL_RATIOS = (1.0, 1000.0)  # D/N of the runs of short ladders and their targets
LEVEL = 0.9
WORST = 0.75  # coverage of the worst split while learning
LARGEST_RATIO = 16.0
GRID = {
    "gamma": (Belief(0.0, 0.3), Belief(-0.3, 0.3)),
}
STRETCHES = tuple(np.arange(0.6, 1.6, 0.02))


@dataclass(frozen=True)
class Case:
    """Rows to fit and runs to forecast, each (N, D, loss)."""

    source: str
    table: str
    configuration: str
    factor: int
    ladder: int | None  # runs drawn, of a short ladder
    rows: tuple[np.ndarray, ...]
    ahead: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Told:
    """Forecasts of a case at stretch 1."""

    error: np.ndarray
    sd: np.ndarray


def read(path: Path):
    with path.open() as file:
        return list(csv.DictReader(file))


def columns(rows, *names):
    return tuple(np.array([float(row[name]) for row in rows]) for name in names)


def tables(folder: Path):
    """(source, table, configuration) -> (N, D, loss)."""
    n, flops, loss = columns(read(folder / "chinchilla_245.csv"), "Model Size", "Training FLOP", "loss")
    kept = loss < np.sort(loss)[-5]  # the 240 rows of the published refit (Besiroglu et al. 2024)
    found = {("chinchilla", "chinchilla", ""): (n[kept], (flops / 6 / n)[kept], loss[kept])}
    names = ("compute_budget", "training_tokens", "validation_loss")
    flops, d, loss = columns(read(folder / "llama3_isoflop_133.csv"), *names)
    found["llama 3", "llama 3", ""] = flops / 6 / d, d, loss
    names = ("params_active_precise", "tokens", "final_loss")
    for name in ("hot", "cool_end", "slim_chinchilla"):
        found["gemstones", f"gemstones {name}", ""] = columns(read(folder / "gemstones" / f"{name}.csv"), *names)
    once = [row for row in read(folder / "muennighoff_229.csv") if row["unique_tokens"] == row["tokens"]]
    found["muennighoff", "muennighoff", ""] = columns(once, "params", "tokens", "val_loss")
    groups = defaultdict(list)
    for row in read(folder / "porian_1745.csv"):
        key = ("dataset", "hparams", "warmup", "decay", "param_count", "val")
        groups[" ".join(row[name] for name in key)].append(row)
    found |= {("porian", "porian", name): columns(rows, "n", "tokens", "loss") for name, rows in groups.items()}
    return found


def splits(folder: Path):
    """The splits, and short ladders drawn from them."""
    cases = []
    for (source, table, configuration), columns_ in tables(folder).items():
        compute = columns_[0] * columns_[1]
        for factor in FACTORS:
            cheap = compute <= compute.max() / factor * 1.0001
            if cheap.sum() < FEWEST_FITTED or (~cheap).sum() < FEWEST_HELD:
                continue
            rows, ahead = (tuple(column[mask] for column in columns_) for mask in (cheap, ~cheap))
            cases.append(Case(source, table, configuration, factor, None, rows, ahead))
            cases += short_ladders(cases[-1])
    return cases


def short_ladders(case: Case):
    """8 and 16 of the rows at usual D/N, drawn at random, where there are half as many again."""
    rows, ahead = (tuple(column[usual(part)] for column in part) for part in (case.rows, case.ahead))
    rng = np.random.default_rng([len(case.rows[0]), case.factor])
    drawn = [(size, rng.choice(len(rows[0]), size, replace=False)) for size in SHORT if len(rows[0]) >= 1.5 * size]
    return [
        replace(case, ladder=size, rows=tuple(column[chosen] for column in rows), ahead=ahead)
        for size, chosen in drawn
        if len(ahead[0]) >= FEWEST_HELD
    ]


def usual(runs):
    ratio = runs[1] / runs[0]
    return (ratio >= USUAL_RATIOS[0]) & (ratio <= USUAL_RATIOS[1])


def tell(case: Case, prior: Prior):
    mean, sd = posterior(*case.rows, prior).moments(*case.ahead[:2])
    return Told(mean - np.log(case.ahead[2]), sd)


def settings():
    """Every prior of the grid."""
    return [replace(PUBLIC, **dict(zip(GRID, values, strict=True))) for values in itertools.product(*GRID.values())]


def weights(cases: Sequence[Case], left_out: str | None):
    """Sources count alike, and the tables, factors and lengths of a source alike; nothing of the one left out."""
    groups = [(case.source, case.table, case.factor, case.ladder) for case in cases]
    per_source = {source: len({g for g in groups if g[0] == source}) for source in {g[0] for g in groups}}
    return np.array([(g[0] != left_out) / groups.count(g) / per_source[g[0]] for g in groups])


def score(told: Told):
    """Mean log density of the held-out losses."""
    return float((student.logpdf(told.error / told.sd, DEGREES) - np.log(told.sd)).mean())


def covered(told: Told, stretch: float):
    return float((np.abs(told.error) <= quantile(LEVEL) * stretch * told.sd).mean())


def worst_split(cases, coverage, left_out: str | None):
    """The least coverage of a split of a whole table, configurations averaged."""
    groups = defaultdict(list)
    for case, share in zip(cases, coverage, strict=True):
        if case.ladder is None and case.source != left_out:
            groups[case.table, case.factor].append(share)
    return min(np.mean(shares) for shares in groups.values())


def learn(cases, grid, told, left_out: str | None):
    """The prior of the best log score with the source left out, stretched until intervals held."""
    weight = weights(cases, left_out)
    weight /= weight.sum()
    prior, best = max(zip(grid, told, strict=True), key=lambda one: weight @ np.array([score(t) for t in one[1]]))
    for stretch in STRETCHES:
        coverage = np.array([covered(one, stretch) for one in best])
        if weight @ coverage >= LEVEL and worst_split(cases, coverage, left_out) >= WORST:
            break
    return replace(prior, stretch=round(float(stretch), 2))


def bootstrap_coverage(case: Case, replicates: int):
    """How often the customary intervals held: the bootstrap's parameter interval, and with residual noise."""
    fit = fit_law(*case.rows, bootstrap=replicates)
    e, a, b, alpha, beta = fit.draws.T[:, :, None]
    error = np.log(e + a / case.ahead[0] ** alpha + b / case.ahead[1] ** beta) - np.log(case.ahead[2])
    low, high = np.quantile(error, [0.05, 0.95], axis=0)
    noise = 1.645 * fit.residuals.std()
    return tuple(float(((low - more <= 0) & (high + more >= 0)).mean()) for more in (0.0, noise))


def report(cases, priors, bootstrap: int):
    """Rows of the table: one a table and factor, configurations averaged."""
    groups = defaultdict(list)
    for case in cases:
        groups[case.table, case.factor].append(case)
    lines = []
    for (table, factor), members in groups.items():
        held = [hold_out(case.rows, case.ahead, LEVEL, priors[case.source]) for case in members]
        plain = [bootstrap_coverage(case, bootstrap) for case in members] if bootstrap else [(np.nan, np.nan)]
        single = min(summary([one]).coverage for one in held)
        lines.append((table, factor, summary(held), single, *np.mean(plain, axis=0)))
    return lines


def show(console, title, lines):
    table = Table(title=title, title_justify="left")
    heads = ("table", "factor", "held out", "bias %", "abs. error %", "plain bias %", "plain abs. error %")
    heads += ("coverage %", "width %", "worst configuration %", "bootstrap %", "with noise %")
    for head in heads:
        table.add_column(head, justify="left" if head == "table" else "right")
    for name, factor, e, single, *old in lines:
        signed = [f"{100 * e.bias:+.2f}", f"{100 * e.absolute_error:.2f}"]
        plain = ["", ""]
        if e.plain_bias is not None:
            plain = [f"{100 * e.plain_bias:+.2f}", f"{100 * e.plain_absolute_error:.2f}"]
        held = [f"{100 * e.coverage:.0f}", f"{100 * e.width:.1f}", f"{100 * single:.0f}"]
        table.add_row(name, str(factor), str(e.forecasts), *signed, *plain, *held, *(f"{100 * c:.0f}" for c in old))
    console.print(table)
    errors = [line[2] for line in lines]
    mean = {k: np.mean([getattr(e, k) for e in errors]) for k in ("bias", "absolute_error", "coverage", "width")}
    forecasts = sum(e.forecasts for e in errors)
    by_loss = sum(e.coverage * e.forecasts for e in errors) / forecasts
    both = [e for e in errors if e.plain_absolute_error is not None]
    less = 1 - np.mean([e.absolute_error for e in both]) / np.mean([e.plain_absolute_error for e in both])
    median = np.median([1 - e.absolute_error / e.plain_absolute_error for e in both])
    console.print(
        f"splits alike: bias {100 * mean['bias']:+.2f} %, absolute error {100 * mean['absolute_error']:.2f} % "
        f"({less:.0%} below plain; median split {median:.0%}), coverage {mean['coverage']:.1%}, "
        f"width {100 * mean['width']:.1f} %; losses alike: coverage {by_loss:.1%}; "
        f"worst split {min(e.coverage for e in errors):.0%}\n"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--bootstrap", type=int, default=0, help="resamples of the customary interval beside ours")
    args = parser.parse_args()
    console = Console(width=170)
    cases, grid, began = splits(args.folder), settings(), time.process_time()
    told = [[tell(case, prior) for case in cases] for prior in grid]
    sources = list(dict.fromkeys(case.source for case in cases))
    priors = {source: learn(cases, grid, told, source) for source in sources}
    everything = learn(cases, grid, told, None)
    for name, prior in [*priors.items(), ("nothing", everything)]:
        chosen = {field: getattr(prior, field) for field in (*GRID, "stretch")}
        console.print(f"left out {name}: {chosen}", highlight=False)
    told_so = "is" if everything == PUBLIC else "is NOT"
    console.print(f"the last {told_so} what isoflop.laws.priors ships; {time.process_time() - began:.0f} CPU s\n")
    long = [case for case in cases if case.ladder is None]
    show(console, "whole tables", report(long, priors, args.bootstrap))
    for size in SHORT:
        short = [case for case in cases if case.ladder == size]
        show(console, f"ladders of {size} runs", report(short, priors, 0))


if __name__ == "__main__":
    main()
