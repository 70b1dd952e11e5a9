"""What is believed of a device's efficiencies: their logarithms, jointly normal, and how far single runs scatter.

Fitted on published throughputs for the chips that were measured; for others carried over with a wider interval;
measured for the device at hand (`isoflop calibrate`); moved by finished runs. An interval joins what is not known of
the efficiencies with the scatter of runs, and is stretched so that on groups of runs left out of the fit it held as
often as it says (conformal prediction, Vovk et al. 2005, over groups; docs/decisions.md).
"""

import math
import tomllib
from functools import cache
from pathlib import Path

import msgspec

from isoflop.cost.efficiency import Efficiency
from isoflop.cost.quantity import LEVEL, Quantity, Source
from isoflop.cost.step_time import Ideal, step_seconds
from isoflop.hardware import Accelerator

_FITTED = Path(__file__).parent / "fitted.toml"
NORMAL_QUANTILE = 1.2816  # of a probability of 0.8 in the middle
_STEP = 1e-4
_ROUNDS = 5

# Chips that share the multiplier units of one that was measured reach what it reaches (assumed, but for the first).
FAMILIES = {"A100": "A100", "H100": "H100", "H200": "H100", "H800": "H100", "GH200": "H100"}
# How much less of its best product a step's products reach than that product itself, fitted on both measured chips.
_PRODUCTS_OF_ACHIEVED = 0.935
_ACHIEVED_UNKNOWN = 0.70
_SPREAD_OF_CHIPS = (0.15, 0.2, 0.35, 0.15, 0.3, 0.7, 0.5)  # log deviations, by efficiency, of a chip not measured


class Belief(msgspec.Struct, frozen=True, kw_only=True):
    """`mean` and `covariance` of the logarithms of `Efficiency`; `noise`, the log deviation of a run from what its
    efficiencies say; `stretch`, the half-width of an interval in deviations."""

    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    noise: float
    stretch: float
    source: Source
    note: str

    @property
    def efficiency(self) -> Efficiency:
        return Efficiency(*map(math.exp, self.mean))

    def seconds(self, ideal: Ideal, unmeasured: float = 0.0) -> Quantity:
        """Seconds of a step; `unmeasured` is the log deviation of what no measured run did."""
        value = float(step_seconds(ideal, self.efficiency))
        slopes = self._slopes(ideal)
        variance = self._variance(slopes) + self.noise**2 + unmeasured**2
        factor = math.exp(self.stretch * math.sqrt(variance))
        source: Source = "assumed" if unmeasured else self.source
        return Quantity(value, value / factor, value * factor, LEVEL, source)

    def after(self, ideal: Ideal, seconds: float) -> "Belief":
        """The belief once a step that should take `ideal` was measured: a Gaussian update, its slopes taken where it
        leads (the iterated Kalman filter)."""
        at, mean = self, self.mean
        for _ in range(_ROUNDS):
            slopes = at._slopes(ideal)
            moved = [sum(c * s for c, s in zip(row, slopes, strict=True)) for row in self.covariance]
            total = self._variance(slopes) + self.noise**2
            away = sum(s * (m - a) for s, m, a in zip(slopes, self.mean, at.mean, strict=True))
            surprise = math.log(seconds) - math.log(float(step_seconds(ideal, at.efficiency))) - away
            mean = tuple(m + k * surprise / total for m, k in zip(self.mean, moved, strict=True))
            at = msgspec.structs.replace(self, mean=mean)
        rows = zip(self.covariance, moved, strict=True)
        covariance = tuple(tuple(c - k * other / total for c, other in zip(row, moved, strict=True)) for row, k in rows)
        return msgspec.structs.replace(self, mean=mean, covariance=covariance, source="measured")

    def _slopes(self, ideal: Ideal) -> list[float]:
        """Derivatives of the logarithm of the seconds by the logarithm of each efficiency."""
        base = math.log(float(step_seconds(ideal, self.efficiency)))
        slopes = []
        for i in range(len(self.mean)):
            moved = Efficiency(*(math.exp(m + _STEP * (i == j)) for j, m in enumerate(self.mean)))
            slopes.append((math.log(float(step_seconds(ideal, moved))) - base) / _STEP)
        return slopes

    def _variance(self, slopes: list[float]) -> float:
        rows = zip(slopes, self.covariance, strict=True)
        return sum(a * sum(c * b for c, b in zip(row, slopes, strict=True)) for a, row in rows)


class Fitted(msgspec.Struct, frozen=True):
    """fitted.toml: as benchmarks/throughput.py wrote it. Parameters are named by efficiency, and by chip where each has
    its own."""

    source: str
    date: str
    noise: float
    stretch: float
    names: list[str]
    mean: list[float]
    covariance: list[list[float]]


@cache
def fitted() -> Fitted:
    """The constants fitted on published throughputs."""
    return msgspec.convert(tomllib.loads(_FITTED.read_text(encoding="utf-8")), Fitted)


def parameter_names(chip: str) -> list[str]:
    """Names of the parameters behind each efficiency of a chip."""
    own = {"products", "attention", "bandwidth"}
    return [f"{name}-{chip}" if name in own else name for name in Efficiency._fields]


@cache
def _of_family(chip: str) -> Belief:
    known = fitted()
    where = [known.names.index(name) for name in parameter_names(chip)]
    return Belief(
        mean=tuple(math.log(known.mean[i]) for i in where),
        covariance=tuple(tuple(known.covariance[i][j] for j in where) for i in where),
        noise=known.noise,
        stretch=known.stretch,
        source="fitted",
        note=f"fitted on {known.source}",
    )


def belief_about(hardware: Accelerator) -> Belief:
    """What is believed of a device: fitted where its chip was measured, else carried over from those that were."""
    family = next((f for start, f in FAMILIES.items() if hardware.name.startswith(start)), None)
    belief = _of_family(family or "H100")
    if family is not None and hardware.name.startswith((f"{family}-SXM",)):
        return belief
    mean = list(belief.mean)
    if family is None:
        other = _of_family("A100").mean
        mean = [(a + b) / 2 for a, b in zip(mean, other, strict=True)]
        achieved = hardware.achieved or _ACHIEVED_UNKNOWN * hardware.tflops[hardware.training_precision]
        mean[0] = math.log(_PRODUCTS_OF_ACHIEVED * achieved / hardware.tflops[hardware.training_precision])
    covariance = tuple(
        tuple(c + (_SPREAD_OF_CHIPS[i] ** 2 if i == j else 0.0) for j, c in enumerate(row))
        for i, row in enumerate(belief.covariance)
    )
    note = f"{hardware.name} was not measured: carried over from A100 and H100, with a wider interval"
    return msgspec.structs.replace(belief, mean=tuple(mean), covariance=covariance, source="assumed", note=note)
