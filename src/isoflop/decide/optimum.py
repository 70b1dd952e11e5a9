"""Where on a family's grid the answer lies: the least loss of a budget, the cheapest lifetime of a loss, both at once.

The cheapest lifetime of a loss minimises training and serving together along the curve of equal loss (Sardana et al.
2024, arXiv 2401.00448, eq. 4, there 6 N D + 2 N D_inf). Of all models that spend a training budget, one lies on the
expansion path of that problem: no model of its loss costs less over its lifetime. It is also the least loss for its own
lifetime's cost, and without serving it is the training optimum.

A place is a fractional index into the grid, so that answers move smoothly with the question.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from isoflop.decide.field import Field
from isoflop.laws.forms import Array

HALF = 0.02  # of log D, over which slopes are taken
WINDOW = 90  # sizes to either side of the training optimum among which a lifetime's is looked for
ROUNDS = 21
STRIDE = 8  # of the sizes, looked at before those about the best of them
TOKENS = (1e3, 1e20)


@dataclass(frozen=True)
class Spot:
    """A place on a field's grid, tokens, and the mean log loss."""

    place: float
    tokens: float
    log_loss: float


def at(values_m: Array, place: float) -> float:
    """A quantity at a place, along a line in logarithms."""
    low = min(max(int(place), 0), len(values_m) - 2)
    part = place - low
    return float(values_m[low] ** (1 - part) * values_m[low + 1] ** part)


def least_loss(field: Field, budget: float) -> Spot | None:
    """The size of least loss that a training budget buys; None where nothing is possible."""
    d_m = field.tokens(budget)
    return _least(field, d_m, (d_m >= 1.0) & field.ok_m)


def least_loss_of_lifetime(field: Field, total: float) -> Spot | None:
    """The size of least loss for a cost of training and serving together; None where nothing is possible."""
    d_m = np.minimum(np.maximum(total - field.serve_m, 0.0) / field.train_m, field.most_tokens)
    return _least(field, np.maximum(d_m, TOKENS[0]), (d_m >= TOKENS[0]) & field.ok_m)


def _least(field: Field, d_m: Array, possible_m: npt.NDArray[np.bool_]) -> Spot | None:
    if not possible_m.any():
        return None
    start, coarse = 0, _values(field, d_m, possible_m, slice(0, None, STRIDE))
    if np.isfinite(coarse).any():  # else what is possible lies between two of them
        middle = STRIDE * int(coarse.argmin())
        start = max(0, middle - 2 * STRIDE)
    near = slice(start, start + 4 * STRIDE + 1) if np.isfinite(coarse).any() else slice(None)
    value = _values(field, d_m, possible_m, near)
    place, least = _refined(value, int(value.argmin()))
    return Spot(start + place, at(d_m, start + place), least)


def _values(field: Field, d_m: Array, possible_m: npt.NDArray[np.bool_], keep: slice) -> Array:
    """Mean log loss of some sizes; infinite where they are not possible."""
    mean = field.believed.at(keep).mean(np.maximum(d_m[keep], 1.0))
    return np.where(possible_m[keep], mean, np.inf)


def _refined(value_m: Array, best: int) -> tuple[float, float]:
    """The bottom of the parabola through the least value and its neighbours."""
    if not 0 < best < len(value_m) - 1 or not np.isfinite(value_m[best - 1 : best + 2]).all():
        return float(best), float(value_m[best])
    below, here, above = value_m[best - 1 : best + 2]
    bent = below + above - 2 * here
    off = 0.0 if bent <= 0 else float((below - above) / (2 * bent))
    off = min(max(off, -0.5), 0.5)
    return best + off, float(here - (below - above) * off / 4)


def tokens_for_loss(field: Field, log_loss: float) -> Array:
    """Tokens at which each size reaches a loss; infinite where none do."""
    low, high = (np.full(len(field.train_m), np.log(edge)) for edge in TOKENS)
    over, under = (field.believed.mean(np.exp(edge)) - log_loss for edge in (low, high))
    for i in range(ROUNDS):
        chord = low + (high - low) * over / (over - under)
        middle = np.where((over > 0) & (under < 0) & (i % 3 != 0), chord, (low + high) / 2)
        value = field.believed.mean(np.exp(middle)) - log_loss
        above = value > 0
        low, over = np.where(above, middle, low), np.where(above, value, over)
        high, under = np.where(above, high, middle), np.where(above, under, value)
        # A chord lands on the same side again and again; halving the far value brings the other end in (Illinois).
        over, under = np.where(above, over, over / 2), np.where(above, under / 2, under)
    found = np.exp(np.where(-under < over, high, low))
    reached: Array = np.where((found < 0.99 * TOKENS[1]) & (found <= field.most_tokens), found, np.inf)
    return reached


def cheapest_of_loss(field: Field, log_loss: float, serve: bool, near: float | None = None) -> Spot | None:
    """The size that reaches a loss for the least training (and serving) cost; None where none does."""
    start, some = _window(field, near)
    d_m = tokens_for_loss(some, log_loss)
    possible = np.isfinite(d_m) & some.ok_m
    if not possible.any():
        return None
    known = np.where(possible, d_m, 1.0)
    total = np.where(possible, some.train_m * known + (some.serve_m if serve else 0.0), np.inf)
    place, _ = _refined(np.log(total), int(total.argmin()))
    return Spot(start + place, at(known, place), log_loss)


def _window(field: Field, near: float | None) -> tuple[int, Field]:
    if near is None:
        return 0, field
    start = max(0, int(near) - 2 * WINDOW)
    return start, field.part(slice(start, int(near) + WINDOW))


def on_path(field: Field, budget: float, optimum: Spot) -> Spot:
    """Of the sizes that spend a training budget, the one that no other of its loss undercuts over the lifetime. At most
    as large as the training optimum."""
    if not field.serve_m.any():
        return optimum
    start = max(0, int(optimum.place) - 2 * WINDOW)
    some = field.part(slice(start, int(optimum.place) + 3))
    gain = _gain_of_shrinking(some, some.tokens(budget))
    gain[~some.ok_m] = -np.inf
    wanted = np.flatnonzero(gain[1:-1] < 0)  # sizes too small already
    if not len(wanted):
        return optimum
    last = int(wanted[-1]) + 1
    below, above = gain[last], gain[last + 1]
    part = float(below / (below - above)) if np.isfinite(below) and above > below else 1.0
    place = min(start + last + part, optimum.place)
    tokens = at(field.tokens(budget), place)
    return Spot(place, tokens, loss_at(field, place, tokens))


def _gain_of_shrinking(field: Field, d_m: Array) -> Array:
    """Derivative by log size, along the curve of equal loss, of the cost of the lifetime: positive where a smaller
    model, trained for longer, costs less. Minus infinity at the ends, and where there are no more tokens."""
    bent = field.believed
    by_size = bent.at(slice(2, None)).mean(d_m[1:-1]) - bent.at(slice(0, -2)).mean(d_m[1:-1])
    by_size /= np.log(field.curve.total_m[2:] / field.curve.total_m[:-2])
    middle = bent.at(slice(1, -1))
    by_tokens = (middle.mean(d_m[1:-1] * np.exp(HALF)) - middle.mean(d_m[1:-1] * np.exp(-HALF))) / (2 * HALF)
    train, log_n = field.train_m * d_m, np.log(field.curve.total_m)
    with np.errstate(divide="ignore", invalid="ignore"):
        more_tokens = -by_size / by_tokens
    slope = train[1:-1] * (np.gradient(np.log(field.train_m), log_n)[1:-1] + more_tokens)
    inner = slope + np.gradient(field.serve_m, log_n)[1:-1]
    inner = np.where((by_tokens < 0) & (d_m[1:-1] < field.most_tokens), inner, -np.inf)
    return np.concatenate([[-np.inf], inner, [np.inf]])


def loss_at(field: Field, place: float, tokens: float) -> float:
    """Mean log loss at a place."""
    return float(field.believed.between(place).mean(np.array([tokens]))[0])
