"""Does a metric jump, or does it follow a loss that falls smoothly? (Schaeffer et al. 2023; Wei et al. 2022)

Accuracy and exact match are sharp functions of the loss: a metric may leap where the loss only goes on falling. Two
steps tell the cases apart. A sigmoid of the loss is fitted to the metric (`isoflop.laws.task`); then a step in compute,
at the threshold where it helps most, is offered to what is left. Were there an ability that switches on, the step would
explain what the loss cannot. Its test is the largest over all thresholds, by wild bootstrap: residuals keep or change
their sign at random, whole clusters at once, so neither unequal noise nor checkpoints of one run mislead it.

Legend: n rows, t thresholds, R draws.
"""

import msgspec
import numpy as np
import numpy.typing as npt

from isoflop.laws.forms import Array
from isoflop.laws.general import FormulaFit
from isoflop.laws.task import fit_accuracy

DRAWS = 1999
LEAST = 8  # rows: four parameters, a step, and something to judge them by
EDGE = 2  # rows on either side of a threshold, at least
SURE = 0.05


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """What is added to the metric beyond what the loss explains: `size` above `flops` (or for B); p of none."""

    size: float
    flops: float | None
    p_value: float


class Emergence(msgspec.Struct, frozen=True, kw_only=True):
    """A metric through its loss. `explained`: no step is left that chance would not make."""

    explained: bool
    sigmoid: dict[str, float]
    r_squared: float  # of the metric by the sigmoid of the loss
    residual_rms: float  # in units of the metric
    steepest_metric: (
        float  # the share of the metric's whole rise that comes within the steepest factor of ten of compute
    )
    steepest_loss: float  # the same of the loss's fall
    step: Step
    between: Step | None  # B over A at equal loss; None for one ladder
    rows: int


def explain(
    flops: npt.ArrayLike,
    loss: npt.ArrayLike,
    metric: npt.ArrayLike,
    *,
    chance: float | None = None,
    clusters: npt.NDArray[np.int64] | None = None,
    is_b: npt.ArrayLike | None = None,
    seed: int = 0,
) -> Emergence:
    """Fit the metric (0 to 1) through the loss, and test for what the loss leaves over.

    One entry a run: compute, loss and metric; `clusters` number what belongs together; `is_b` (0 or 1) says of which of
    two ladders a run is. `chance` holds the metric's floor. ValueError for fewer than eight rows and for metrics
    outside 0 to 1.
    """
    flops, loss, metric = (np.asarray(column, float) for column in (flops, loss, metric))
    if len(loss) < LEAST:
        raise ValueError(f"metric: {len(loss)} rows cannot tell a jump from a steep curve; at least {LEAST} are needed")
    if not np.ptp(metric) > 0:
        raise ValueError(f"metric: every row has {metric[0]:g}; nothing emerges that could be explained")
    fit = fit_accuracy(loss, metric, chance=chance, bootstrap=0)
    fitted, jacobian = _sigmoid(fit, loss)
    residual = metric - fitted
    labels = np.arange(len(loss)) if clusters is None else clusters
    thresholds = _thresholds(flops)
    step = _largest(residual, jacobian, (flops > thresholds[:, None]).astype(float), labels, seed)
    between = None if is_b is None else _largest(residual, jacobian, np.asarray(is_b, float)[None], labels, seed)
    return Emergence(
        explained=step[2] >= SURE,
        sigmoid=fit.parameters,
        r_squared=float(1 - (residual**2).sum() / ((metric - metric.mean()) ** 2).sum()),
        residual_rms=float(np.sqrt((residual**2).mean())),
        steepest_metric=_steepest(flops, metric),
        steepest_loss=_steepest(flops, loss),
        step=Step(size=step[1], flops=float(thresholds[step[0]]), p_value=step[2]),
        between=None if between is None else Step(size=between[1], flops=None, p_value=between[2]),
        rows=len(loss),
    )


def _sigmoid(fit: FormulaFit, loss: Array) -> tuple[Array, Array]:
    """The fitted metric, (n,), and its derivatives by the parameters that moved freely, (p, n)."""
    theta = fit.theta
    moved = theta + np.diag(1e-6 * np.maximum(np.abs(theta), 1.0))
    values = fit.form.prediction(np.concatenate([theta[None], moved]), {"L": loss})
    jacobian = values[1:] - values[0]
    size = np.sqrt((jacobian**2).sum(axis=1, keepdims=True))
    return values[0], (jacobian / np.maximum(size, 1e-300))[size[:, 0] > 1e-12]


def _thresholds(flops: Array) -> Array:
    """Computes with enough rows at most there, and enough beyond."""
    ordered = np.sort(flops)
    inner = np.unique(ordered[EDGE - 1 : -EDGE])
    wanted: Array = inner[(flops[:, None] > inner).sum(axis=0) >= EDGE]
    return wanted


def _largest(
    residual: Array, jacobian: Array, steps_tn: Array, labels: npt.NDArray[np.int64], seed: int
) -> tuple[int, float, float]:
    """Which step explains most of the residual, its size, and the chance of one as good where there is none."""
    basis = np.linalg.qr(jacobian.T)[0]
    leverage = (basis**2).sum(axis=1)

    def without(rows: Array) -> Array:
        """Rows less what the sigmoid's parameters can follow."""
        left: Array = rows - (rows @ basis) @ basis.T
        return left

    free = without(steps_tn)
    norm = np.maximum(np.sqrt((free**2).sum(axis=1)), 1e-12)
    score = free @ residual / norm
    best = int(np.abs(score).argmax())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(DRAWS, int(labels.max()) + 1))[:, labels]
    drawn = without(signs * (residual / np.sqrt(np.maximum(1 - leverage, 0.1))))
    chance = np.abs(drawn @ free.T / norm).max(axis=1)
    p_value = (1 + (chance >= abs(score[best]) * (1 - 1e-12)).sum()) / (DRAWS + 1)
    return best, float(score[best] / norm[best]), float(p_value)


def _steepest(flops: Array, values: Array) -> float:
    """The share of the change from the cheapest to the dearest runs that comes within one factor of ten of compute."""
    levels = np.unique(np.round(np.log10(flops), 1))
    near = np.round(np.log10(flops), 1)
    means = np.array([values[near == level].mean() for level in levels])
    whole = means[-1] - means[0]
    if whole == 0 or len(levels) < EDGE:
        return 0.0
    starts = np.concatenate([levels, levels - 1])
    rises = np.interp(starts + 1, levels, means) - np.interp(starts, levels, means)
    return float(np.clip((rises / whole).max(), 0.0, 1.0))
