"""What a task's accuracy will be: a law forecasts the loss, a sigmoid turns loss into accuracy (Bhagia et al. 2024).

Fitted in two steps, forecast in one: every bootstrap draw of the law is joined with a draw of the sigmoid, so that the
interval carries both errors. The loss may be of the task's own answers or of any text the law was fitted to.
"""

import msgspec
import numpy as np
import numpy.typing as npt

from isoflop.laws.families import TASK_ACCURACY
from isoflop.laws.fit import Fit
from isoflop.laws.forms import Array
from isoflop.laws.general import FormulaFit, fit_formula


class TaskForecast(msgspec.Struct, frozen=True, kw_only=True):
    """Loss and accuracy expected of a run with N = `n`, D = `d`; ends None where either step has no bootstrap."""

    n: float
    d: float
    loss: float
    accuracy: float
    low: float | None
    high: float | None
    level: float
    warning: str | None


def fit_accuracy(
    loss: npt.ArrayLike, accuracy: npt.ArrayLike, *, chance: float | None = None, bootstrap: int = 1000, seed: int = 0
) -> FormulaFit:
    """Fit accuracy over loss; `chance` (such as .25 of four choices) is held where it is given.

    Raises ValueError for accuracies outside 0 to 1 and for tables the sigmoid cannot be determined by.
    """
    accuracy = np.asarray(accuracy, float)
    if not ((accuracy >= 0) & (accuracy <= 1)).all():
        raise ValueError("accuracy: every value must lie between 0 and 1; percentages are to be divided by 100")
    fixed = {} if chance is None else {"low": chance}
    # Errors of accuracies are of a few questions in a thousand: Huber's corner lies there, not at 1e-3.
    return fit_formula(TASK_ACCURACY, {"L": loss}, accuracy, delta=0.02, fixed=fixed, bootstrap=bootstrap, seed=seed)


def forecast_task(
    law: Fit, task: FormulaFit, n: npt.ArrayLike, d: npt.ArrayLike, level: float = 0.8
) -> list[TaskForecast]:
    """Accuracy at N and D (same length). The interval is of the forecast accuracy, both steps' errors joined."""
    sizes = np.atleast_1d(np.asarray(n, float)), np.atleast_1d(np.asarray(d, float))
    return [_forecast(law, task, float(one_n), float(one_d), level) for one_n, one_d in zip(*sizes, strict=True)]


def _forecast(law: Fit, task: FormulaFit, n: float, d: float, level: float) -> TaskForecast:
    loss = float(law.law.loss(n, d))
    accuracy = float(task.form.prediction(task.theta[None], {"L": np.array([loss])})[0, 0])
    seen = task.certificate.ranges["L"]
    outside = f"loss of {loss:.4g} is outside the fitted {seen.low:.4g} to {seen.high:.4g}"
    low, high = (None, None) if law.draws is None or task.bootstrap is None else _ends(law, task, n, d, level)
    return TaskForecast(
        n=n,
        d=d,
        loss=loss,
        accuracy=accuracy,
        low=None if low is None else min(low, accuracy),
        high=None if high is None else max(high, accuracy),
        level=level,
        warning=None if seen.low <= loss <= seen.high else outside,
    )


def _ends(law: Fit, task: FormulaFit, n: float, d: float, level: float) -> tuple[float, float]:
    assert law.draws is not None and task.bootstrap is not None
    E, A, B, alpha, beta = law.draws.T
    losses: Array = E + A * n**-alpha + B * d**-beta
    every = task.form.prediction(task.bootstrap.theta_Rp, {"L": losses})  # (draws of the task, draws of the law)
    noise = np.quantile(task.residuals, (np.arange(16) + 0.5) / 16)
    joined = every[:: max(1, len(every) // 200), :: max(1, every.shape[1] // 200), None] + noise
    low, high = np.quantile(joined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
