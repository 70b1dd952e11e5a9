"""CPU seconds of our law fit beside the customary one: L-BFGS from a grid of 4,500 starts, one after another.

The grid and objective are those of Hoffmann et al. 2022 (appendix D.3): log-sum-exp parameters, Huber of log loss.

    python benchmarks/fit.py RUNS.csv --n 'Model Size' --flops 'Training FLOP' --loss loss --drop-highest 5

With --peers PYTHON, an interpreter (3.12 or later) that has them, PyPI's chinchilla and simple-scaling-laws stand
beside (`benchmarks/fit_peers.py`).
"""

import argparse
import csv
import itertools
import json
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize

from isoflop.laws.fit import fit_law
from isoflop.laws.tables import Columns, read_runs

GRID = (
    np.arange(-1, 1.1, 0.5),
    np.arange(0, 26, 5),
    np.arange(0, 26, 5),
    np.arange(0, 2.1, 0.5),
    np.arange(0, 2.1, 0.5),
)


def objective(u, log_n, log_d, log_loss, delta):
    """Sum of Huber_delta(log Lhat - log L) at (log E, log A, log B, alpha, beta), and its gradient."""
    terms = np.stack([np.full(len(log_n), u[0]), u[1] - u[3] * log_n, u[2] - u[4] * log_d])
    log_sum = np.logaddexp.reduce(terms)
    residual = log_sum - log_loss
    pull = np.clip(residual, -delta, delta)
    share = np.exp(terms - log_sum) * pull
    gradient = np.array([*share.sum(axis=1), -(share[1] * log_n).sum(), -(share[2] * log_d).sum()])
    return (pull * (residual - pull / 2)).sum(), gradient


def grid_search(n, d, loss, delta, starts, seed, gradient=True):
    """Objectives where L-BFGS ended from a random `starts` of the grid, CPU seconds, and the grid's size."""
    grid = np.array(list(itertools.product(*GRID)))
    chosen = grid[np.random.default_rng(seed).permutation(len(grid))[:starts]]
    data = (np.log(n), np.log(d), np.log(loss), delta)
    value = objective if gradient else lambda *point: objective(*point)[0]
    began = time.process_time()
    found = [minimize(value, u, data, "L-BFGS-B", jac=gradient).fun for u in chosen]
    return np.array(found), time.process_time() - began, len(grid)


def ours(n, d, loss, delta, **settings):
    """Our fit and its CPU seconds: the least of three, as other work on the machine only adds."""
    seconds = []
    for _ in range(3):
        began = time.process_time()
        fit = fit_law(n, d, loss, delta=delta, **settings)
        seconds.append(time.process_time() - began)
    return fit, min(seconds)


def peers(python, n, d, loss, delta):
    """What `fit_peers.py` measured under another interpreter, one entry a row of the table."""
    with tempfile.NamedTemporaryFile("w", suffix=".csv", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["N", "D", "loss"])
        writer.writerows(zip(n, d, loss, strict=True))
        file.flush()
        script = Path(__file__).with_name("fit_peers.py")
        command = [python, "-W", "ignore", script, file.name, "--delta", str(delta)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    for name in ("--n", "--d", "--flops", "--loss"):
        parser.add_argument(name)
    parser.add_argument("--drop-highest", type=int, default=0, help="leave out this many rows of highest loss")
    parser.add_argument("--delta", type=float, default=1e-3)
    parser.add_argument("--starts", type=int, default=100, help="of the grid; time is extrapolated to all of it")
    parser.add_argument("--bootstrap", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", metavar="PYTHON", help="an interpreter that has the peers installed")
    args = parser.parse_args()
    runs = read_runs(args.runs, Columns(args.n, args.d, args.flops, args.loss))
    kept = np.argsort(runs.loss)[: len(runs.loss) - args.drop_highest]
    rows = runs.n[kept], runs.d[kept], runs.loss[kept]

    fit, seconds = ours(*rows, args.delta, bootstrap=0)
    best, share = fit.certificate.objective, fit.certificate.share_of_starts_at_optimum
    table = Table(title=f"{len(kept)} rows, delta {args.delta:g}", title_justify="left")
    for column in ("method", "starts", "CPU s", "ratio", "objective", "at our optimum"):
        table.add_column(column, justify="right", overflow="fold")
    table.add_row("isoflop", str(fit.certificate.n_starts), f"{seconds:.3f}", "1", f"{best:.10g}", f"{share:.0%}")
    clusters = np.arange(len(kept)) // 2  # pairs of rows, as checkpoints would be
    for what, settings in (
        (f"+ {args.bootstrap} cluster bootstraps", {"clusters": clusters, "diagnostics": False}),
        (f"+ {args.bootstrap} and the whole certificate", {"diagnostics": True}),
    ):
        _, spent = ours(*rows, args.delta, bootstrap=args.bootstrap, **settings)
        table.add_row(what, "", f"{spent:.2f}", "", "", "")
    for what, gradient in (("scipy L-BFGS grid, exact gradient", True), ("scipy L-BFGS grid, differences", False)):
        found, spent, size = grid_search(*rows, args.delta, args.starts, args.seed, gradient)
        whole, near = spent * size / args.starts, (found <= best * (1 + 1e-6)).mean()
        told = f"{whole:.0f} (from {args.starts} starts)"
        table.add_row(what, str(size), told, f"{whole / seconds:.0f}", f"{found.min():.10g}", f"{near:.0%}")
    for one in peers(args.peers, *rows, args.delta) if args.peers else ():
        told = f"{one['seconds']:.2f}" + (f" (from {one['from']} starts)" if one["from"] else "")
        starts = str(one["starts"] or "")
        table.add_row(one["method"], starts, told, f"{one['seconds'] / seconds:.0f}", f"{one['objective']:.10g}", "")
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
