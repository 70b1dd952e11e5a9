"""Optima are flat: which sizes are as good as the best, and how sure the best size itself is."""

import numpy as np

from isoflop.decide.belief import joint_draws
from isoflop.decide.family_plan import FamilyPlan
from isoflop.decide.question import Question

EVERY = 8  # sizes of the grid between those at which draws are taken
REACH = 160  # sizes to either side of the optimum among which they are


def near_places(question: Question, best: FamilyPlan) -> tuple[float, float] | None:
    """The first and the last place whose loss is at most (1 + within) of the least; None where no loss is told."""
    field = best.field
    if not field.believed.average.told:
        return None
    d_m = field.tokens(best.budget)
    over = field.believed.mean(np.maximum(d_m, 1.0)) - best.training.log_loss - np.log1p(question.within)
    over[(d_m < 1.0) | ~field.ok_m] = np.inf
    inside = np.flatnonzero(over <= 0)
    if not len(inside):
        return best.training.place, best.training.place
    first, last = int(inside[0]), int(inside[-1])
    low = first - _crossing(over[first], over[first - 1]) if first > 0 else float(first)
    high = last + _crossing(over[last], over[last + 1]) if last < len(over) - 1 else float(last)
    return low, high


def _crossing(inside: float, outside: float) -> float:
    """How far from a place inside to the edge, of the step to one outside."""
    return float(inside / (inside - outside)) if np.isfinite(outside) else 0.0


def best_sizes(question: Question, best: FamilyPlan) -> tuple[float | None, float | None]:
    """Total parameters between which the training optimum lies with probability `level`, by the draws."""
    field, middle = best.field, int(best.training.place)
    keep = slice(max(0, middle - REACH), middle + REACH, EVERY)
    some = field.part(keep)
    d_m = some.tokens(best.budget)
    possible = (d_m >= 1.0) & some.ok_m
    if not field.believed.average.told or not possible.any():
        return None, None
    (drawn,) = joint_draws([some.believed], [np.maximum(d_m, 1.0)])
    least = np.where(possible, drawn, np.inf).argmin(axis=1)
    edges = (1 - question.level) / 2, (1 + question.level) / 2
    low, high = np.quantile(np.log(some.curve.total_m)[least], edges)
    return float(np.exp(low)), float(np.exp(high))
