"""The next best experiment: the affordable runs that most shrink the interval of a forecast, or of the best size.

The posterior of the runs so far (`isoflop.laws.discrepancy`), or the prior alone, is joint over candidates and goal, so
what a run would leave of the goal's interval is known before it is trained. Legend: c candidates, m points.
"""

from dataclasses import dataclass

import msgspec
import numpy as np

from isoflop.decide.candidates import Candidates
from isoflop.decide.choose import choose, widths
from isoflop.decide.outlook import Outlook
from isoflop.laws.discrepancy import Posterior, quantile
from isoflop.laws.forms import Array

STEP = 0.25  # of log N, over which slope and curvature of the isoFLOP curve are taken
SEARCHED = (1e-1, 1e5)  # tokens per parameter among which the best size is looked for
POINTS = 400


@dataclass(frozen=True)
class LossAt:
    """The loss of one run of N parameters and D tokens is to be forecast."""

    n: float
    d: float


@dataclass(frozen=True)
class OptimalN:
    """The best N at this compute (6 N D FLOPs) is to be known."""

    flops: float


Goal = LossAt | OptimalN


class Purchase(msgspec.Struct, frozen=True, kw_only=True):
    """A run to train. `half_width` is the goal's once this and those before are trained, `took` what it takes off."""

    n: float
    d: float
    flops: float
    half_width: float
    took: float


class Proposal(msgspec.Struct, frozen=True, kw_only=True):
    """What to train next, and what it should do to the goal's interval.

    Half widths are in log units: the interval is the middle times exp(-h) to exp(h), about +-h. Runs are ordered by
    what they tell per FLOP. `least` is the goal's half width if every candidate were trained.
    """

    goal: str  # loss | optimal-n
    n: float
    d: float
    middle: float | None  # forecast loss or best N; None where the loss has no unit yet
    level: float
    before: float
    after: float
    least: float
    budget: float
    spent: float
    cheapest: float  # of all candidates that tell something
    runs: list[Purchase]
    notes: list[str]


def propose(
    told: Posterior, candidates: Candidates, goal: Goal, budget: float, level: float, most: int | None = None
) -> Proposal:
    """The candidates to train with `budget` FLOPs, at most `most` of them; none where nothing useful is affordable.

    Raises ValueError where the best N is asked for and the runs show none.
    """
    outlook, (n, d), middle = look(told, candidates, goal)
    chosen = choose(outlook, budget, most)
    halves = told.prior.stretch * quantile(level) * widths(outlook, chosen)
    everything = told.prior.stretch * quantile(level) * widths(outlook, range(len(outlook.cost_c)))[-1]
    telling = outlook.cross_cg[:, 0] ** 2 > 0
    return Proposal(
        goal="loss" if isinstance(goal, LossAt) else "optimal-n",
        n=n,
        d=d,
        middle=middle if len(told.places[0]) or isinstance(goal, OptimalN) else None,
        level=level,
        before=float(halves[0]),
        after=float(halves[-1]),
        least=float(everything),
        budget=budget,
        spent=float(outlook.cost_c[chosen].sum()),
        cheapest=float(outlook.cost_c[telling].min(initial=np.inf)),
        runs=[
            Purchase(
                n=float(candidates.n_c[k]),
                d=float(candidates.d_c[k]),
                flops=float(candidates.cost_c[k]),
                half_width=float(halves[place + 1]),
                took=float(halves[place] - halves[place + 1]),
            )
            for place, k in enumerate(chosen)
        ],
        notes=list(told.notes),
    )


def look(told: Posterior, candidates: Candidates, goal: Goal) -> tuple[Outlook, tuple[float, float], float]:
    """The outlook of one goal, its point (N, D), and the middle of its interval: a loss, or the best N."""
    match goal:
        case LossAt(n=n, d=d):
            points, weight = np.array([[n], [d]]), np.ones(1)
        case OptimalN(flops=flops):
            n, d, curvature = best_size(told, flops)
            log_n = np.log(n) + STEP * np.array([1.0, -1.0])
            points = np.stack([np.exp(log_n), flops / 6 * np.exp(-log_n)])
            weight = np.array([-1.0, 1.0]) / (2 * STEP * curvature)  # of log N*, by the slope that it would level
    count = len(candidates.n_c)
    bare = np.arange(count + points.shape[1]) >= (count if isinstance(goal, OptimalN) else count + 1)
    mean, covariance, noise = told.joint(
        np.concatenate([candidates.n_c, points[0]]), np.concatenate([candidates.d_c, points[1]]), bare
    )
    own = noise if isinstance(goal, LossAt) else 0.0
    variance = weight @ covariance[count:, count:] @ weight
    outlook = Outlook(
        cost_c=candidates.cost_c,
        noise_c=np.full(count, noise),
        covariance_cc=covariance[:count, :count],
        cross_cg=(covariance[:count, count:] @ weight)[:, None],
        variance_g=np.array([variance + own]),
        floor_g=np.array([own]),
    )
    return outlook, (n, d), float(np.exp(mean[count])) if isinstance(goal, LossAt) else n


def best_size(told: Posterior, flops: float) -> tuple[float, float, float]:
    """N and D of least mean log loss at 6 N D = flops, and the curve's second derivative by log N there.

    Raises ValueError where the curve has no minimum between .1 and 100,000 tokens a parameter.
    """
    half_log = np.log(flops / 6) / 2
    low, high = (half_log - np.log(ratio) / 2 for ratio in reversed(SEARCHED))
    log_n = np.linspace(low, high, POINTS)
    best = int(_curve(told, flops, log_n).argmin())
    below, here, above = _curve(told, flops, log_n[best] + STEP * np.array([-1.0, 0.0, 1.0]))
    curvature = float(below + above - 2 * here) / STEP**2
    if best in (0, POINTS - 1) or curvature <= 0:
        raise ValueError(
            f"target {flops:g} FLOPs: the law of these runs has no best size between {SEARCHED[0]:g} and "
            f"{SEARCHED[1]:g} tokens a parameter; give the target as N,D"
        )
    size = float(np.exp(log_n[best]))
    return size, flops / (6 * size), curvature


def _curve(told: Posterior, flops: float, log_n: Array) -> Array:
    """Mean log loss along an isoFLOP curve, without the offsets of single sizes."""
    mean, _, _ = told.joint(np.exp(log_n), flops / 6 * np.exp(-log_n), np.ones(len(log_n), dtype=bool))
    return mean
