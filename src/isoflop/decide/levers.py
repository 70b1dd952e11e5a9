"""What would change the answer: levers, each worth so many times the compute.

All are weighed at equal cost of the lifetime: a lever's loss is that of the same cost after the change, and its worth
the factor on that cost which would do as much without it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from isoflop.decide.answer import Lever
from isoflop.decide.belief import Data
from isoflop.decide.devices import HOURS, Cluster, demand_of, served_by
from isoflop.decide.family_plan import FamilyPlan
from isoflop.decide.field import Field
from isoflop.decide.optimum import Spot, at, least_loss_of_lifetime
from isoflop.decide.question import ON_DEVICES, Question
from isoflop.hardware import GIB

MOST = 3
BISECTIONS = 30
MOST_WORTH = math.log(1e3)
LEAST_WORTH = 1.001


@dataclass(frozen=True)
class Change:
    """A field that a change of the question makes, and the cost it may spend."""

    words: str
    field: Field
    cost: float


def levers(question: Question, one: FamilyPlan, plans: list[FamilyPlan], cluster: Cluster | None) -> list[Lever]:
    """The three changes that help most, the best first; none where the laws tell no loss."""
    if not one.field.believed.average.told:
        return []
    told = [lever for change in _changes(question, one, plans, cluster) if (lever := _lever(one, change)) is not None]
    return sorted((lever for lever in told if lever.worth > LEAST_WORTH), key=lambda lever: -lever.worth)[:MOST]


def _changes(question: Question, one: FamilyPlan, plans: list[FamilyPlan], cluster: Cluster | None) -> Iterator[Change]:
    field, cost = one.field, one.lifetime_cost
    yield Change("twice the cost, training and serving", field, 2 * cost)
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
    """Serving in half as many bits, where devices say what that saves."""
    if cluster is None or question.served.weights not in ("bf16", "fp16"):
        return
    now, then = (
        served_by(one.built.decoder, cluster, demand_of(question, weights))
        for weights in (question.served.weights, "int8")
    )
    if now is None or then is None:
        return
    ratio = (then.devices / then.tokens_per_s.value) / (now.devices / now.tokens_per_s.value)
    yield Change(
        "weights of 8 bits in serving", replace(one.field, serve_m=one.field.serve_m * ratio), one.lifetime_cost
    )


def _lever(one: FamilyPlan, change: Change) -> Lever | None:
    spot = least_loss_of_lifetime(change.field, change.cost)
    base = least_loss_of_lifetime(one.field, one.lifetime_cost)
    if spot is None or base is None:
        return None
    worth = _worth(one, spot.log_loss, base)
    loss, before = math.exp(spot.log_loss), math.exp(base.log_loss)
    size = at(change.field.curve.total_m, spot.place)
    words = f"{change.words}: loss {loss - before:+.4f}, worth {worth:.3g} times the cost; {size:.3g} parameters, "
    return Lever(
        change=change.words,
        loss=loss,
        loss_change=loss - before,
        n_params=size,
        tokens=spot.tokens,
        cost_change=change.cost / one.lifetime_cost - 1,
        worth=worth,
        words=f"{words}{spot.tokens:.3g} tokens",
    )


def _worth(one: FamilyPlan, log_loss: float, base: Spot) -> float:
    """The factor on the cost at which the field as it is reaches this loss, at most a thousand."""
    if log_loss >= base.log_loss:
        return 1.0
    low, high = 0.0, MOST_WORTH
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        spot = least_loss_of_lifetime(one.field, one.lifetime_cost * math.exp(middle))
        above = spot is None or spot.log_loss > log_loss
        low, high = (middle, high) if above else (low, middle)
    return math.exp(high)
