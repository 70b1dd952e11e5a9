"""How often the interval of `isoflop compare-runs` holds, and its test is wrong, on ladders of known laws.

Each simulated pair of ladders has a law of its own (floor 1 to 2.4, exponents .25 to .5), 1 to 2.2 decades of compute,
D/N of 5 to 100 unless said otherwise, and scatter of .4 % of the loss. Half the pairs are the same law (the test must
be silent), half have the multiplier told. At 90 %: coverage should be .90 and false alarms .10; at 95 %, .95 and .05.

    python benchmarks/multiplier.py --pairs 400
"""

import argparse
import time

import numpy as np
from rich.console import Console
from rich.table import Table

from isoflop.laws.multiplier import Side, compare_ladders

SCATTER = 0.004
TELLING = (0.5, 0.5)  # logs of the multipliers of N and of D where the ladders differ
DESIGNS = {
    "6 runs each": {"runs": 6},
    "8 runs each": {"runs": 8},
    "12 runs each": {"runs": 12},
    "20 runs each": {"runs": 20},
    "12 runs, one D/N": {"runs": 12, "one_ratio": True},
    "12 and 12, other sizes": {"runs": 12, "same_sizes": False},
    "12 pairs, correlation .7": {"runs": 12, "shared": 0.7},
    "10 runs x 5 checkpoints, correlation .8": {"runs": 10, "checkpoints": 5, "within": 0.8},
}


class Truth:
    """A random law, moved by multipliers of N and D."""

    def __init__(self, rng):
        self.floor, self.alpha, self.beta = rng.uniform(1, 2.4), *rng.uniform(0.25, 0.5, 2)
        self.of_n, self.of_d = rng.uniform(0.3, 1.5, 2)
        self.first, self.span = 10 ** rng.uniform(16.5, 19), 10 ** rng.uniform(1, 2.2)
        self.n0 = np.sqrt(self.first / 120)

    def loss(self, n, d, moved=(0.0, 0.0)):
        n, d = n * np.exp(moved[0]), d * np.exp(moved[1])
        return self.floor + self.of_n * (n / self.n0) ** -self.alpha + self.of_d * (d / (20 * self.n0)) ** -self.beta

    def design(self, rng, runs, one_ratio):
        flops = self.first * self.span ** (np.arange(runs) % 4 / 3)
        ratio = np.full(runs, 20.0) if one_ratio else 10 ** rng.uniform(np.log10(5), 2, runs)
        n = np.sqrt(flops / 6 / ratio)
        return n, flops / 6 / n

    def best(self, flops, ratios, moved):
        log_ratio = np.linspace(*ratios, 2001)
        n = np.sqrt(flops / 6 / np.exp(log_ratio))
        return self.loss(n, flops / 6 / n, moved).min()

    def multiplier(self, flops, a, b, moved):
        ratios = [np.log(side.d / side.n) for side in (a, b)]
        common = max(one.min() for one in ratios), min(one.max() for one in ratios)
        target, low, high = self.best(flops, common, moved), -6.0, 6.0
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if self.best(flops * np.exp(middle), common, (0, 0)) > target else (low, middle)
        return np.exp(low)


def ladders(truth, rng, moved, runs, one_ratio=False, same_sizes=True, shared=0.0, checkpoints=1, within=0.0):
    """Both sides: `shared` is the correlation of the scatter of runs of one size, `within` of checkpoints of a run."""
    first = truth.design(rng, runs, one_ratio)
    designs = first, first if same_sizes else truth.design(rng, runs, one_ratio)
    common, sides = rng.normal(size=runs), []
    for (n, d), by in zip(designs, ((0.0, 0.0), moved), strict=True):
        d = (d[:, None] * 2.0 ** -np.arange(checkpoints)).ravel()
        n = np.repeat(n, checkpoints)
        own = np.sqrt(1 - shared) * rng.normal(size=runs) + np.sqrt(shared) * common
        every = np.sqrt(1 - within) * rng.normal(size=len(n)) + np.sqrt(within) * np.repeat(own, checkpoints)
        scatter = SCATTER * (every if within else own)
        labels = [str(run) for run in np.repeat(np.arange(runs), checkpoints)]
        # Runs of one size are pairs only where they share what made them scatter: seeds say so.
        seeds = np.full(len(n), 0.0 if shared or not sides else 1.0)
        sides.append(Side(n, d, truth.loss(n, d, by) * np.exp(scatter), labels if checkpoints > 1 else None, seeds))
    return sides


def one_pair(seed, moved, level, design):
    """Whether the interval held, whether the test spoke, and how wide the interval is (as a ratio)."""
    rng = np.random.default_rng(seed)
    truth = Truth(rng)
    a, b = ladders(truth, rng, moved, **design)
    told = compare_ladders(a, b, level=level)
    right = truth.multiplier(told.at.flops, a, b, moved)
    held = (told.at.low or 0) <= right * (1 + 1e-9) and right <= (told.at.high or np.inf) * (1 + 1e-9)
    return held, told.winner is not None, (told.at.high or np.inf) / (told.at.low or 1e-9), told.law == "separate"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400, help="of ladders, for each design")
    parser.add_argument("--level", type=float, default=0.9)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    table = Table(title=f"{args.pairs} pairs a design, level {args.level:g}", title_justify="left")
    columns = (
        "design",
        "held, same",
        "false alarms",
        "held, x2.7",
        "found",
        "width",
        "called changing",
        "CPU s a pair",
    )
    for column in columns:
        table.add_column(column, justify="left" if column == "design" else "right")
    for name, design in DESIGNS.items():
        began, half = time.process_time(), args.pairs // 2
        same = [one_pair((args.seed, i), (0.0, 0.0), args.level, design) for i in range(half)]
        other = [one_pair((args.seed, half + i), TELLING, args.level, design) for i in range(half)]
        held, spoke, _, changing = np.mean(same, axis=0)
        held_other, found, _, _ = np.mean(other, axis=0)
        width = np.median([row[2] for row in other])
        each = (time.process_time() - began) / args.pairs
        figures = (f"{held:.3f}", f"{spoke:.3f}", f"{held_other:.3f}", f"{found:.2f}", f"x{width:.2f}")
        table.add_row(name, *figures, f"{changing:.3f}", f"{each:.3f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
