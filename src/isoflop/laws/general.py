"""Fit any formula to any columns, with a certificate: what `isoflop fit --form NAME` and `--formula` do.

fit = fit_formula(formula, {"N": n, "D": d}, loss, bootstrap=1000)
fit.predict({"N": [...], "D": [...]}, level=0.8)
formula_document(fit, targets)           the same keys as `isoflop.laws.fit.fit_document`
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from isoflop.laws import certificate as certify
from isoflop.laws.bootstrap import CHUNK, Bootstrap, bootstrap
from isoflop.laws.certificate import Evidence, Range
from isoflop.laws.expression import Evaluator
from isoflop.laws.expression import names as names_in
from isoflop.laws.fit import labels_of, require_manageable, scaled_weights
from isoflop.laws.forms import SMALLEST, Array
from isoflop.laws.formula import Formula, FormulaForm, Prior
from isoflop.laws.optimum import Interval
from isoflop.laws.parse import parse
from isoflop.laws.profile import Held, Profile, profile, slope_of_pull
from isoflop.laws.sensitivity import DELTAS, rank_correlation
from isoflop.laws.solver import Problem, Solution, solve
from isoflop.laws.soundness import (
    FEW_STARTS,
    ILL_CONDITIONED,
    ROWS_PER_PARAMETER,
    Soundness,
    design_doubts,
    duplicates,
    gaps,
    misfit,
    verdict,
)

RESIDUAL_QUANTILES = 64
TOLD = 5
STEPS = 80


class RunInfluence(msgspec.Struct, frozen=True, kw_only=True):
    """A run left out, and the prediction at the row of least loss without it."""

    row: int
    residual: float
    prediction: float


class FormCertificate(Evidence, frozen=True, kw_only=True):
    """The evidence for a fitted formula.

    Residuals are of the target's logarithm, or of the target itself where the form says so. `profile` is of the
    parameters that are not amplitudes. `influence` lists the runs that move the prediction at the row of least loss
    most. `sensitivity`: the parameters at other deltas.
    """

    profile: dict[str, Profile]
    influence: list[RunInfluence]
    sensitivity: dict[str, dict[str, float]]
    residual_correlation: dict[str, float]


class FormPrediction(msgspec.Struct, frozen=True, kw_only=True):
    """The target expected of a new run at these columns, and an interval for the run."""

    columns: dict[str, float]
    loss: float
    low: float | None
    high: float | None
    level: float
    warning: str | None


@dataclass(frozen=True)
class FormulaFit:
    """A fitted formula. Rows are in canonical (sorted) order."""

    formula: Formula  # as fitted, fixed parameters written into it
    parameters: dict[str, float]
    certificate: FormCertificate
    columns: dict[str, Array]
    target: Array
    residuals: Array
    form: FormulaForm
    theta: Array
    bootstrap: Bootstrap | None

    @property
    def derived(self) -> dict[str, float]:
        """Other published constants that follow from the parameters."""
        constants = {name: np.array(value) for name, value in self.parameters.items()}
        with np.errstate(all="ignore"):
            return {name: float(Evaluator({}, constants)(parse(text, ()))) for name, text in self.formula.derived}

    def predict(
        self, columns: Mapping[str, npt.ArrayLike], level: float = 0.8, force: bool = False
    ) -> list[FormPrediction]:
        """Forecasts of new runs; of a refused formula without an interval, unless by force. Raises ValueError where a
        column of the formula is missing or a level is no share."""
        if not 0 < level < 1:
            raise ValueError(f"level: {level} must lie strictly between 0 and 1, such as 0.8")
        wanted = {name: np.atleast_1d(np.asarray(columns[name], float)) for name in self.formula.columns}
        points = self.form.prediction(self.theta[None], wanted)[0]
        ends = self._ends(wanted, level) if force or self.certificate.status != "refused" else None
        return [self._prediction(wanted, row, float(point), ends, level) for row, point in enumerate(points)]

    def _prediction(
        self, wanted: dict[str, Array], row: int, point: float, ends: Array | None, level: float
    ) -> FormPrediction:
        at = {name: float(values[row]) for name, values in wanted.items()}
        low, high = (None, None) if ends is None else (min(float(ends[0, row]), point), max(float(ends[1, row]), point))
        far = [
            f"{name} of {value:.4g} is outside the fitted {r.low:.4g} to {r.high:.4g}"
            for name, value in at.items()
            if not (r := self.certificate.ranges[name]).low <= value <= r.high
        ]
        told = [standing] if (standing := self._standing(ends)) else []
        warning = "; ".join([*told, *far]) or None
        return FormPrediction(columns=at, loss=point, low=low, high=high, level=level, warning=warning)

    def _standing(self, ends: Array | None) -> str | None:
        """What a formula that is not sound says of its forecasts."""
        certificate = self.certificate
        if certificate.status == "sound":
            return None
        start = "no interval: " if ends is None and self.bootstrap is not None else ""
        return f"{start}the law is {certificate.status} ({'; '.join(certificate.reasons)})"

    def _ends(self, wanted: dict[str, Array], level: float) -> Array | None:
        spare = len(self.target) - self.form.size
        if self.bootstrap is None or spare < 1:
            return None
        drawn = self.form.prediction(self.bootstrap.theta_Rp, wanted)
        share = (np.arange(RESIDUAL_QUANTILES) + 0.5) / RESIDUAL_QUANTILES
        noise = np.quantile(self.residuals, share) * np.sqrt(len(self.target) / spare)
        if self.formula.log:
            spread = drawn[:, None] * np.exp(noise)[None, :, None]
        else:
            spread = drawn[:, None] + noise[None, :, None]
        edges = [(1 - level) / 2, (1 + level) / 2]
        return np.asarray(np.quantile(spread.reshape(-1, drawn.shape[1]), edges, axis=0))


def fit_formula(
    formula: Formula,
    columns: Mapping[str, npt.ArrayLike],
    target: npt.ArrayLike,
    *,
    delta: float = 1e-3,
    bootstrap: int = 1000,
    seed: int = 0,
    clusters: Sequence[Any] | npt.NDArray[Any] | None = None,
    weights: npt.ArrayLike | None = None,
    fixed: Mapping[str, float] | None = None,
    priors: Mapping[str, Prior] | None = None,
    convention: str = "columns as given",
    n_rows: int | None = None,
    excluded: dict[str, int] | None = None,
    doubts: Sequence[str] = (),
) -> FormulaFit:
    """Fit `formula` by the sum of Huber_delta of residuals; arguments as in `isoflop.laws.fit.fit_law`.

    `fixed` holds parameters at published values; `priors` draw them towards a centre, as strongly as the table's own
    noise says one standard deviation should. Raises ValueError where the table cannot determine the formula.
    """
    formula = formula.fixed(fixed or {})
    table, y = _table(formula, columns, target)
    require_manageable(len(y), bootstrap > 0)
    order = np.lexsort((y, *reversed(table.values())))
    labels = None if clusters is None else labels_of(np.asarray(clusters)[order])
    weight = scaled_weights(weights, len(y))[order]
    table, y = {name: values[order] for name, values in table.items()}, y[order]
    problem, starts, solution = _optimum(formula, table, y, weight, priors or {}, delta)
    form = problem.form
    assert isinstance(form, FormulaForm)
    theta = solution.theta_Sp[int(solution.objective_S.argmin())]
    drawn = _bootstrap(problem, theta, starts, delta, bootstrap, seed, labels, len(form.priors))
    plain = replace(form, priors=())
    rows = Problem(plain, plain.features(table), plain.target(y), weight)
    residuals = rows.log_loss - np.log(plain.value(theta[None], rows.features))[0]
    certificate = _certificate(problem, rows, table, y, solution, drawn, residuals, delta, labels)
    judged = _with_doubts(certificate, doubts)
    certificate = msgspec.structs.replace(
        certificate,
        n_rows=len(y) if n_rows is None else n_rows,
        excluded=excluded or {},
        convention=convention,
        status=judged.status,
        reasons=judged.reasons,
        warnings=[*certificate.warnings, *doubts],
    )
    parameters = dict(zip(form.parameters, form.to_published(theta).tolist(), strict=True))
    return FormulaFit(formula, parameters, certificate, table, y, residuals, plain, theta, drawn)


def _optimum(
    formula: Formula, table: dict[str, Array], y: Array, weight: Array, priors: Mapping[str, Prior], delta: float
) -> tuple[Problem, Array, Solution]:
    """The problem (with rows of priors), the starts it was solved from, and its solution."""
    form = FormulaForm.scaled(formula, table, y)
    problem = Problem(form, form.features(table), form.target(y), weight)
    starts = form.starts(problem.features, problem.log_loss)
    solution = solve(problem, starts, delta)
    if not priors:
        return problem, starts, solution
    problem = _with_priors(form, problem, solution, table, y, priors, delta)
    return problem, solution.theta_Sp, solve(problem, solution.theta_Sp, delta)


def _with_doubts(certificate: FormCertificate, doubts: Sequence[str]) -> Soundness:
    """The certificate's own judgement, with the mistakes that the table's reader found, which refuse any formula."""
    told = [*certificate.reasons, *doubts]
    refused = bool(doubts) or certificate.status == "refused"
    return verdict(told, []) if refused else verdict([], told)


def formula_document(
    fit: FormulaFit, targets: Mapping[str, npt.ArrayLike] | None = None, level: float = 0.8, force: bool = False
) -> dict[str, Any]:
    """The fit as plain JSON values, with the keys of `isoflop.laws.fit.fit_document`, `force` as there."""
    intervals = {}
    if fit.bootstrap is not None:
        drawn = fit.form.to_published(fit.bootstrap.theta_Rp)
        edges = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2], axis=0)
        names = zip(fit.form.parameters, *edges.tolist(), strict=True)
        intervals = {name: Interval(low, high, level) for name, low, high in names}
    return {
        "law": {"form": fit.formula.text, "name": fit.formula.name, **fit.parameters, **fit.derived},
        "objective": fit.certificate.objective,
        "certificate": msgspec.to_builtins(fit.certificate),
        "intervals": msgspec.to_builtins(intervals),
        "predictions": [] if targets is None else msgspec.to_builtins(fit.predict(targets, level, force)),
    }


def _table(
    formula: Formula, columns: Mapping[str, npt.ArrayLike], target: npt.ArrayLike
) -> tuple[dict[str, Array], Array]:
    missing = [name for name in formula.columns if name not in columns]
    if missing:
        told = ", ".join(f"--column {name}=COL" for name in missing)
        raise ValueError(f"form {formula.name} needs {', '.join(formula.columns)}; add {told}")
    y = np.asarray(target, float)
    table = {name: np.asarray(columns[name], float) for name in formula.columns}
    for name, values in [*table.items(), ("loss", y)]:
        if values.shape != y.shape or values.ndim != 1:
            raise ValueError(f"{name} has shape {values.shape}, the loss {y.shape}; they must be of one length")
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise ValueError(f"{name}, entry {bad[0] + 1}: {values[bad[0]]} is not a finite number")
    if formula.log and (y <= 0).any():
        row = int(np.flatnonzero(y <= 0)[0])
        raise ValueError(
            f"loss, entry {row + 1}: {y[row]} has no logarithm; residuals of the loss itself: --residual plain"
        )
    if np.ptp(y) == 0:
        raise ValueError(f"every row has the same loss, {y[0]:g}: there is nothing to fit")
    points = len(np.unique(np.stack(list(table.values())), axis=1).T)
    if points < len(formula.coefficients):
        raise ValueError(
            f"{points} different rows cannot determine the {len(formula.coefficients)} parameters of {formula.name}"
        )
    return table, y


def _with_priors(
    form: FormulaForm,
    problem: Problem,
    solution: Solution,
    table: dict[str, Array],
    y: Array,
    priors: Mapping[str, Prior],
    delta: float,
) -> Problem:
    """The problem with a row for every prior, weighted by the dispersion of the fit without them."""
    theta = solution.theta_Sp[int(solution.objective_S.argmin())]
    residuals = np.log(form.value(theta[None], problem.features))[0] - problem.log_loss
    slope = slope_of_pull(residuals, delta, form.size)
    spare = max(len(residuals) - form.size, 1)
    dispersion = float((np.clip(residuals, -delta, delta) ** 2).sum() / spare / slope)
    inside = {name: _internal_prior(form, name, prior) for name, prior in priors.items()}
    held = form.with_priors(inside, delta)
    strengths = [dispersion / (prior.spread * held.prior_scale) ** 2 for prior in inside.values()]
    weights = np.concatenate([problem.weights, strengths])
    return Problem(held, held.features(table), held.target(y), weights)


def _internal_prior(form: FormulaForm, name: str, prior: Prior) -> Prior:
    """The prior in internal units: for parameters that are a constant multiple of their internal selves."""
    if name not in form.parameters:
        raise ValueError(f"--prior {name}: the form's parameters are {', '.join(form.parameters)}")
    if not prior.spread > 0 or not np.isfinite([prior.centre, prior.spread]).all():
        raise ValueError(f"--prior {name}: the spread must be positive and finite; --fix holds a parameter still")
    k = form.parameters.index(name)
    if set(names_in(form.published[k])[0]) != {name}:
        raise ValueError(
            f"--prior {name}: is an amplitude, whose size hangs on its exponent; give the exponent's prior"
        )
    unit = float(form.to_published(np.ones(form.size))[k])
    return Prior(prior.centre / unit, prior.spread / unit)


def _bootstrap(
    problem: Problem,
    theta: Array,
    starts: Array,
    delta: float,
    replicates: int,
    seed: int,
    labels: npt.NDArray[np.int64] | None,
    kept_rows: int,
) -> Bootstrap | None:
    if not replicates:
        return None
    return bootstrap(problem, theta, starts[:: max(1, len(starts) // 8)], delta, replicates, seed, labels, kept_rows)


def _certificate(
    problem: Problem,
    rows: Problem,
    table: dict[str, Array],
    y: Array,
    solution: Solution,
    drawn: Bootstrap | None,
    residuals: Array,
    delta: float,
    labels: npt.NDArray[np.int64] | None,
) -> FormCertificate:
    form = rows.form
    assert isinstance(form, FormulaForm)
    shared = certify.evidence(form, rows.features, solution, residuals, delta, drawn)
    theta = solution.theta_Sp[int(solution.objective_S.argmin())]
    told = [] if drawn is None else certify.bootstrap_warnings(form, drawn)
    judged = _judged(form, theta, table, y, shared, labels is not None)
    return FormCertificate(
        **shared,
        n_rows=len(y),
        excluded={},
        ranges={name: _range(values) for name, values in table.items()},
        data_digest=_digest(table, y),
        convention="",
        profile={} if drawn is None else _profiles(problem, theta, delta, labels),
        influence=[] if drawn is None else _influence(problem, rows, theta, residuals, y, delta),
        sensitivity={} if drawn is None else _sensitivity(problem, theta, delta),
        residual_correlation={name: rank_correlation(values, residuals) for name, values in table.items()},
        status=judged.status,
        reasons=judged.reasons,
        warnings=[*judged.reasons, *told],
    )


def _judged(
    form: FormulaForm, theta: Array, table: dict[str, Array], y: Array, shared: dict[str, Any], clustered: bool
) -> Soundness:
    """The status of a formula, which knows less of itself than the law of N and D does."""
    rows, condition, rms = shared["n_used"], shared["condition_number"], shared["residual_rms"]
    share = shared["share_of_starts_at_optimum"]
    constant = [name for name, values in table.items() if np.ptp(values) <= 1e-12 * np.abs(values).max()]
    refused = [f"every row has the same {name}: what it does to the loss is not seen" for name in constant]
    refused += _dead(form, theta, table)
    twice = duplicates(*table.values(), y)
    refused += [one for one in (None if clustered else twice, _floor_doubt(form, theta, y)) if one]
    hopeless, doubtful = _design_doubts(table, constant)
    weak = [
        f"{rows} rows for {form.size} parameters" if rows < ROWS_PER_PARAMETER * form.size else None,
        f"condition number {condition:.1e}" if condition is not None and condition > ILL_CONDITIONED else None,
        f"only {share:.0%} of the starts reached the optimum" if share < FEW_STARTS else None,
        *(misfit(rms) if form.formula.log else []),
        twice if clustered else None,
        *(f"{form.parameters[k]} at its bound {theta[k]:g}" for k in certify.bounds_touched(form, theta)),
    ]
    return verdict(refused + hopeless, doubtful + [one for one in weak if one])


def _dead(form: FormulaForm, theta: Array, table: dict[str, Array]) -> list[str]:
    """A sentence where the formula, even fitted, is undefined (1/0, the log of a negative number) at rows."""
    lost = int((form.value(theta[None], form.features(table)) <= SMALLEST).sum())
    return [f"the formula gives no positive, finite number at {lost} rows"] if lost else []


def _floor_doubt(form: FormulaForm, theta: Array, y: Array) -> str | None:
    """Where the formula calls its floor E, as the forms here do."""
    floor = dict(zip(form.parameters, form.to_published(theta).tolist(), strict=True)).get("E", -np.inf)
    below = int((y < floor).sum())
    return f"the floor E = {floor:.4g} lies above {below} measured losses" if below else None


def _design_doubts(table: dict[str, Array], constant: list[str]) -> tuple[list[str], list[str]]:
    """As of any law of N and D, where the formula has both and both vary."""
    if not {"N", "D"} <= set(table) or constant or min(table["N"].min(), table["D"].min()) <= 0:
        return [], []
    hopeless, doubtful = design_doubts(table["N"], table["D"], certify.compute_levels(table["N"], table["D"]))
    return hopeless + gaps(table["N"], table["D"]), doubtful


def _profiles(problem: Problem, theta: Array, delta: float, labels: npt.NDArray[np.int64] | None) -> dict[str, Profile]:
    """Of parameters that are constant multiples of their internal selves: floors, exponents, widths."""
    form, found = problem.form, {}
    assert isinstance(form, FormulaForm)
    if len(problem.log_loss) - len(form.priors) <= form.size or form.priors:
        return {}
    units = form.to_published(np.ones(form.size))
    for k, name in enumerate(form.parameters):
        if set(names_in(form.published[k])[0]) == {name} and form.lower[k] < theta[k] < form.upper[k]:
            ends = profile(Held(name, problem, theta, k, False), delta, labels)
            low, high = (None if end is None else end * float(units[k]) for end in (ends.low, ends.high))
            found[name] = Profile(low, high, ends.level)
    return found


def _influence(
    problem: Problem, rows: Problem, theta: Array, residuals: Array, y: Array, delta: float
) -> list[RunInfluence]:
    form, size = rows.form, len(y)
    assert isinstance(form, FormulaForm)
    refits = np.concatenate(
        [_refits_without(problem, theta, part, delta) for part in np.array_split(np.arange(size), -(-size // CHUNK))]
    )
    at = rows.features[:, [int(y.argmin())]]
    logs = np.log(form.value(np.concatenate([theta[None], refits]), at))[:, 0]
    values = np.exp(logs + form.log_loss0) if form.formula.log else logs
    order = np.argsort(-np.abs(values[1:] - values[0]), kind="stable")[:TOLD]
    return [
        RunInfluence(row=int(row), residual=float(residuals[row]), prediction=float(values[1 + row])) for row in order
    ]


def _refits_without(problem: Problem, theta: Array, left_out: npt.NDArray[np.int64], delta: float) -> Array:
    """Parameters without each of these rows, (k, p)."""
    weights = np.where(np.arange(len(problem.log_loss)) == left_out[:, None], 0.0, problem.weights)
    starts = np.repeat(theta[None], len(left_out), axis=0)
    return solve(replace(problem, weights=weights), starts, delta, staircase=False, max_steps=STEPS).theta_Sp


def _sensitivity(problem: Problem, theta: Array, delta: float) -> dict[str, dict[str, float]]:
    form, found = problem.form, {}
    assert isinstance(form, FormulaForm)
    for other in DELTAS:
        if form.priors or 0.5 < other / delta < 2:
            continue
        solved = solve(problem, theta[None], other, staircase=False, max_steps=STEPS).theta_Sp[0]
        found[f"delta {other:g}"] = dict(zip(form.parameters, form.to_published(solved).tolist(), strict=True))
    return found


def _range(values: Array) -> Range:
    low, high = float(values.min()), float(values.max())
    return Range(low, high, float(np.log10(high / low)) if low > 0 else 0.0)


def _digest(table: dict[str, Array], y: Array) -> str:
    """sha256 of the used columns in the order of the formula, then the target; rows as sorted."""
    rows = np.stack([*table.values(), y])
    return hashlib.sha256(",".join([*table, "loss\n"]).encode() + rows.astype("<f8").tobytes()).hexdigest()
