"""`plan(question)`: the whole decision behind one function of plain data."""

import math

import numpy as np

from isoflop.decide import levers, limits, words
from isoflop.decide.answer import Candidate, Near, NoPlan, Plan, Point, Verdict
from isoflop.decide.belief import joint_draws
from isoflop.decide.command import command_of
from isoflop.decide.devices import Cluster, cluster_of, demand_of, served_by
from isoflop.decide.family_plan import FamilyPlan, completed, family_plan, settled
from isoflop.decide.frontier import curves
from isoflop.decide.near import best_sizes, near_places
from isoflop.decide.optimum import Spot, at, least_loss_of_lifetime, loss_at
from isoflop.decide.points import interval, loss_of, point, recommended
from isoflop.decide.question import Question
from isoflop.decide.trade import over_training, weight_types
from isoflop.laws.forms import Array

NEAR_POINTS = 9


def plan(question: Question) -> Plan:
    """The answer. Deterministic; a question that differs from an earlier one in a number takes tens of milliseconds.

    Raises ValueError for a question that cannot be answered as asked, and its kind NoPlan where the answer is no.
    """
    asked, cluster = settled(question), cluster_of(question)
    plans, failed = _each(asked, cluster)
    order = _ranked(plans)
    plans, order, misfits = _fitting(asked, plans, order, cluster)
    failed += misfits
    best = plans[order[0]]
    compared = _compared(plans, order)
    answer = recommended(asked, best, cluster)
    return Plan(
        recommended=answer,
        near_optimal=_near(asked, best),
        near_optimal_range=_near_range(asked, best),
        candidates=[*_candidates(asked, plans, order, compared, cluster), *failed],
        binding=limits.binding(asked, best, cluster),
        levers=levers.levers(asked, best, plans, cluster),
        training_optimal=point(best, best.training),
        lifetime_optimal=None if best.lifetime is None else point(best, best.lifetime),
        over_training=over_training(best),
        serving=weight_types(asked, best, cluster, answer.loss),
        curves=curves(asked, best, plans),
        lifetime_unit=best.field.unit,
        sentence=words.sentence(asked, best, plans, order, compared),
        notes=words.notes(asked, best, plans, cluster),
        command=command_of(question),
        question=question,
    )


def _each(question: Question, cluster: Cluster | None) -> tuple[list[FamilyPlan], list[Candidate]]:
    """The plan of each family that has one, and why the others have none. Raises NoPlan where none has."""
    plans: list[FamilyPlan] = []
    failed: list[Candidate] = []
    first: NoPlan | None = None
    for family in dict.fromkeys(question.families):
        try:
            plans.append(family_plan(question, family, cluster))
        except NoPlan as no:
            first = first or no
            failed.append(words.nothing_of(family, str(no)))
    if not plans:
        assert first is not None
        raise first
    return plans, failed


def _fitting(
    question: Question, plans: list[FamilyPlan], order: list[int], cluster: Cluster | None
) -> tuple[list[FamilyPlan], list[int], list[Candidate]]:
    """The plans with the first completed that fits the cluster, and those before it taken out. Raises NoPlan where none
    fits."""
    misfits: list[Candidate] = []
    first: NoPlan | None = None
    for place, i in enumerate(order):
        try:
            done = [completed(question, one, cluster) if k == i else one for k, one in enumerate(plans)]
        except NoPlan as no:
            first = first or no
            misfits.append(words.nothing_of(plans[i].field.family, str(no)))
            continue
        return done, order[place:], misfits
    assert first is not None
    raise first


def _ranked(plans: list[FamilyPlan]) -> list[int]:
    """Indices of the plans, the least expected loss at equal cost of the lifetime first."""
    cost = plans[0].lifetime_cost
    losses = [spot.log_loss if (spot := _at_equal_cost(one, cost)) is not None else math.inf for one in plans]
    return sorted(range(len(plans)), key=lambda i: losses[i])


def _at_equal_cost(one: FamilyPlan, cost: float) -> Spot | None:
    return least_loss_of_lifetime(one.field, cost)


def _compared(plans: list[FamilyPlan], order: list[int]) -> list[Array]:
    """Joint draws of the log loss of each plan's family at the best one's cost of the lifetime, each (R,)."""
    cost = plans[order[0]].lifetime_cost
    spots = [_at_equal_cost(one, cost) or one.chosen for one in plans]
    believed = [one.field.believed.between(spot.place) for one, spot in zip(plans, spots, strict=True)]
    return [drawn[:, 0] for drawn in joint_draws(believed, [np.array([spot.tokens]) for spot in spots])]


def _candidates(
    question: Question, plans: list[FamilyPlan], order: list[int], compared: list[Array], cluster: Cluster | None
) -> list[Candidate]:
    """Every family that has a plan, the recommended first."""
    losses = np.stack(compared)
    kept = sorted(order)
    wins = np.zeros(len(plans))
    wins[kept] = np.bincount(losses[kept].argmin(axis=0), minlength=len(kept)) / losses.shape[1]
    best = order[0]
    told = plans[best].field.believed.average.told
    out = []
    for i in order:
        better = float(np.mean(losses[i] < losses[best]))
        verdict: Verdict = "recommended" if i == best else "within noise" if better >= words.WITHIN_NOISE else "loses"
        out.append(_candidate(question, plans[i], cluster, float(wins[i]), verdict, losses[i], losses[best], told))
    return out


def _candidate(
    question: Question,
    one: FamilyPlan,
    cluster: Cluster | None,
    wins: float,
    verdict: Verdict,
    loss: Array,
    best: Array,
    told: bool,
) -> Candidate:
    served = None if cluster is None else served_by(one.built.decoder, cluster, demand_of(question))
    return Candidate(
        family=one.field.family,
        n_params=one.built.total,
        n_active=one.built.active,
        tokens=one.tokens,
        loss=loss_of(question, one) if told else None,
        p_best=wins if told else None,
        behind=interval(np.exp(loss) - np.exp(best), question.level, "assumed") if told else None,
        verdict=verdict if told else None,
        serve_flops_per_token=one.built.served_flops,
        serve_cost_per_mtok=None if served is None else served.usd_per_mtok,
        law=" + ".join(law.name for law in one.field.believed.average.laws),
        note=one.field.believed.factor.note,
        why_not=None,
    )


def _near(question: Question, best: FamilyPlan) -> list[Point]:
    """Sizes from the smallest to the largest whose loss is within the share asked for of the least."""
    found = near_places(question, best)
    if found is None:
        return []
    d_m = best.field.tokens(best.budget)
    spots = [(place, at(d_m, place)) for place in np.linspace(*found, NEAR_POINTS).tolist()]
    return [point(best, Spot(place, d, loss_at(best.field, place, d))) for place, d in spots]


def _near_range(question: Question, best: FamilyPlan) -> Near | None:
    found = near_places(question, best)
    if found is None:
        return None
    d_m, total_m = best.field.tokens(best.budget), best.field.curve.total_m
    tokens = [at(d_m, place) for place in found]
    low, high = best_sizes(question, best)
    return Near(
        question.within,
        at(total_m, found[0]),
        at(total_m, found[1]),
        min(tokens),
        max(tokens),
        low,
        high,
        question.level,
    )
