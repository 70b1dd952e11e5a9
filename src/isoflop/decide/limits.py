"""Which limits shape the answer, and what the loss would be without each."""

import math
from dataclasses import replace

import numpy as np

from isoflop.decide.answer import Binding
from isoflop.decide.belief import Data
from isoflop.decide.devices import HOURS, Cluster
from isoflop.decide.family_plan import FamilyPlan
from isoflop.decide.field import Field
from isoflop.decide.numbers import short
from isoflop.decide.optimum import at, least_loss_of_lifetime
from isoflop.decide.question import ON_DEVICES, Question, TargetLoss

SHARES = tuple(10.0 ** (-k / 4) for k in range(-1, 25))  # of a budget, at which it is seen what it does
SAME = 1e-4  # of log loss: what is nearer is no better
LEAST = 1e-6  # of log loss: a limit that costs less does not bind
UNITS = {"flops": "FLOPs", "accelerator-hours": HOURS, "dollars": "dollars", "deadline": "days", "target-loss": "loss"}


def binding(question: Question, one: FamilyPlan, cluster: Cluster | None) -> list[Binding]:
    """The limits that bind, the goal first, then those that cost most loss."""
    goal = str(question.goal.__struct_config__.tag)
    words = f"{question.goal.amount:.4g} {UNITS[goal]}: {_more(one)}"
    if isinstance(question.goal, TargetLoss):
        words = f"the loss of {question.goal.amount:.4g} that is wanted"
    elif isinstance(question.goal, ON_DEVICES):
        words += f"; it is {one.budget:.4g} device hours"
    first = Binding(goal, question.goal.amount, UNITS[goal], None, words)
    return [first] if isinstance(question.goal, TargetLoss) else [first, *_others(question, one)]


def _more(one: FamilyPlan) -> str:
    """What more of the budget would do, and where nothing, what less would."""
    here, double = _loss_of_share(one, 1.0), _loss_of_share(one, 2.0)
    if not one.field.believed.average.told or double < here - SAME:
        return "more would lower the loss"
    enough = min(share for share in SHARES if _loss_of_share(one, share) < double + SAME)
    spent = at(one.field.limited_m, one.chosen.place) * one.chosen.tokens / one.budget  # less than 1: no more tokens
    share = min(1.0, enough * spent)
    return f"more would not lower the loss, and {share:.2g} of it would do as well: the data are used up"


def _loss_of_share(one: FamilyPlan, share: float) -> float:
    spot = least_loss_of_lifetime(one.field, one.lifetime_cost * share)
    return math.inf if spot is None else spot.log_loss


def _others(question: Question, one: FamilyPlan) -> list[Binding]:
    if not one.field.believed.average.told:
        return []
    field, found = one.field, []
    here = math.exp(one.chosen.log_loss)
    if question.unique_tokens is not None:
        free = replace(field, believed=replace(field.believed, data=Data()), most_tokens=np.inf)
        found.append(_without("unique tokens", question.unique_tokens, "tokens", free, one))
    if not field.ok_m.all():
        free = replace(field, ok_m=np.ones_like(field.ok_m))
        for reason in field.reasons:
            value, unit = _value(question, reason)
            found.append(_without(reason, value, unit, free, one))
    if field.serve_m.any():
        size, best = (at(field.curve.total_m, spot.place) for spot in (one.chosen, one.training))
        loss = math.exp(one.training.log_loss)
        if size < 0.99 * best:
            words = (
                f"serving makes {short(size)} parameters cheaper over the lifetime than the {short(best)} best to train"
            )
            found.append(Binding("served tokens", question.served.tokens, "tokens", loss, words))
    return sorted((b for b in found if b is not None), key=lambda b: b.loss_without or here)


def _value(question: Question, reason: str) -> tuple[float, str]:
    if reason == "serving memory":
        return question.serve_memory_gib or 0.0, "GiB"
    return question.served.latency_ms or 0.0, "ms a token"


def _without(limit: str, value: float, unit: str, free: Field, one: FamilyPlan) -> Binding | None:
    """At equal cost of the lifetime; None where nothing is gained."""
    base, spot = (least_loss_of_lifetime(field, one.lifetime_cost) for field in (one.field, free))
    if spot is None or base is None or spot.log_loss > base.log_loss - LEAST:
        return None
    loss = math.exp(spot.log_loss)
    size = at(free.curve.total_m, spot.place)
    words = f"without the limit of {value:.4g} {unit}: {short(size)} parameters, {short(spot.tokens)} tokens, "
    return Binding(limit, value, unit, loss, f"{words}loss {loss - math.exp(base.log_loss):+.4f} at the same cost")
