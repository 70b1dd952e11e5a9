"""The plan of one family: its field in the right units, the points that matter, the decoder that stands for them."""

import math
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from isoflop.cost.flops import flops
from isoflop.decide.answer import NoPlan
from isoflop.decide.belief import Believed
from isoflop.decide.curve import Member, member
from isoflop.decide.devices import (
    Cluster,
    device_hours,
    flops_an_hour,
    flops_an_hour_of,
    training_of,
    usual_flops_an_hour,
    with_serving,
)
from isoflop.decide.field import Field, field_of, setting
from isoflop.decide.optimum import Spot, at, cheapest_of_loss, least_loss, on_path
from isoflop.decide.question import ON_DEVICES, QualityOf, Question, TargetLoss
from isoflop.decide.shapes import of_size
from isoflop.laws.forms import Array

ROUNDS = 2  # of finding a layout, and the size that its rate makes best
BISECTIONS = 60
BUDGETS = (1e9, 1e32)
LEAST_TOKENS_PER_PARAM = 1e-2


@dataclass(frozen=True)
class FamilyPlan:
    """`budget` in the unit of `field.limited_m`; places on the field; the member that was built for the chosen one,
    and its tokens."""

    field: Field
    budget: float
    training: Spot
    lifetime: Spot | None
    chosen: Spot
    built: Member
    tokens: float
    served_tokens: float

    @property
    def lifetime_cost(self) -> float:
        """Of the chosen place, training and serving, in the unit of `field.train_m`."""
        place = self.chosen.place
        return at(self.field.train_m, place) * self.chosen.tokens + at_or_zero(self.field.serve_m, place)


def at_or_zero(values_m: Array, place: float) -> float:
    """`at`, of a cost that may be nothing."""
    return at(values_m, place) if values_m.all() else 0.0


def family_plan(question: Question, family: str, cluster: Cluster | None) -> FamilyPlan:
    """The plan of a family. Raises NoPlan where the limits leave nothing, ValueError for what is no family or law."""
    field = field_of(question, family)
    if isinstance(question.goal, TargetLoss):
        return _of_quality(question, field, cluster)
    hours = None if cluster is None else device_hours(question.goal, cluster)
    if cluster is None:
        return _finished(question, field, question.goal.amount)
    rate, budget, total = usual_flops_an_hour(cluster), question.goal.amount, 0.0
    for _ in range(ROUNDS):
        limited = field if hours is None else replace(field, limited_m=field.curve.train_m / rate)
        total = at(field.curve.total_m, _least(limited, hours or budget).place)
        rate = flops_an_hour(field, total, cluster, question.context)
    limited = field if hours is None else replace(field, limited_m=field.curve.train_m / rate)
    return _finished(question, with_serving(limited, question, cluster, total, rate), hours or budget)


def _least(field: Field, budget: float) -> Spot:
    """The training optimum. Raises NoPlan where the budget or the limits allow nothing."""
    spot = least_loss(field, budget)
    if spot is None or spot.tokens < LEAST_TOKENS_PER_PARAM * at(field.curve.active_m, spot.place):
        raise NoPlan(_nothing(field, budget))
    return spot


def _better_than_guessing(field: Field, spot: Spot, vocab_size: int) -> None:
    """Raise NoPlan for a loss above that of a guess among all tokens, which no law means."""
    loss, guess = math.exp(spot.log_loss), math.log(vocab_size)
    if field.believed.average.told and loss > guess:
        raise NoPlan(
            f"the budget buys nothing: the best of family {field.family}, of {at(field.curve.total_m, spot.place):.3g} "
            f"parameters on {spot.tokens:.3g} tokens, ends at a loss of {loss:.3g}, and a blind guess among "
            f"{vocab_size} tokens at {guess:.3g}"
        )


def _nothing(field: Field, budget: float) -> str:
    if not field.ok_m.any():
        limit = " and ".join(field.reasons)
        return (
            f"no size of family {field.family} meets the limit of {limit}: the smallest has "
            f"{field.curve.total_m[0]:.3g} parameters and takes {field.memory_m[0] / 2**30:.3g} GiB"
        )
    least = field.curve.active_m[0] * field.limited_m[0] * LEAST_TOKENS_PER_PARAM
    return (
        f"the budget buys nothing: the smallest model of family {field.family}, of {field.curve.total_m[0]:.3g} "
        f"parameters, needs {least:.3g} for a token to each hundred of them, and there are {budget:.3g}"
    )


def _finished(question: Question, field: Field, budget: float) -> FamilyPlan:
    """The plan of a budget, in the unit of `field.limited_m`."""
    training = _least(field, budget)
    chosen = on_path(field, budget, training)
    built = _built(question, field, chosen)
    _better_than_guessing(field, chosen, built.decoder.vocab_size)
    a_token = built.train_flops / at(field.curve.train_m, chosen.place) * at(field.limited_m, chosen.place)
    tokens = min(budget / a_token, field.most_tokens)
    return FamilyPlan(field, budget, training, None, chosen, built, tokens, question.served.tokens)


def completed(question: Question, one: FamilyPlan, cluster: Cluster | None) -> FamilyPlan:
    """The plan with its lifetime's optimum, and with the tokens that its own layout buys in a budget of time. Raises
    NoPlan where it fits no layout."""
    field, decoder = one.field, one.built.decoder
    if cluster is not None:
        training_of(decoder, cluster, question.context)
    if one.lifetime is None and field.serve_m.any() and field.believed.average.told:
        one = replace(one, lifetime=cheapest_of_loss(field, one.training.log_loss, True, one.training.place))
    if cluster is None or not isinstance(question.goal, ON_DEVICES):
        return one
    a_token = flops(decoder, question.context, "exact").train_per_token
    bought = one.budget * flops_an_hour_of(decoder, cluster, question.context) / a_token
    return replace(one, tokens=min(bought, field.most_tokens))


def _built(question: Question, field: Field, spot: Spot) -> Member:
    return member(of_size(field.curve.shape, at(field.curve.total_m, spot.place)), setting(question))


def _of_quality(question: Question, field: Field, cluster: Cluster | None) -> FamilyPlan:
    """The least cost of a loss."""
    if not field.believed.average.told:
        raise ValueError("--target-loss needs a law that tells a loss; an allocation law tells none")
    log_loss = math.log(question.goal.amount)
    training = cheapest_of_loss(field, log_loss, serve=False)
    if training is None:
        raise NoPlan(_unreachable(field, log_loss))
    if cluster is not None:
        total = at(field.curve.total_m, training.place)
        rate = flops_an_hour(field, total, cluster, question.context)
        field = with_serving(field, question, cluster, total, rate)
        training = cheapest_of_loss(field, log_loss, serve=False)
        if training is None:
            raise NoPlan(_nothing(field, 0.0))
    lifetime = cheapest_of_loss(field, log_loss, serve=True) if field.serve_m.any() else None
    chosen = lifetime or training
    built = _built(question, field, chosen)
    tokens = _tokens_of(built, field, chosen, log_loss)
    budget = at(field.limited_m, chosen.place) * chosen.tokens
    return FamilyPlan(field, budget, training, lifetime, chosen, built, tokens, question.served.tokens)


def _unreachable(field: Field, log_loss: float) -> str:
    return (
        f"family {field.family} reaches a loss of {math.exp(log_loss):.4g} at no size: it is at or below the law's "
        "floor, or beyond what the data and memory allow"
    )


def _tokens_of(built: Member, field: Field, spot: Spot, log_loss: float) -> float:
    """Tokens at which the built member reaches the loss: the place's, moved along the curve of equal loss."""
    believed = exactly(built, field, spot)
    low, high = spot.tokens / 8, spot.tokens * 8
    for _ in range(BISECTIONS):
        middle = float(np.sqrt(low * high))
        above = float(believed.mean(np.array([middle]))[0]) > log_loss
        low, high = (middle, high) if above else (low, middle)
    return high


def exactly(built: Member, field: Field, spot: Spot) -> Believed:
    """The belief about the built member alone, of one size."""
    return replace(
        field.believed.between(spot.place),
        n={name: np.array([float(value)]) for name, value in built.convention.items()},
    )


def settled(question: Question) -> Question:
    """The question with a quality in the place of a size: the loss of the dense model of so many parameters that is
    optimal to train, without the question's limits. Raises ValueError for a law that tells no loss."""
    if not isinstance(question.goal, QualityOf):
        return question
    free = Question(
        goal=question.goal,
        laws=question.laws,
        count=question.count,
        context=question.context,
        vocab_size=question.vocab_size,
    )
    field = field_of(free, "dense")
    if not field.believed.average.told:
        raise ValueError("--quality-of needs a law that tells a loss; an allocation law tells none")
    low, high = map(math.log, BUDGETS)
    log_loss = math.inf
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        spot = least_loss(field, math.exp(middle))
        small = spot is None or at(field.curve.active_m, spot.place) < question.goal.amount
        low, high = (middle, high) if small else (low, middle)
        log_loss = log_loss if spot is None else spot.log_loss
    return msgspec.structs.replace(question, goal=TargetLoss(math.exp(log_loss)))
