"""The decision in sentences."""

import math

import numpy as np

from isoflop.decide.answer import Candidate
from isoflop.decide.devices import Cluster
from isoflop.decide.family_plan import FamilyPlan
from isoflop.decide.numbers import short
from isoflop.decide.optimum import at
from isoflop.decide.question import DEFAULT_LAW, LawChoice, Question
from isoflop.laws.forms import Array

WITHIN_NOISE = 0.10  # probability of being better than the recommended from which a candidate is not ruled out
OFTEN = 4.0  # epochs beyond which repeated tokens are worth visibly less


def sentence(
    question: Question, one: FamilyPlan, plans: list[FamilyPlan], order: list[int], compared: list[Array]
) -> str:
    """Train this; these are within noise; those lose."""
    built = one.built
    size = short(built.total) if built.active == built.total else f"{short(built.total)} ({short(built.active)} active)"
    text = f"Train {one.field.family}, {size} parameters on {short(one.tokens)} tokens"
    if one.field.believed.average.told:
        text += f", to a loss of {math.exp(one.chosen.log_loss):.3f}"
    noise: list[str] = []
    losing: list[str] = []
    for i in order[1:]:
        near = float(np.mean(compared[i] < compared[order[0]])) >= WITHIN_NOISE
        (noise if near else losing).append(plans[i].field.family)
    if one.field.believed.average.told:
        text += f"; {_are(noise)} within noise" if noise else ""
        text += f"; {_join(losing)} {'loses' if len(losing) == 1 else 'lose'}" if losing else ""
    return text + "."


def _are(names: list[str]) -> str:
    return f"{_join(names)} {'is' if len(names) == 1 else 'are'}"


def _join(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def notes(question: Question, one: FamilyPlan, plans: list[FamilyPlan], cluster: Cluster | None) -> list[str]:
    """What the answer rests on, and where it is doubtful."""
    said = []
    if question.laws == (LawChoice(name=DEFAULT_LAW),):
        said.append(f"no law was given: {DEFAULT_LAW}, the refit of Chinchilla's runs; your own data has its own law")
    built, average = one.built, one.field.believed.average
    for law in average.laws:
        said += law.cautions(float(built.convention[law.convention]), one.tokens)
    said += [doubt for plan in plans for law in plan.field.believed.average.laws for doubt in law.doubts]
    if len(average.laws) > 1:
        named = zip(average.laws, average.weights, strict=True)
        weights = ", ".join(f"{law.name} {weight:.0%}" for law, weight in named)
        said.append(
            f"laws averaged: {weights}; losses of other data are another unit; disagreement widens the interval"
        )
    if not average.told:
        said.append("the law allocates a budget and tells no loss: nothing is compared, no interval is given")
    said += [f"{plan.field.family}: {note}" for plan in plans if (note := plan.field.believed.factor.note)]
    if question.unique_tokens is not None and one.tokens > OFTEN * question.unique_tokens:
        epochs = one.tokens / question.unique_tokens
        said.append(f"{epochs:.3g} epochs: repeats are worth less, with a half-life of 15 (Muennighoff et al. 2023)")
    last = len(one.field.train_m) - 1
    if not 1 < one.training.place < last - 1:
        size = at(one.field.curve.total_m, one.training.place)
        said.append(f"the best size lies at the edge of the sizes tried, {size:.3g} parameters")
    if cluster is not None and cluster.price is not None:
        price = cluster.price
        said.append(f"{price.low:g} to {price.high:g} dollars a device hour, {price.date}: {price.source}")
    return list(dict.fromkeys(said))


def nothing_of(family: str, why: str) -> Candidate:
    """A family of which nothing is possible."""
    nothing = dict.fromkeys(Candidate.__struct_fields__)
    return Candidate(**{**nothing, "family": family, "law": "", "note": "", "why_not": why})  # type: ignore[arg-type]
