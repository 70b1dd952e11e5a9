"""A law by its runs: the posterior of a table, for a plan."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.linalg import eigh

from isoflop.cost.quantity import Source
from isoflop.decide.belief import Convention
from isoflop.decide.question import LawChoice
from isoflop.decide.vouched import doubts, worse
from isoflop.laws.certificate import compute_levels
from isoflop.laws.discrepancy import Posterior, posterior
from isoflop.laws.forms import Array
from isoflop.laws.soundness import Soundness, design_doubts, mistakes, verdict
from isoflop.laws.tables import N_MEANING, RUN_TABLE_MARKS, Columns, Runs, read_runs, read_table

OURS: dict[str, Convention] = {
    "n_params": "total",
    "n_params_matmul": "matmul",
    "n_params_non_embedding": "non_embedding",
}
HEARD = 0.02  # of the weight: members of the posterior under it change no mean that anybody could see
CAUTIOUS = 2.0  # times the largest fitted, beyond which it is said


@dataclass(frozen=True, eq=False)
class Told:
    """What a table of runs says. Its intervals are the calibrated ones: they widen away from the runs."""

    name: str
    convention: Convention
    posterior: Posterior
    most: tuple[float, float]
    said: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    source: Source = "fitted"
    told: bool = True

    @property
    def noise(self) -> float:
        weights = self.posterior.weights
        variance = float(weights @ np.array([member.noise**2 for member in self.posterior.members]))
        return self.posterior.prior.stretch * float(np.sqrt(variance))

    def mean(self, n_m: Array, d_m: Array) -> Array:
        return self.posterior.mean(n_m, d_m, HEARD)

    def draws(self, n_m: Array, d_m: Array, count: int, seed: int) -> Array:
        mean, covariance, _ = self.posterior.joint(n_m, d_m, np.ones(len(n_m), dtype=bool))
        values, vectors = eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        z = np.random.default_rng(seed).standard_normal((count, len(n_m)))
        drawn: Array = mean + self.posterior.prior.stretch * z @ root.T
        return drawn

    def cautions(self, n: float, d: float) -> list[str]:
        over = [(what, value / most) for what, value, most in (("N", n, self.most[0]), ("D", d, self.most[1]))]
        beyond = ", ".join(f"{what} {times:.3g} times" for what, times in over if times > CAUTIOUS)
        far = [f"{self.name}: {beyond} beyond the largest fitted; its interval is widened"] if beyond else []
        return [*far, *(f"{self.name}: {note}" for note in (*self.posterior.notes, *self.said))]


def families_of(table: Path) -> tuple[str, ...]:
    """Families of a run table of ours; none of a table of another kind."""
    columns = read_table(table).columns
    return tuple(dict.fromkeys(map(str, columns["family"]))) if set(columns) >= RUN_TABLE_MARKS else ()


def judged(runs: Runs) -> Soundness:
    """The verdict on a table of runs."""
    wrong = [*mistakes(runs.n, runs.d, runs.loss), *runs.doubts]
    if min(runs.n.max() / runs.n.min(), runs.d.max() / runs.d.min()) == 1:
        return verdict(wrong, [])  # the posterior's notes say that an exponent is not its own
    hopeless, doubtful = design_doubts(runs.n, runs.d, compute_levels(runs.n, runs.d))
    return verdict([*wrong, *hopeless], doubtful)


def told_by(choice: LawChoice, table: Path, family: str | None, known: Soundness) -> Told:
    """The law of a table; `family`: which one, of a run table of several; `known`: its certificate's verdict. Raises
    ValueError for a table that cannot be read, and one that is refused."""
    runs = read_runs(table, Columns(n=choice.n, d=choice.d, loss=choice.loss), family)
    named = runs.columns.n or ""
    said = () if named in N_MEANING else (f"N is column '{named}', taken for all parameters",)
    name = choice.name if family is None else f"{choice.name} ({family})"
    doubtful = doubts(choice, name, worse(judged(runs), known))
    return Told(
        name=name,
        convention=OURS.get(named, "total"),
        posterior=posterior(runs.n, runs.d, runs.loss),
        most=(float(runs.n.max()), float(runs.d.max())),
        said=said,
        doubts=doubtful,
    )
