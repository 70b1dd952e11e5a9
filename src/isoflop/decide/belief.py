"""What is believed of the loss of runs that nobody has trained: laws, averaged, as joint draws.

A law that was fitted to a table of runs speaks with the posterior of `isoflop.laws.discrepancy`. A published law has
constants and a fitted range, and seldom more, so what is not known of it is assumed: its level within `LEVEL_SD`, and
errors that grow with every decade beyond the fitted compute (`BEYOND_SD`) and with every decade of tokens a parameter
away from 20 (`RATIO_SD`, which makes the best N of Besiroglu et al. 2024 as uncertain at 5.76e23
FLOPs as their bootstrap does: D/N from 4 to 40).

Averaging laws averages the logarithms of their losses by weight and mixes their draws: where laws disagree, the
interval is wider. Legend: m points, R draws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

import numpy as np

from isoflop.cost.quantity import Source
from isoflop.laws.forms import Array

Convention = Literal["total", "non_embedding", "matmul"]

LEVEL_SD = 0.010
BEYOND_SD = 0.008
RATIO_SD = 0.005
USUAL_RATIO = 20.0
DRAWS = 400
STEP = 1.05  # by which N is moved to see what a factor does
SEED = 0
REPEATED_HALF_LIFE = 15.387756  # R_D* of Muennighoff et al. 2023: how often repeats of a token are worth something
EXCESS_HALF_LIFE = 5.309743  # R_N* of the same: how many times too many parameters for the unique tokens are


class Law(Protocol):
    """A law of N, under its own convention, and D."""

    @property
    def name(self) -> str: ...
    @property
    def convention(self) -> Convention: ...
    @property
    def source(self) -> Source: ...
    @property
    def noise(self) -> float:
        """Standard deviation of the log loss of equal runs."""
        ...

    @property
    def told(self) -> bool:
        """Whether its value is a loss; False where only its least place means anything."""
        ...

    def mean(self, n_m: Array, d_m: Array) -> Array:
        """Mean of the log loss, (m,)."""
        ...

    def draws(self, n_m: Array, d_m: Array, count: int, seed: int) -> Array:
        """Joint draws of it, (count, m)."""
        ...

    @property
    def doubts(self) -> tuple[str, ...]:
        """What makes it weak, or refused and forced."""
        ...

    def cautions(self, n: float, d: float) -> list[str]:
        """What to say of a run of N and D: how far it lies beyond what was fitted."""
        ...


@dataclass(frozen=True)
class Published:
    """A law of constants alone. `most`: the largest N and D that were fitted, where that is known."""

    name: str
    convention: Convention
    source: Source
    value: Callable[[Array, Array], Array]
    most: tuple[float, float] | None
    told: bool = True
    noise: float = 0.0
    doubts: tuple[str, ...] = ()

    def mean(self, n_m: Array, d_m: Array) -> Array:
        mean: Array = np.log(self.value(n_m, d_m))
        return mean

    def draws(self, n_m: Array, d_m: Array, count: int, seed: int) -> Array:
        level, beyond, ratio = np.random.default_rng(seed).standard_normal((3, count, 1))
        compute = 6 * n_m * d_m
        far = np.maximum(0.0, self.decades_beyond(compute))
        aside = np.log10(d_m / n_m / USUAL_RATIO)
        drawn: Array = self.mean(n_m, d_m) + LEVEL_SD * level + BEYOND_SD * beyond * far + RATIO_SD * ratio * aside
        return drawn

    def decades_beyond(self, compute: Array) -> Array:
        """Of compute, over the largest fitted; everything is beyond an unknown range."""
        most = 1e22 if self.most is None else 6 * self.most[0] * self.most[1]
        return np.asarray(np.log10(compute / most))

    def cautions(self, n: float, d: float) -> list[str]:
        if self.most is None:
            return [f"{self.name}: its fitted range is not known"]
        over = [(what, value / most) for what, value, most in (("N", n, self.most[0]), ("D", d, self.most[1]))]
        beyond = ", ".join(f"{what} {times:.3g} times" for what, times in over if times > 1)
        return [f"{self.name}: {beyond} beyond the largest fitted; its interval is widened"] if beyond else []


@dataclass(frozen=True)
class Average:
    """Laws and their weights, which sum to 1."""

    laws: tuple[Law, ...]
    weights: tuple[float, ...]

    @property
    def counts(self) -> list[int]:
        """Draws of each law, by weight."""
        edges = np.rint(np.cumsum((0.0, *self.weights)) * DRAWS).astype(int)
        return [int(count) for count in np.diff(edges)]

    @property
    def told(self) -> bool:
        """Whether these laws tell a loss, and not only how to allocate a budget."""
        return all(law.told for law in self.laws)


@dataclass(frozen=True)
class Data:
    """Limits of data: unique tokens, beyond which tokens repeat and are worth less; None: no limit."""

    unique: float | None = None

    def worth(self, d_m: Array) -> Array:
        """Tokens that `d_m` seen tokens are worth (Muennighoff et al. 2023, eq. 5)."""
        if self.unique is None:
            return d_m
        again = np.maximum(d_m / self.unique - 1, 0.0)
        worth: Array = np.minimum(d_m, self.unique) + self.unique * REPEATED_HALF_LIFE * (
            1 - np.exp(-again / REPEATED_HALF_LIFE)
        )
        return worth

    def worth_of_size(self, n_m: Array) -> Array:
        """Parameters that `n_m` are worth: those beyond a twentieth of the unique tokens, for which these are enough,
        count for less and less (the same, eq. 6). Data that suffice leave them as they are."""
        if self.unique is None:
            return n_m
        enough = self.unique / USUAL_RATIO
        excess = np.maximum(n_m / enough - 1, 0.0)
        worth: Array = np.minimum(n_m, enough) + enough * EXCESS_HALF_LIFE * (1 - np.exp(-excess / EXCESS_HALF_LIFE))
        return worth


@dataclass(frozen=True)
class Factor:
    """By how much a family's parameters count for more than a dense model's: log N that it adds, and how uncertain
    that is. `note` says where it comes from."""

    mean_m: Array
    sd_m: Array
    note: str = ""


@dataclass(frozen=True)
class Believed:
    """The loss of one family. `n` gives N under each convention at m sizes of the family."""

    average: Average
    data: Data
    factor: Factor
    n: dict[Convention, Array] = field(default_factory=dict)

    def mean(self, d_m: Array) -> Array:
        """Mean log loss of the family's m sizes, each after its own tokens."""
        worth = self.data.worth(d_m)
        weighted = zip(self.average.laws, self.average.weights, strict=True)
        parts = [weight * law.mean(self.sizes(law), worth) for law, weight in weighted]
        total: Array = np.sum(parts, axis=0)
        return total

    def at(self, keep: slice) -> "Believed":
        """The same for some of the sizes."""
        factor = replace(self.factor, mean_m=self.factor.mean_m[keep], sd_m=self.factor.sd_m[keep])
        return replace(self, factor=factor, n={name: n_m[keep] for name, n_m in self.n.items()})

    def between(self, place: float) -> "Believed":
        """The same for one size, at a fractional place between two."""
        low = min(max(int(place), 0), len(self.factor.mean_m) - 2)
        two, part = self.at(slice(low, low + 2)), np.array([1 - (place - low), place - low])
        factor = replace(two.factor, mean_m=two.factor.mean_m @ part[:, None], sd_m=two.factor.sd_m @ part[:, None])
        n = {name: np.exp(np.log(n_m) @ part[:, None]) for name, n_m in two.n.items()}
        return replace(two, factor=factor, n=n)

    def sizes(self, law: Law, times: float = 1.0) -> Array:
        """N of the family's sizes as the law counts it, times what they count for, as far as the data are enough."""
        return self.data.worth_of_size(self.n[law.convention] * np.exp(self.factor.mean_m) * times)


def joint_draws(families: Sequence[Believed], d: Sequence[Array], noisy: bool = False) -> list[Array]:
    """Draws of the log loss of families at their sizes, each (R, m of that family), jointly: families that share laws
    share what is not known of them; of its factor, and of noise where `noisy`, each has its own."""
    drawn: list[Array] = [np.zeros((0, 0))] * len(families)
    for average in dict.fromkeys(family.average for family in families):
        of = [i for i, family in enumerate(families) if family.average == average]
        for i, part in zip(of, _of_average(average, [families[i] for i in of], [d[i] for i in of], of), strict=True):
            drawn[i] = part
    if noisy:
        for i, family in enumerate(families):
            drawn[i] = drawn[i] + _noise(family.average, i)
    return drawn


def _of_average(average: Average, families: list[Believed], d: list[Array], own: list[int]) -> list[Array]:
    worth = [family.data.worth(d_m) for family, d_m in zip(families, d, strict=True)]
    edges = np.cumsum([len(d_m) for d_m in d])[:-1]
    parts: list[list[Array]] = [[] for _ in families]
    start = 0
    for law, count in zip(average.laws, average.counts, strict=True):
        sizes = [family.sizes(law) for family in families]
        together = law.draws(np.concatenate(sizes), np.concatenate(worth), count, SEED)
        for i, drawn in enumerate(np.split(together, edges, axis=1)):
            larger, smaller = families[i].sizes(law, STEP), families[i].sizes(law, 1 / STEP)
            slope = (law.mean(larger, worth[i]) - law.mean(smaller, worth[i])) / (2 * np.log(STEP))
            z = np.random.default_rng(SEED + 1 + own[i]).standard_normal((DRAWS, 1))[start : start + count]
            parts[i].append(drawn + z * families[i].factor.sd_m * slope)
        start += count
    return [np.concatenate(part) for part in parts]


def _noise(average: Average, own: int) -> Array:
    z = np.random.default_rng(SEED + 1000 + own).standard_normal((DRAWS, 1))
    sd = np.repeat([law.noise for law in average.laws], average.counts)
    noise: Array = z * sd[:, None]
    return noise
