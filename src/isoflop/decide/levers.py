"""What would change the answer: levers, each worth so many times the compute.

All are weighed at equal cost of the lifetime: a lever's loss is that of the same cost after the change, and its worth
the factor on that cost which would do as much without it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from isoflop.cost.serving import WeightType
from isoflop.decide.answer import Lever
from isoflop.decide.belief import Data
from isoflop.decide.devices import HOURS, Cluster, demand_of, served_by
from isoflop.decide.family_plan import FamilyPlan
from isoflop.decide.field import Field
from isoflop.decide.numbers import short
from isoflop.decide.optimum import at, least_loss_of_lifetime
from isoflop.decide.question import ON_DEVICES, Question
from isoflop.decide.trade import quantized
from isoflop.hardware import GIB
from isoflop.laws.forms import Array

MOST = 3
FEWER: dict[WeightType, float] = {"int8": 8.0, "int4": 4.0}  # bits that may be worth it
STEPS = np.geomspace(1.0, 64.0, 13)  # times the cost, at which it is seen what more would do
LEAST_WORTH = 1.001
LEAST_GAIN = 5e-5  # of loss: what is less is shown as nothing


@dataclass(frozen=True)
class Change:
    """A field that a change of the question makes, and the cost it may spend."""

    words: str
    field: Field
    cost: float
    added: float = 0.0  # to the loss, beside what the field tells


def levers(question: Question, one: FamilyPlan, plans: list[FamilyPlan], cluster: Cluster | None) -> list[Lever]:
    """The three changes that help most, the best first; none where the laws tell no loss."""
    if not one.field.believed.average.told:
        return []
    scale = _scale(one)
    told = [lever for change in _changes(question, one, plans, cluster) if (lever := _lever(one, change, scale))]
    helpful = (lever for lever in told if lever.worth > LEAST_WORTH and _gain(lever) > LEAST_GAIN)
    return sorted(helpful, key=lambda lever: -lever.worth)[:MOST]


def _gain(lever: Lever) -> float:
    return -(lever.loss_change or 0.0)


def _changes(question: Question, one: FamilyPlan, plans: list[FamilyPlan], cluster: Cluster | None) -> Iterator[Change]:
    field, cost = one.field, one.lifetime_cost
    whole = "twice the budget, for serving too" if field.serve_m.any() else "twice the budget"
    yield Change(whole, field, 2 * cost)
    if question.unique_tokens is not None:
        more = Data(2 * question.unique_tokens)
        believed = replace(field.believed, data=more)
        yield Change(
            "twice the unique tokens", replace(field, believed=believed, most_tokens=2 * field.most_tokens), cost
        )
    if isinstance(question.goal, ON_DEVICES) or field.unit == HOURS:
        yield Change("a tenth more of the peak in training", replace(field, train_m=field.train_m / 1.1), cost)
    if question.serve_memory_gib is not None:
        roomy = replace(field, ok_m=field.memory_m <= 2 * question.serve_memory_gib * GIB)
        yield Change("twice the serving memory", roomy, cost)
    if field.serve_m.any():
        yield Change("half the served tokens", replace(field, serve_m=field.serve_m / 2), cost)
        yield from _quantized(question, one, cluster)
    for other in plans:
        if other is not one:
            yield Change(f"family {other.field.family}", other.field, cost)


def _quantized(question: Question, one: FamilyPlan, cluster: Cluster | None) -> Iterator[Change]:
    """Serving in fewer bits, where devices say what that saves, and the precision law what it adds to the loss."""
    if cluster is None or question.served.weights not in ("bf16", "fp16"):
        return
    decoder, field = one.built.decoder, one.field
    now = served_by(decoder, cluster, demand_of(question))
    for weights, bits in FEWER.items():
        then = served_by(decoder, cluster, demand_of(question, weights))
        if now is None or then is None:
            continue
        ratio = (then.devices / then.tokens_per_s.value) / (now.devices / now.tokens_per_s.value)
        cheaper = replace(field, serve_m=field.serve_m * ratio)
        yield Change(f"{weights} weights in serving", cheaper, one.lifetime_cost, quantized(one, bits).value)


def _scale(one: FamilyPlan) -> Array:
    """Log loss of the field as it is at `STEPS` times its cost; infinite where nothing is possible."""
    spots = [least_loss_of_lifetime(one.field, one.lifetime_cost * step) for step in STEPS.tolist()]
    return np.array([math.inf if spot is None else spot.log_loss for spot in spots])


def _lever(one: FamilyPlan, change: Change, scale: Array) -> Lever | None:
    spot = least_loss_of_lifetime(change.field, change.cost)
    if spot is None or not math.isfinite(scale[0]):
        return None
    loss, before = math.exp(spot.log_loss) + change.added, math.exp(scale[0])
    worth = float(np.exp(np.interp(-math.log(loss), -scale, np.log(STEPS))))
    size = at(change.field.curve.total_m, spot.place)
    words = f"{change.words}: loss {loss - before:+.4f}, worth {worth:.3g} times the budget; {short(size)} parameters, "
    return Lever(
        change=change.words,
        loss=loss,
        loss_change=loss - before,
        n_params=size,
        tokens=spot.tokens,
        cost_change=change.cost / one.lifetime_cost - 1,
        worth=worth,
        words=f"{words}{short(spot.tokens)} tokens",
    )
