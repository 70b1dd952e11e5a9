"""Study directories from known laws: tables of runs as a ladder might leave them, never results the report computes."""

import csv
import json
import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from isoflop.table import RunRow, write_table

DENSE = {"form": "chinchilla", "E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
EXPERTS = {"form": "chinchilla", "E": 1.66, "A": 380.0, "B": 395.0, "alpha": 0.34, "beta": 0.28}
BUDGETS = (1e15, 4e15, 1.6e16, 6.4e16)
TARGET_FLOPS = 4.1 * 6.4e16


def true_loss(law: dict[str, Any], n: float, d: float) -> float:
    return law["E"] + law["A"] / n ** law["alpha"] + law["B"] / d ** law["beta"]


def best_size(law: dict[str, Any], flops: float) -> float:
    """Hoffmann et al. 2022, eq. 4, for C = 6 N D."""
    a, b = law["alpha"], law["beta"]
    return (a * law["A"] / (b * law["B"])) ** (1 / (a + b)) * (flops / 6) ** (b / (a + b))


@dataclass(frozen=True)
class Plan:
    """What to put into a study directory."""

    laws: dict[str, dict[str, Any]] = field(default_factory=lambda: {"dense": DENSE})
    grid: bool = False
    noise: float = 0.003
    status: Callable[[int], str] = lambda index: "done"
    with_law: bool = True
    with_band: bool = True
    with_forecast: bool = True
    measured: bool = True
    warnings: tuple[str, ...] = ()
    seed: int = 0


def sizes_and_tokens(plan: Plan, law: dict[str, Any]) -> list[tuple[float, float]]:
    if plan.grid:
        return [(n, d) for n in (1e6, 3e6, 1e7, 3e7) for d in (1e8, 2e8, 4e8, 8e8)]
    pairs = []
    for flops in BUDGETS:
        for step in (-3, -2, -1, 0, 1, 2, 3):
            n = best_size(law, flops) * 1.5**step
            pairs.append((n, flops / (6 * n)))
    return pairs


def row(family: str, index: int, n: float, d: float, loss: float | None, **changes: Any) -> RunRow:
    n, d = round(n), round(d)
    values: dict[str, Any] = {
        **{"run": f"{family}-{index:03d}", "role": "fit", "family": family, "architecture": f"{index:016x}"},
        **{"d_model": 64 * (index % 7 + 2), "n_layers": index % 7 + 3, "tokens": d, "unique_tokens": d},
        **{"n_params": n + 400_000, "n_params_non_embedding": n - 200_000, "n_params_matmul": n},
        **{"flops_exact": 6.0 * n * d, "flops_6nd": 6.0 * n * d, "loss_train": loss, "loss_valid": loss},
        **{"bits_per_byte": None, "seed": 1, "lr": 2e-3, "batch_tokens": 65536, "context": 512},
        **{"steps": max(d // 65536, 1), "optimizer": "adamw", "schedule": "wsd", "wall_s": 6.0 * n * d / 4e13},
        **{
            "tokens_per_s": 4e13 / (6 * n),
            "device": "NVIDIA H100",
            "dtype": "bfloat16",
            "threads": 1,
            "compiled": True,
        },
        **{"trunk": f"{family}-trunk-{index:03d}", "status": "done", "reason": None},
    }
    return RunRow(**(values | changes))


def rows_of(plan: Plan) -> list[RunRow]:
    rng, rows = random.Random(plan.seed), []
    for family, law in plan.laws.items():
        speed = 1.0 if family == "dense" else 0.55
        for index, (n, d) in enumerate(sizes_and_tokens(plan, law)):
            status = plan.status(index)
            loss = true_loss(law, n, d) * math.exp(rng.gauss(0, plan.noise)) if status == "done" else None
            reason = None if status == "done" else "loss rose above its start at step 812"
            wall = 6.0 * n * d / 4e13 / speed
            rows.append(row(family, index, n, d, loss, status=status, reason=reason, wall_s=wall))
        if plan.with_forecast and plan.measured:
            rows.append(target_row(family, law))
    return rows


def target_row(family: str, law: dict[str, Any]) -> RunRow:
    n = best_size(law, TARGET_FLOPS)
    d = TARGET_FLOPS / (6 * n)
    return row(family, 900, n, d, true_loss(law, n, d) * 1.004, role="target", run=f"{family}-target")


def law_document(plan: Plan, law: dict[str, Any]) -> dict[str, Any]:
    certificate = {
        **{"objective": 4.1e-5, "gradient_norm": 3.2e-9, "n_starts": 256, "share_of_starts_at_optimum": 0.93},
        **{"condition_number": 8.4e3, "at_bound": [], "residual_rms": plan.noise, "n_rows": 28, "n_used": 28},
        **{"range_n": [4.1e5, 1.2e7], "range_d": [9.0e7, 4.0e9], "data_digest": "9f" * 16},
        **{"convention": "n_params_matmul, exact FLOPs", "delta": 1e-3, "bootstrap": {"kind": "trunks", "n": 400}},
        **{"warnings": list(plan.warnings)},
    }
    intervals = {
        name: {"low": law[name] * 0.95, "high": law[name] * 1.06, "level": 0.8} for name in ("E", "A", "B", "alpha")
    }
    intervals["beta"] = {"low": 0.25, "high": None, "level": 0.8}
    document = {"law": law, "objective": 4.1e-5, "certificate": certificate, "intervals": intervals}
    return document | ({"band": band(law)} if plan.with_band else {})


def band(law: dict[str, Any]) -> list[dict[str, float]]:
    rows = []
    for step in range(25):
        flops = 8e14 * (2 * TARGET_FLOPS / 8e14) ** (step / 24)
        n = best_size(law, flops)
        loss = true_loss(law, n, flops / 6 / n)
        wide = 0.006 * (1 + 0.06 * step)
        edges = {"low": loss * (1 - wide), "high": loss * (1 + wide), "level": 0.8}
        rows.append({"flops": flops, "n_params_matmul": n, "tokens": flops / 6 / n, "loss": loss, **edges})
    return rows


def forecast(plan: Plan, family: str, law: dict[str, Any]) -> dict[str, Any]:
    target = target_row(family, law)
    loss = true_loss(law, target.n_params_matmul, target.tokens)
    measured = target.loss_valid if plan.measured else None
    entry = {"run": target.run, "family": family, "flops_exact": target.flops_exact, "tokens": target.tokens}
    outcome = {
        "measured": measured,
        "bits_per_byte": None if measured is None else measured / math.log(2) / 4.2,
        "relative_error": None if measured is None else loss / measured - 1,
        "inside": None if measured is None else loss * 0.985 <= measured <= loss * 1.015,
    }
    prediction = {"loss": loss, "low": loss * 0.985, "high": loss * 1.015, "level": 0.8}
    made = {"made_at": "2026-05-02T10:00:00Z"}
    sizes = {"n_params": target.n_params, "n_params_matmul": target.n_params_matmul}
    return entry | sizes | {"forecast": prediction} | outcome | made


def write_curves(folder: Path, rows: list[RunRow], plan: Plan) -> None:
    for member in rows:
        job = folder / "jobs" / member.trunk
        job.mkdir(parents=True)
        with (job / "curve.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["run", "phase", "step", "tokens", "loss_train", "lr", "tokens_per_s"])
            writer.writerows(curve_lines(member, plan.laws[member.family]))


def curve_lines(member: RunRow, law: dict[str, Any]) -> list[tuple[Any, ...]]:
    """A trunk a little above the law, and for a finished run a decay from it to the run's loss."""

    def trunk(step: int) -> float:
        return min(10.8, 1.05 * true_loss(law, member.n_params_matmul, step * 65536)) * (1 + 0.002 * math.sin(step))

    steps = range(1, member.steps + 1, max(member.steps // 450, 1))
    lines = [("", "trunk", step, step * 65536, trunk(step), 2e-3, 1e5) for step in steps]
    start = int(member.steps * 0.8)
    for step in range(start, member.steps + 1, max(member.steps // 150, 1)) if member.loss_valid else ():
        part = (step - start) / (member.steps - start)
        loss = trunk(start) + (float(member.loss_valid or 0) - trunk(start)) * part
        lines.append((member.run, "decay", step, step * 65536, loss, 1e-3, 1e5))
    return lines


def write_study(folder: Path, plan: Plan) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rows = rows_of(plan)
    write_table(rows, folder)
    write_curves(folder, rows, plan)
    (folder / "study.toml").write_text('[study]\nname = "tiny"\nbudgets = [1e15, 4e15]\n')
    environment = {"python": "3.11.7", "torch": "2.13.0", "machine": {"device": "NVIDIA H100", "cores": 16}}
    (folder / "plan.json").write_text(json.dumps({"runs": [], "environment": environment}))
    (folder / "data").mkdir()
    (folder / "data" / "dataset.json").write_text(json.dumps({"train": {"tokens": 10**9, "sha256": "ab" * 32}}))
    if plan.with_law:
        documents = {family: law_document(plan, law) for family, law in plan.laws.items()}
        one = next(iter(documents.values()))
        (folder / "law.json").write_text(json.dumps(one if len(documents) == 1 else {"families": documents}))
    if plan.with_forecast:
        targets = [forecast(plan, family, law) for family, law in plan.laws.items()]
        (folder / "forecast.json").write_text(json.dumps({"targets": targets}))
    return folder


def backtest(level: float = 0.8, coverage: float = 0.75) -> dict[str, Any]:
    """A backtest as `isoflop.laws.backtest` writes it."""
    near = {"forecasts": 9, "bias": 0.004, "absolute_error": 0.006, "coverage": 0.9, "width": 0.03}
    far = {"forecasts": 3, "bias": -0.02, "absolute_error": 0.02, "coverage": 0.5, "width": 0.05}
    bands = [
        {"above": 1.0, "up_to": 3.0, "errors": near | {"plain_bias": 0.01, "plain_absolute_error": 0.012}},
        {"above": 30.0, "up_to": None, "errors": far | {"plain_bias": None, "plain_absolute_error": None}},
    ]
    pooled = near | {"forecasts": 12, "bias": -0.011, "coverage": coverage, "plain_bias": 0.01}
    return {"level": level, "rows": 28, "folds": [], "bands": bands, "pooled": pooled, "notes": []}
