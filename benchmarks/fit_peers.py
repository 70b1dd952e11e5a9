"""CPU seconds of peers on the same rows, for `benchmarks/fit.py --peers`; prints JSON, and needs Python 3.12 or later.

    pip install chinchilla==0.2.0 simple-scaling-laws==0.2.0
    python benchmarks/fit_peers.py ROWS.csv --delta 1e-3        columns N, D, loss

Each peer is asked for what it offers: `chinchilla` for its BFGS from a grid of starts (the customary grid thinned, the
time scaled to all of it) under the customary Huber loss; `simple-scaling-laws` for its least squares, with the
fewest bootstrap draws it takes and with 4,000. Objectives are of the losses that each predicts.
"""

import argparse
import csv
import json
import resource
import tempfile
from pathlib import Path

import numpy as np


def huber_sum(predicted, loss, delta):
    """The customary objective of predicted losses."""
    residual = np.log(predicted) - np.log(loss)
    clipped = np.clip(residual, -delta, delta)
    return float((clipped * (residual - clipped / 2)).sum())


def cpu():
    """CPU seconds of this process and of the children it has waited for."""
    return sum(
        use.ru_utime + use.ru_stime for use in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def chinchilla(n, d, loss, delta):
    """Its BFGS from every start of a thinned grid."""
    from chinchilla import Chinchilla
    from chinchilla._metrics import log_huber

    grid = {
        "e": np.array([-1.0, 0.0, 1.0]),
        "a": np.array([0.0, 10.0, 20.0]),
        "b": np.array([0.0, 10.0, 20.0]),
        "alpha": np.array([0.0, 1.0]),
        "beta": np.array([0.0, 1.0]),
    }
    starts = int(np.prod([len(axis) for axis in grid.values()]))
    with tempfile.TemporaryDirectory() as folder:
        model = Chinchilla(folder, param_grid=grid, loss_fn=lambda y, p: log_huber(y, p, delta), log_level=50)
        for one in zip(n.tolist(), d.tolist(), loss.tolist(), strict=True):
            model.append(C=6 * one[0] * one[1], N=one[0], D=one[1], loss=one[2])
        model.visualizer.optim = lambda *_, **__: None  # its time is for fitting alone
        began = cpu()
        model.fit()
        spent = cpu() - began
    found = huber_sum(model.predict_loss(n, d), loss, delta)
    return {
        "method": "chinchilla 0.2.0, BFGS grid",
        "starts": 4500,
        "seconds": spent * 4500 / starts,
        "objective": found,
        "from": starts,
    }


def simple_scaling_laws(n, d, loss, delta, draws):
    """Its separable power law by least squares, with so many bootstrap draws."""
    import polars as pl
    from simple_scaling_laws import fit

    sizes = {"model_size__params": n, "dataset_size__tokens": d}
    runs = {"training_run_id": [f"run{k}" for k in range(len(n))], "test_set_id": ["one"] * len(n)}
    began = cpu()
    model = fit(pl.DataFrame(runs | sizes | {"test_loss__nats": loss}), law="separable-power", n_draws=draws, seed=0)
    spent = cpu() - began
    points = pl.DataFrame({"point_id": runs["training_run_id"]} | sizes)
    predicted = model.predict(points, quantiles=[0.5])["test_loss__nats__median"].to_numpy()
    return {
        "method": f"simple-scaling-laws 0.2.0, least squares, {draws} draws",
        "starts": None,
        "seconds": spent,
        "objective": huber_sum(predicted, loss, delta),
        "from": None,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path)
    parser.add_argument("--delta", type=float, default=1e-3)
    args = parser.parse_args()
    with args.rows.open(newline="") as file:
        table = list(csv.DictReader(file))
    n, d, loss = (np.array([float(row[name]) for row in table]) for name in ("N", "D", "loss"))
    others = [simple_scaling_laws(n, d, loss, args.delta, draws) for draws in (2, 4000)]
    print(json.dumps([chinchilla(n, d, loss, args.delta), *others]))


if __name__ == "__main__":
    main()
