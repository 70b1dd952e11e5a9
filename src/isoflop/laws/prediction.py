"""What loss a new run will reach, from a fit: the calibrated forecast, and what the fit's certificate makes of it.

Point and interval are those of `isoflop.laws.calibrated`, made from the fit's own rows; the law's own value stands
beside them. A law that is refused gets no interval, unless by force.
"""

import msgspec
import numpy as np
import numpy.typing as npt

from isoflop.laws.calibrated import Forecast, calibrated_prediction
from isoflop.laws.certificate import Certificate, support
from isoflop.laws.fit import Fit
from isoflop.laws.soundness import Status


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """The loss expected of a new run with N = `n` and D = `d`, which lies in [low, high] with probability `level`.

    `law` is the fitted law's value. `low` and `high` are None where the law is refused, and `warning` says why.
    `beyond`: target over largest fitted compute, N and D. `status` is that of the law.
    """

    n: float
    d: float
    loss: float
    law: float
    low: float | None
    high: float | None
    level: float
    beyond: dict[str, float]
    status: Status
    warning: str | None


def predict(fit: Fit, n: npt.ArrayLike, d: npt.ArrayLike, level: float = 0.8, force: bool = False) -> list[Prediction]:
    """The loss of new runs at N and D (same length), with intervals calibrated to hold with probability `level`.

    `force` gives intervals even where the law is refused. Raises ValueError for sizes that are not positive and for a
    level outside (0, 1).
    """
    n, d = np.atleast_1d(np.asarray(n, float)), np.atleast_1d(np.asarray(d, float))
    if n.shape != d.shape or n.ndim != 1:
        raise ValueError(f"targets: n and d must be of one length; they have shapes {n.shape} and {d.shape}")
    if not (np.isfinite(n) & np.isfinite(d) & (n > 0) & (d > 0)).all():
        raise ValueError("targets: every n and d must be a positive, finite number")
    told = calibrated_prediction(fit.n, fit.d, fit.loss, n, d, level)
    said = _standing(fit.certificate, force)
    said += [note for note in told.notes if note not in fit.certificate.reasons]
    return [_prediction(fit, forecast, said, force) for forecast in told.forecasts]


def _standing(certificate: Certificate, force: bool) -> list[str]:
    """What a law that is not sound says of its forecasts."""
    if certificate.status == "sound":
        return []
    withheld = certificate.status == "refused" and not force
    because = "; ".join(certificate.reasons)
    return [("no interval: " if withheld else "") + f"the law is {certificate.status} ({because})"]


def _prediction(fit: Fit, forecast: Forecast, said: list[str], force: bool) -> Prediction:
    times, thin = support(fit.certificate.ranges, forecast.n, forecast.d)
    withheld = fit.certificate.status == "refused" and not force
    return Prediction(
        n=forecast.n,
        d=forecast.d,
        loss=forecast.loss,
        law=float(fit.law.loss(forecast.n, forecast.d)),
        low=None if withheld else forecast.low,
        high=None if withheld else forecast.high,
        level=forecast.level,
        beyond=times,
        status=fit.certificate.status,
        warning="; ".join([*said, *filter(None, [thin])]) or None,
    )
