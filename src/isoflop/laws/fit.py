"""Fit a scaling law to a table of runs: the optimum, its bootstrap, its certificate, and the document that holds them.

fit = fit_law(n, d, loss, delta=1e-3, bootstrap=1000, seed=0, clusters=None, convention="...")
predict(fit, n, d, level=0.8)            isoflop.laws.prediction: loss of a new run, with a calibrated interval
optimal(fit.law, flops, fit.draws)       isoflop.laws.optimum: compute-optimal N and D
fit_document(fit, targets=(n, d))        the dict that law.json holds and `isoflop fit --json` prints
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from isoflop.laws import certificate as certify
from isoflop.laws import influence as influential
from isoflop.laws import sensitivity as sensitive
from isoflop.laws.bootstrap import Bootstrap, bootstrap
from isoflop.laws.certificate import Certificate
from isoflop.laws.forms import Array, PowerSum
from isoflop.laws.optimum import Interval, Law
from isoflop.laws.profile import profiles
from isoflop.laws.solver import Problem, Solution, solve
from isoflop.laws.soundness import misfit, soundness, wild_row

DELTA = 1e-3  # Hoffmann et al. 2022, appendix D.3
START_EXPONENTS = (0.1, 0.16, 0.25, 0.4, 0.63, 1.0)  # every pair is a start; published exponents lie well within
CHECK_EVERY = 5  # of the starts, one in so many checks the bootstrap
MOST_ROWS = 5000  # that are resampled and left out one by one: the work grows as their square


@dataclass(frozen=True)
class _Rows:
    """A table in canonical order, so that the order of its file is no matter, not even to the draws."""

    n: Array
    d: Array
    loss: Array
    weight: Array
    labels: npt.NDArray[np.int64] | None  # of clusters
    conventions: dict[str, Array]  # other columns of N

    @property
    def table(self) -> tuple[Array, Array, Array]:
        return self.n, self.d, self.loss


@dataclass(frozen=True)
class _Optimum:
    """The problem that rows pose, and its solution."""

    form: PowerSum
    problem: Problem
    starts: Array
    solution: Solution

    @property
    def theta(self) -> Array:
        """Internal parameters, (p,)."""
        best: Array = self.solution.theta_Sp[int(self.solution.objective_S.argmin())]
        return best

    @property
    def residuals(self) -> Array:
        """log L - log Lhat."""
        told: Array = self.problem.log_loss - np.log(self.form.value(self.theta[None], self.problem.features))[0]
        return told


@dataclass(frozen=True)
class Fit:
    """A fitted law with all that intervals, certificates and figures need. Rows are in canonical (sorted) order."""

    law: Law
    certificate: Certificate
    n: Array
    d: Array
    loss: Array
    residuals: Array  # log L - log Lhat
    delta: float
    form: PowerSum
    theta: Array  # internal parameters of the optimum
    bootstrap: Bootstrap | None
    draws: Array | None  # published parameters (E, A, B, alpha, beta) of every replicate, (R, 5)


def fit_law(
    n: npt.ArrayLike,
    d: npt.ArrayLike,
    loss: npt.ArrayLike,
    *,
    delta: float = DELTA,
    bootstrap: int = 1000,
    seed: int = 0,
    clusters: Sequence[Any] | npt.NDArray[Any] | None = None,
    convention: str = "N and D as given; compute is 6 N D",
    n_rows: int | None = None,
    excluded: dict[str, int] | None = None,
    warnings: Sequence[str] = (),
    weights: npt.ArrayLike | None = None,
    doubts: Sequence[str] = (),
    conventions: Mapping[str, npt.ArrayLike] | None = None,
    diagnostics: bool | None = None,
) -> Fit:
    """Fit L = E + A/N^alpha + B/D^beta by the sum of Huber_delta(log Lhat - log L), all parameters at least 0.

    `n`, `d`, `loss`: one entry a run, positive. `bootstrap`: how many resamples (0: none, and so no intervals), drawn
    by run, or by cluster where `clusters` labels the runs. The order of the runs does not matter, not even to the
    draws. `n_rows`, `excluded` and `warnings` only pass into the certificate; `doubts` of the table's reader make its
    status weak. `weights`: how much a row counts (several seeds, little noise), scaled to a mean of 1. `conventions`:
    other columns of N, whose answers are compared. `diagnostics`: profiles, influence, sensitivity and the structure of
    residuals; where not said, whenever there is a bootstrap. Raises ValueError where the table cannot determine a law.
    """
    n, d, loss = (np.asarray(column, dtype=float) for column in (n, d, loss))
    _require(n, d, loss, delta, bootstrap)
    diagnosed = bool(bootstrap) if diagnostics is None else diagnostics
    require_manageable(len(n), bootstrap > 0 or diagnosed)
    rows = _canonical(n, d, loss, weights, clusters, conventions or {})
    optimum = _optimum(rows, delta)
    drawn = _bootstrap(optimum, rows, delta, bootstrap, seed)
    certificate = _certificate(optimum, rows, drawn, delta)
    if diagnosed:
        certificate = _diagnosed(certificate, optimum, rows, delta)
    certificate = msgspec.structs.replace(
        _judged(certificate, optimum, rows, tuple(doubts)),
        n_rows=len(n) if n_rows is None else n_rows,
        excluded=excluded or {},
        convention=convention,
    )
    certificate.warnings[:0] = warnings
    return _fit(certificate, optimum, rows, drawn, delta)


def _fit(certificate: Certificate, optimum: "_Optimum", rows: "_Rows", drawn: Bootstrap | None, delta: float) -> Fit:
    form = optimum.form
    return Fit(
        law=_law(form, optimum.theta),
        certificate=certificate,
        n=rows.n,
        d=rows.d,
        loss=rows.loss,
        residuals=optimum.residuals,
        delta=delta,
        form=form,
        theta=optimum.theta,
        bootstrap=drawn,
        draws=None if drawn is None else form.to_published(drawn.theta_Rp),
    )


def fit_document(
    fit: Fit, targets: tuple[npt.ArrayLike, npt.ArrayLike] | None = None, level: float = 0.8, force: bool = False
) -> dict[str, Any]:
    """The fit as plain JSON values: law, objective, certificate, intervals, predictions (one a target; see
    `isoflop.laws.prediction.predict` for `force`)."""
    from isoflop.laws.prediction import predict

    predictions = [] if targets is None else predict(fit, *targets, level=level, force=force)
    return {
        "law": msgspec.to_builtins(fit.law),
        "objective": fit.certificate.objective,
        "certificate": msgspec.to_builtins(fit.certificate),
        "intervals": msgspec.to_builtins(parameter_intervals(fit, level)),
        "predictions": msgspec.to_builtins(predictions),
    }


def parameter_intervals(fit: Fit, level: float) -> dict[str, Interval]:
    """Percentile bootstrap intervals of the law's parameters; empty without a bootstrap."""
    if fit.draws is None:
        return {}
    edges = np.quantile(fit.draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {
        name: Interval(float(low), float(high), level)
        for name, low, high in zip(fit.form.parameters, *edges, strict=True)
    }


def _require(n: Array, d: Array, loss: Array, delta: float, bootstrap: int) -> None:
    if n.ndim != 1 or not n.shape == d.shape == loss.shape:
        raise ValueError(f"n, d and loss must be of one length; they have shapes {n.shape}, {d.shape} and {loss.shape}")
    for name, column in (("n", n), ("d", d), ("loss", loss)):
        bad = np.flatnonzero(~(np.isfinite(column) & (column > 0)))
        if len(bad):
            raise ValueError(f"{name}, entry {bad[0] + 1}: {column[bad[0]]} is not a positive, finite number")
    if not (np.isfinite(delta) and delta > 0):
        raise ValueError(f"delta: {delta} is not a positive number; the customary value is {DELTA:g}")
    if bootstrap < 0:
        raise ValueError(f"bootstrap: {bootstrap} is not a number of resamples; 0 means none")
    points = len(np.unique(np.stack([n, d]), axis=1).T)
    if points < PowerSum.size:
        rows = f"{len(n)} rows" if points == len(n) else f"{len(n)} rows at {points} different (N, D)"
        raise ValueError(
            f"{rows} cannot determine the law's {PowerSum.size} parameters; at least {PowerSum.size} are needed"
        )
    for name, term, column in (("N", "A/N^alpha", n), ("D", "B/D^beta", d)):
        if np.ptp(np.log(column)) < 1e-9:
            raise ValueError(f"every row has the same {name}, {column[0]:g}: {term} cannot be fitted; vary {name}")


def require_manageable(rows: int, resampled: bool) -> None:
    """ValueError for a table whose resamples and diagnostics would take hours and tens of gigabytes."""
    if resampled and rows > MOST_ROWS:
        raise ValueError(
            f"{rows} rows: intervals and diagnostics are for at most {MOST_ROWS}; keep one row a run, such as its last "
            "checkpoint, or ask for the optimum alone with --bootstrap 0"
        )


def scaled_weights(weights: npt.ArrayLike | None, rows: int) -> Array:
    """Weights with a mean of 1; ones where there are none."""
    if weights is None:
        return np.ones(rows)
    weight = np.asarray(weights, float)
    if weight.shape != (rows,) or not (np.isfinite(weight) & (weight > 0)).all():
        raise ValueError(f"weights: there must be {rows}, one a row, every one positive and finite")
    scaled: Array = weight / weight.mean()
    return scaled


def _canonical(
    n: Array,
    d: Array,
    loss: Array,
    weights: npt.ArrayLike | None,
    clusters: Sequence[Any] | npt.NDArray[Any] | None,
    conventions: Mapping[str, npt.ArrayLike],
) -> _Rows:
    order = np.lexsort((loss, d, n))
    return _Rows(
        n=n[order],
        d=d[order],
        loss=loss[order],
        weight=scaled_weights(weights, len(n))[order],
        labels=None if clusters is None else labels_of(np.asarray(clusters)[order]),
        conventions={name: np.asarray(column, float)[order] for name, column in conventions.items()},
    )


def _optimum(rows: _Rows, delta: float) -> _Optimum:
    form = PowerSum.scaled(*rows.table)
    features = form.features(rows.n, rows.d)
    problem = Problem(form, features, np.log(rows.loss) - form.log_loss0, rows.weight)
    starts = form.starts(features, problem.log_loss, np.array(START_EXPONENTS))
    return _Optimum(form, problem, starts, solve(problem, starts, delta))


def _diagnosed(certificate: Certificate, optimum: _Optimum, rows: _Rows, delta: float) -> Certificate:
    """The certificate with profiles, influence, sensitivity and the structure of residuals, and their warnings."""
    (n, d, _), form, theta, problem = rows.table, optimum.form, optimum.theta, optimum.problem
    top = float((6 * n * d).max())
    influence = influential.influence(problem, form, theta, rows.table, delta, top, rows.labels)
    others = sensitive.alternatives(form, theta, problem, rows.table, delta, rows.conventions)
    structure = sensitive.residual_structure(n, d, optimum.residuals)
    told = influential.influence_warnings(influence) + sensitive.sensitivity_warnings(influence.answer, others, top)
    return msgspec.structs.replace(
        certificate,
        profile=profiles(form, theta, problem, n, d, top, delta, rows.labels),
        influence=influence,
        sensitivity=others,
        residual_structure=structure,
        warnings=[*certificate.warnings, *told, *sensitive.structure_warnings(structure)],
    )


def _judged(certificate: Certificate, optimum: _Optimum, rows: _Rows, doubts: tuple[str, ...]) -> Certificate:
    """The certificate with its status."""
    form, theta = optimum.form, optimum.theta
    few = [] if certificate.influence is None else influential.deciders(certificate.influence)
    named = list(zip(form.parameters, theta, form.upper, strict=True))
    found = soundness(
        *rows.table,
        floor=float(form.to_published(theta)[0]),
        vanished=[name for name, value, _ in named[1:] if value <= 0],
        capped=[f"{name} at its bound {value:g}" for name, value, upper in named if value >= upper],
        parameters=form.size,
        condition=certificate.condition_number,
        share=certificate.share_of_starts_at_optimum,
        levels=certificate.compute_levels,
        clustered=rows.labels is not None,
        wrong=doubts,
        doubts=(*misfit(certificate.residual_rms), *wild_row(rows.n, rows.d, optimum.residuals), *few),
    )
    told = [reason for reason in found.reasons if "duplicate" in reason or "floor E" in reason or reason in doubts]
    warnings = [*certificate.warnings, *told]
    return msgspec.structs.replace(certificate, status=found.status, reasons=found.reasons, warnings=warnings)


def labels_of(clusters: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Clusters numbered from 0 in the order they first appear."""
    _, first, inverse = np.unique(clusters, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse].astype(np.int64)


def _bootstrap(optimum: _Optimum, rows: _Rows, delta: float, replicates: int, seed: int) -> Bootstrap | None:
    if not replicates:
        return None
    starts = optimum.starts[::CHECK_EVERY]
    return bootstrap(optimum.problem, optimum.theta, starts, delta, replicates, seed, rows.labels)


def _law(form: PowerSum, theta: Array) -> Law:
    published = zip(form.parameters, form.to_published(theta).tolist(), strict=True)
    return Law(form=form.name, **dict(published))


def _certificate(optimum: _Optimum, rows: _Rows, drawn: Bootstrap | None, delta: float) -> Certificate:
    (n, d, _), form = rows.table, optimum.form
    shared = certify.evidence(form, optimum.problem.features, optimum.solution, optimum.residuals, delta, drawn)
    told = certify.bound_warnings(form, optimum.theta, certify.bounds_touched(form, optimum.theta))
    told += certify.design_warnings(n, d, shared["condition_number"], shared["share_of_starts_at_optimum"])
    told += certify.residual_warnings(n, d, optimum.residuals)
    told += [] if drawn is None else certify.bootstrap_warnings(form, drawn)
    return Certificate(
        **shared,
        n_rows=len(n),
        excluded={},
        ranges=certify.ranges(n, d),
        correlation_log_n_log_d=certify.correlation_of_logs(n, d),
        compute_levels=certify.compute_levels(n, d),
        data_digest=certify.digest(*rows.table),
        convention="",
        warnings=told,
    )
