"""Fit the efficiencies to published training throughputs, leave groups out, and say how well the rest is predicted.

    python benchmarks/throughput.py ../shared/data/truth/training_throughput.json [--write src/isoflop/cost/fitted.toml]

The table (llm-foundry's, MPT models on A100 and H100) is not part of the project; the constants fitted on it are. Each
model size, and each number of devices, is left out in turn. The interval is nested: its stretch comes from groups left
out of the remaining rows alone, so no held-out row has a say in its own width.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import least_squares

from isoflop.architecture import Attention, Decoder, Layer, LayerNorm, Learned, Mlp
from isoflop.cost.belief import parameter_names
from isoflop.cost.efficiency import Efficiency
from isoflop.cost.layout import Layout
from isoflop.cost.step_time import Ideal, ideal_step, step_seconds
from isoflop.cost.work import work_of
from isoflop.hardware import find_accelerator

CHIPS = ("A100", "H100")
DEVICES = {"a100_40gb": "A100-SXM4-40GB", "a100_80gb": "A100-SXM4-80GB", "h100_80gb": "H100-SXM5-80GB"}
HEADS = {"125m": 12, "350m": 16, "760m": 12, "1b": 16, "3b": 20, "7b": 32, "13b": 40, "30b": 56, "70b": 64}
NOISE, ROBUST = 0.05, 0.03  # log deviations: of a run from its efficiencies; beyond which a row counts less
LEVEL = 0.8

# Priors, (value, log deviation), from elsewhere than the table. products: the best measured product of each chip over
# its peak (accelerators.toml). fp8: the same of the H100. attention: FlashAttention 1 forward and backward, causal, on
# an A100 (Dao 2023, arXiv 2307.08691, figure 4); the H100 runs the A100's instructions about 1.7 times as fast.
PRIORS = {
    "products-A100": (0.869, 0.15),
    "products-H100": (0.803, 0.15),
    "low_precision": (0.709, 0.2),
    "attention-A100": (0.32, 0.2),
    "attention-H100": (0.18, 0.2),
    "bandwidth-A100": (0.8, 0.2),
    "bandwidth-H100": (0.8, 0.2),
    "link": (0.75, 0.3),
    "overhead_s": (5e-4, 1.0),
    "spread": (0.01, 0.7),
}
NAMES = list(PRIORS)
MEAN = np.log([value for value, _ in PRIORS.values()])
DEVIATION = np.array([deviation for _, deviation in PRIORS.values()])


class Table(NamedTuple):
    """Rows as arrays: ideal seconds by kind, which chip, the logarithm of the measured seconds, and both groups."""

    ideal: Ideal
    chip: np.ndarray
    log_seconds: np.ndarray
    groups: dict[str, np.ndarray]

    def at(self, rows: np.ndarray) -> "Table":
        return Table(
            Ideal(*(kind[rows] for kind in self.ideal)),
            self.chip[rows],
            self.log_seconds[rows],
            {name: group[rows] for name, group in self.groups.items()},
        )


def decoder_of(row: dict[str, Any]) -> Decoder:
    """The MPT model of a row; its parameters are the table's exactly."""
    d, heads = row["d_model"], HEADS[row["model"]]
    attention = Attention(n_heads=heads, n_kv_heads=heads, d_head=d // heads, qkv_bias=True, out_bias=True)
    layer = Layer(mixer=attention, feed_forward=Mlp(d_ff=4 * d, activation="gelu", bias=True))
    return Decoder(
        vocab_size=50368,
        d_model=d,
        layers=(layer,) * row["layers"],
        max_context=row["seq_len"],
        norm=LayerNorm(),
        position=Learned(),
        tie_embeddings=True,
    )


def layout_of(row: dict[str, Any]) -> Layout:
    """How a row was spread."""
    return Layout(
        data=row["gpus"],
        shard="parameters" if row["sharding"] == "FULL_SHARD" else "gradients",
        micro_batch=row["micro_batch"],
        accumulate=row["grad_accum"],
        recompute="full" if row["act_ckpt"] else "none",
    )


def precision_of(row: dict[str, Any]) -> str:
    return "fp8" if "fp8" in row["precision"] else "bf16"


def read(path: Path) -> Table:
    rows = json.loads(path.read_text())["rows"]
    ideals = []
    for row in rows:
        work = work_of(decoder_of(row), row["seq_len"])
        assert work.parameters == row["n_params"], (row["model"], work.parameters, row["n_params"])
        ideals.append(ideal_step(work, find_accelerator(DEVICES[row["gpu"]]), layout_of(row), precision_of(row)))
    tokens = np.array([row["micro_batch"] * row["grad_accum"] * row["seq_len"] for row in rows])
    rates = np.array([row["tokens_per_s_per_gpu"] for row in rows])
    return Table(
        Ideal(*map(np.array, zip(*ideals, strict=True))),
        np.array([row["gpu"][:4].upper() for row in rows]),
        np.log(tokens / rates),
        {"model": np.array([row["model"] for row in rows]), "gpus": np.array([str(row["gpus"]) for row in rows])},
    )


def predicted(theta: np.ndarray, table: Table) -> np.ndarray:
    """Logarithms of the seconds of each row."""
    value = dict(zip(NAMES, np.exp(theta), strict=True))
    sides = [[value[name] for name in parameter_names(chip)] for chip in CHIPS]
    first = table.chip == CHIPS[0]
    seconds = step_seconds(table.ideal, Efficiency(*(np.where(first, a, b) for a, b in zip(*sides, strict=True))))
    return np.log(seconds)


class Fit(NamedTuple):
    theta: np.ndarray
    covariance: np.ndarray

    def deviations(self, table: Table) -> np.ndarray:
        """Log deviation of each prediction, from the parameters and from the scatter of runs."""
        base, eye = predicted(self.theta, table), np.eye(len(NAMES)) * 1e-4
        slopes = np.stack([(predicted(self.theta + step, table) - base) / 1e-4 for step in eye], axis=1)
        return np.sqrt(np.einsum("ri,ij,rj->r", slopes, self.covariance, slopes) + NOISE**2)


def fit(table: Table) -> Fit:
    """Penalised least squares of log seconds, outliers weighing less (pseudo-Huber)."""

    def residuals(theta: np.ndarray) -> np.ndarray:
        z = (predicted(theta, table) - table.log_seconds) / ROBUST
        return np.concatenate([np.sign(z) * np.sqrt(2 * (np.sqrt(1 + z**2) - 1)), (theta - MEAN) / DEVIATION])

    found = least_squares(residuals, MEAN)
    return Fit(found.x, np.linalg.inv(found.jac.T @ found.jac))


def left_out(table: Table, by: str) -> tuple[np.ndarray, np.ndarray]:
    """Log errors and deviations of every row from a fit to the other groups."""
    groups, n = table.groups[by], len(table.log_seconds)
    error, deviation = np.zeros(n), np.zeros(n)
    for group in np.unique(groups):
        held = groups == group
        found = fit(table.at(~held))
        error[held] = predicted(found.theta, table.at(held)) - table.log_seconds[held]
        deviation[held] = found.deviations(table.at(held))
    return error, deviation


def stretch_of(table: Table) -> float:
    """Deviations within which LEVEL of the rows left out lie, over both ways of leaving out."""
    ratios = [np.abs(error) / deviation for error, deviation in (left_out(table, by) for by in table.groups)]
    return float(np.quantile(np.concatenate(ratios), LEVEL))


class Score(NamedTuple):
    by: str
    median: float
    tenth_worst: float
    coverage: float
    width: float


def nested(table: Table, by: str) -> Score:
    """Errors of rows left out, and how often their intervals held, each with the stretch of the other rows alone."""
    error, deviation = left_out(table, by)
    groups = table.groups[by]
    stretch = np.zeros(len(error))
    for group in np.unique(groups):
        held = groups == group
        stretch[held] = stretch_of(table.at(~held))
    half = stretch * deviation
    relative = np.abs(np.expm1(error))
    held_true = float(np.mean(np.abs(error) <= half))
    return Score(by, float(np.median(relative)), float(np.quantile(relative, 0.9)), held_true, float(np.median(half)))


def write(path: Path, found: Fit, stretch: float) -> None:
    rows = ",\n".join(f"    [{', '.join(f'{c:.4g}' for c in row)}]" for row in found.covariance)
    path.write_text(
        "# Written by benchmarks/throughput.py; mean and covariance (of the logarithms) of the fitted efficiencies.\n"
        'source = "144 throughputs of MPT models, 125M to 70B, on A100 and H100 (llm-foundry, 2023 to 2024)"\n'
        'date = "2024-03"\n'
        f"noise = {NOISE}\nstretch = {stretch:.4f}\n"
        f"names = {json.dumps(NAMES)}\n"
        f"mean = [{', '.join(f'{v:.5g}' for v in np.exp(found.theta))}]\n"
        f"covariance = [\n{rows},\n]\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=Path)
    parser.add_argument("--write", type=Path)
    args = parser.parse_args()
    table = read(args.table)
    found, stretch = fit(table), stretch_of(table)
    for name, value, deviation in zip(NAMES, np.exp(found.theta), np.sqrt(np.diag(found.covariance)), strict=True):
        print(f"{name:<16} {value:8.4g}  +- {deviation:.1%}   prior {PRIORS[name][0]:g} +- {PRIORS[name][1]:.0%}")
    error = np.abs(np.expm1(predicted(found.theta, table) - table.log_seconds))
    print(f"\nfitted      median {np.median(error):.1%}  90th {np.quantile(error, 0.9):.1%}  stretch {stretch:.3f}")
    for by in table.groups:
        s = nested(table, by)
        print(
            f"out: {s.by:<6} median {s.median:.1%}  90th {s.tenth_worst:.1%}  80% held {s.coverage:.1%} +-{s.width:.1%}"
        )
    if args.write:
        write(args.write, found, stretch)


if __name__ == "__main__":
    main()
