"""What vouches for a fit, and what speaks against it: numbers, and warnings in plain sentences."""

import hashlib
from typing import Any, Protocol

import msgspec
import numpy as np

from isoflop.laws.bootstrap import SAME, Bootstrap
from isoflop.laws.forms import Array, PowerSum
from isoflop.laws.influence import Influence
from isoflop.laws.profile import Profile
from isoflop.laws.sensitivity import Alternative, ResidualStructure
from isoflop.laws.solver import Form, Solution
from isoflop.laws.soundness import MISFIT, Status

ILL_CONDITIONED = 1e4  # singular values of the Jacobian spread wider than this: directions the data do not see
COLLINEAR = 0.98  # |correlation| of log N and log D over which the two terms can hardly be told apart
FEW_ROWS_PER_PARAMETER = 2
FEW_CLUSTERS = 10
SELDOM = 0.01  # share of the replicates below which a parameter's bound is not named
OUTLYING = 3.0  # times the residual rms at which a row stands out
FAR_ROW = 0.03  # residual at which a row is worth a word, whatever the rms
NEGLIGIBLE = 1e-3  # residual that is not worth one, as nothing a run repeats to
FAR_COMPUTE = 10.0  # times beyond the largest fitted compute
FAR_RATIO = 3.0  # times outside the fitted range of D/N


class NamedForm(Form, Protocol):
    """A form whose parameters have names, and a scale in which they are published."""

    @property
    def parameters(self) -> tuple[str, ...]: ...

    def to_published(self, theta: Array) -> Array: ...


class Range(msgspec.Struct, frozen=True):
    """From the smallest to the largest value, and log10 of their ratio."""

    low: float
    high: float
    decades: float


class BootstrapSummary(msgspec.Struct, frozen=True, kw_only=True):
    """How the replicates were drawn, and how many went wrong."""

    n: int
    seed: int
    clusters: int | None
    share_unconverged: float
    share_at_bound: float
    checked: int
    missed_optimum: int
    standard_errors: dict[str, float]


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """The evidence for any fitted form.

    `objective` is the sum over rows of Huber_delta(log Lhat - log L). `gradient_norm` is of its gradient per relative
    change of each parameter, without components that push against a bound. `condition_number` is the ratio of the
    extreme singular values of d log Lhat / d log(parameter), parameters in the solver's units (the size of each term
    at the smallest N and D), those on a bound left out. `residual_rms` is of log L - log Lhat.
    """

    objective: float
    delta: float
    gradient_norm: float
    n_starts: int
    share_of_starts_at_optimum: float
    condition_number: float | None
    at_bound: list[str]
    residual_rms: float
    n_rows: int
    n_used: int
    excluded: dict[str, int]
    ranges: dict[str, Range]
    data_digest: str
    convention: str
    bootstrap: BootstrapSummary | None
    warnings: list[str]
    status: Status = "sound"  # sound, weak or refused, for `reasons`; see `isoflop.laws.soundness`
    reasons: list[str] = []


class Certificate(Evidence, frozen=True, kw_only=True):
    """The evidence for L = E + A/N^alpha + B/D^beta."""

    correlation_log_n_log_d: float
    compute_levels: int
    profile: dict[str, Profile] = {}  # with the three below: empty or None where diagnostics were not asked for
    influence: Influence | None = None
    sensitivity: list[Alternative] = []
    residual_structure: ResidualStructure | None = None


def evidence(
    form: NamedForm, features: Array, solution: Solution, residuals: Array, delta: float, drawn: Bootstrap | None
) -> dict[str, Any]:
    """The fields of `Evidence` that follow from the optimum and its bootstrap."""
    best = int(solution.objective_S.argmin())
    theta = solution.theta_Sp[best]
    touched = bounds_touched(form, theta)
    free = [k for k in range(form.size) if k not in touched]
    return {
        "objective": float(solution.objective_S[best]),
        "delta": delta,
        "gradient_norm": float(solution.gradient_norm_S[best]),
        "n_starts": len(solution.objective_S),
        "share_of_starts_at_optimum": share_at_optimum(solution),
        "condition_number": condition_number(form, theta, features, free),
        "at_bound": [form.parameters[k] for k in touched],
        "residual_rms": float(np.sqrt((residuals**2).mean())),
        "n_used": len(residuals),
        "bootstrap": None if drawn is None else _summary(form, drawn),
    }


def _summary(form: NamedForm, drawn: Bootstrap) -> BootstrapSummary:
    errors = form.to_published(drawn.theta_Rp).std(axis=0, ddof=1)
    return BootstrapSummary(
        n=len(drawn.theta_Rp),
        seed=drawn.seed,
        clusters=drawn.clusters,
        share_unconverged=drawn.unconverged,
        share_at_bound=drawn.at_bound,
        checked=drawn.checked,
        missed_optimum=drawn.missed,
        standard_errors=dict(zip(form.parameters, errors.tolist(), strict=True)),
    )


def digest(n: Array, d: Array, loss: Array) -> str:
    """sha256 of the used columns as little-endian float64, rows in sorted order: the order of the file is no matter."""
    rows = np.stack([n, d, loss])[:, np.lexsort((loss, d, n))]
    return hashlib.sha256(b"n,d,loss\n" + rows.astype("<f8").tobytes()).hexdigest()


def ranges(n: Array, d: Array) -> dict[str, Range]:
    """The fitted range of N, D, D/N and compute (6 N D)."""
    columns = {"n": n, "d": d, "tokens_per_parameter": d / n, "compute": 6 * n * d}
    return {name: _range(values) for name, values in columns.items()}


def _range(values: Array) -> Range:
    low, high = float(values.min()), float(values.max())
    return Range(low, high, float(np.log10(high / low)))


def compute_levels(n: Array, d: Array) -> int:
    """How many levels of compute there are, a level being what lies within 10 % of its neighbour."""
    return 1 + int((np.diff(np.sort(np.log(n * d))) > np.log(1.1)).sum())


def condition_number(form: Form, theta: Array, features: Array, free: list[int]) -> float | None:
    """See `Certificate`; None where fewer than two parameters are free."""
    if len(free) < 2:
        return None
    jacobian = form.evaluate(theta[None], features).jacobian_Spn[0][free] * theta[free, None]
    values = np.linalg.svd(jacobian, compute_uv=False)
    return float(values[0] / max(values[-1], 1e-300))


def bounds_touched(form: Form, theta: Array) -> list[int]:
    """Indices of the parameters on a bound."""
    return [k for k in range(form.size) if theta[k] <= form.lower[k] or theta[k] >= form.upper[k]]


def share_at_optimum(solution: Solution) -> float:
    """The share of starts that ended at the least objective found."""
    best = solution.objective_S.min()
    return float((solution.objective_S <= best * (1 + SAME) + 1e-20).mean())


def bound_warnings(form: PowerSum, theta: Array, touched: list[int]) -> list[str]:
    """One sentence for each parameter on a bound."""
    means = {
        "E": "the data show no irreducible loss, and the law may fall without end",
        "A": "loss does not depend on N here, and alpha means nothing",
        "B": "loss does not depend on D here, and beta means nothing",
        "alpha": "A cannot be told from E" if theta[3] <= 0 else "only the smallest N moves the loss",
        "beta": "B cannot be told from E" if theta[4] <= 0 else "only the smallest D moves the loss",
    }
    names = [form.parameters[k] for k in touched]
    return [f"{name} at its bound {theta[k]:g}: {means[name]}" for name, k in zip(names, touched, strict=True)]


def design_warnings(n: Array, d: Array, condition: float | None, share: float) -> list[str]:
    """What is thin about the table or the optimum."""
    told = []
    if len(n) < FEW_ROWS_PER_PARAMETER * PowerSum.size:
        told.append(f"{len(n)} rows for {PowerSum.size} parameters: the law is hardly tested by its own data")
    if compute_levels(n, d) == 1:
        told.append("all rows lie at one level of compute: how loss falls with compute is not seen")
    correlation = correlation_of_logs(n, d)
    if abs(correlation) > COLLINEAR:
        told.append(f"log N and log D are nearly collinear (correlation {correlation:.3f}): terms look alike")
    if condition is not None and condition > ILL_CONDITIONED:
        told.append(f"condition number {condition:.1e}: some combination of parameters is not determined by the data")
    if share < 0.5:
        told.append(f"only {share:.0%} of the starts reached the best optimum: there are others nearly as likely")
    return told


def residual_warnings(n: Array, d: Array, residuals: Array) -> list[str]:
    """Whether the law misses its own rows, and which it misses most. `residuals` are log L - log Lhat."""
    told, rms = [], float(np.sqrt((residuals**2).mean()))
    if rms > MISFIT:
        told.append(f"the law misses its own rows by {rms:.1%} (rms): the form does not fit this table")
    worst = int(np.abs(residuals).argmax())
    size, side = abs(float(residuals[worst])), "above" if residuals[worst] > 0 else "below"
    if size > FAR_ROW or size > max(OUTLYING * rms, NEGLIGIBLE):
        where = f"N = {n[worst]:.4g}, D = {d[worst]:.4g}"
        told.append(f"the run at {where} lies {size:.1%} {side} the law (rms of all {rms:.1%}): it fits worst there")
    return told


def bootstrap_warnings(form: NamedForm, drawn: Bootstrap) -> list[str]:
    """What went wrong among the replicates."""
    told = []
    if drawn.clusters is not None and drawn.clusters < FEW_CLUSTERS:
        told.append(f"only {drawn.clusters} clusters to resample: the intervals of the parameters may be too narrow")
    if drawn.unconverged > 0.05:
        told.append(f"{drawn.unconverged:.0%} of the bootstrap replicates did not settle")
    if drawn.at_bound > 0.1:
        shares = sorted(zip(drawn.bound_p, form.parameters, strict=True), reverse=True)
        names = ", ".join(f"{name} in {share:.0%}" for share, name in shares if share >= SELDOM)
        told.append(f"{drawn.at_bound:.0%} of the bootstrap replicates have a parameter at a bound: {names}")
    if drawn.missed:
        told.append(f"{drawn.missed} of {drawn.checked} checked bootstrap replicates had a better optimum elsewhere")
    return told


def correlation_of_logs(n: Array, d: Array) -> float:
    """The correlation of log N and log D."""
    return float(np.corrcoef(np.log(n), np.log(d))[0, 1])


def support(fitted: dict[str, Range], n: float, d: float) -> tuple[dict[str, float], str | None]:
    """How many times beyond the largest fitted compute, N and D a target lies; a warning where support is little."""
    compute, per_parameter = 6 * n * d, d / n
    beyond = {"compute": compute, "n": n, "d": d}
    times = {name: value / fitted[name].high for name, value in beyond.items()}
    ratio, told = fitted["tokens_per_parameter"], []
    reach = np.log10(times["compute"])
    if times["compute"] > FAR_COMPUTE:
        told.append(f"compute is {times['compute']:.3g} times the largest fitted")
    elif reach > max(fitted["compute"].decades, np.log10(2)):
        told.append(f"reaches {reach:.2g} decades beyond {fitted['compute'].decades:.2g} fitted decades of compute")
    far = [name for name in ("n", "d") if times[name] > FAR_COMPUTE]
    told += [f"{name.upper()} is {times[name]:.3g} times the largest fitted" for name in far]
    if not ratio.low / FAR_RATIO <= per_parameter <= ratio.high * FAR_RATIO:
        told.append(f"D/N of {per_parameter:.3g} is far outside the fitted {ratio.low:.3g} to {ratio.high:.3g}")
    return times, "; ".join(told) or None
