"""Curves behind an answer: loss along an equal training cost, and cost along an equal loss."""

import math

import numpy as np

from isoflop.decide.answer import Curves, IsoCost, IsoLoss
from isoflop.decide.belief import joint_draws
from isoflop.decide.family_plan import FamilyPlan
from isoflop.decide.optimum import tokens_for_loss
from isoflop.decide.question import Question

BELOW, ABOVE, EVERY = 130, 90, 4  # sizes of the grid about the training optimum
DEAREST = 20.0  # times the least training cost, beyond which a size of equal loss is not shown


def curves(question: Question, best: FamilyPlan, plans: list[FamilyPlan]) -> Curves:
    """The curves of every family at the budget, and of the best one at its training optimum's loss."""
    if not best.field.believed.average.told:
        return Curves([], None)
    return Curves([iso_cost(question, one) for one in plans], iso_loss(best))


def _about(one: FamilyPlan) -> slice:
    middle = int(one.training.place)
    return slice(max(0, middle - BELOW), middle + ABOVE, EVERY)


def iso_cost(question: Question, one: FamilyPlan) -> IsoCost:
    """Loss and its interval over the sizes that spend the training budget."""
    some = one.field.part(_about(one))
    d_m = some.tokens(one.budget)
    keep = d_m >= 1.0
    d_m = np.maximum(d_m, 1.0)
    (drawn,) = joint_draws([some.believed], [d_m])
    mean = np.exp(some.believed.mean(d_m))
    low, high = np.quantile(np.exp(drawn), [(1 - question.level) / 2, (1 + question.level) / 2], axis=0)
    return IsoCost(
        family=some.family,
        n_params=some.curve.total_m[keep].tolist(),
        n_active=some.curve.active_m[keep].tolist(),
        tokens=d_m[keep].tolist(),
        loss=mean[keep].tolist(),
        low=low[keep].tolist(),
        high=high[keep].tolist(),
        possible=some.ok_m[keep].tolist(),
    )


def iso_loss(best: FamilyPlan) -> IsoLoss:
    """Training cost, and with serving, over the sizes that reach the training optimum's loss."""
    some = best.field.part(_about(best))
    d_m = tokens_for_loss(some, best.training.log_loss)
    train = np.where(np.isfinite(d_m), some.train_m * np.where(np.isfinite(d_m), d_m, 1.0), np.inf)
    keep = train <= DEAREST * train.min()
    return IsoLoss(
        loss=math.exp(best.training.log_loss),
        n_params=some.curve.total_m[keep].tolist(),
        tokens=d_m[keep].tolist(),
        train=train[keep].tolist(),
        lifetime=(train + some.serve_m)[keep].tolist(),
    )
