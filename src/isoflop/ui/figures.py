"""Figures of a plan, as the report's plain charts: the isoFLOP curve, and what a lifetime costs.

Legend: s numbers of served tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import compress

import numpy as np

from isoflop.decide.answer import IsoCost, Plan
from isoflop.decide.family_plan import FamilyPlan
from isoflop.decide.optimum import Spot, at, tokens_for_loss
from isoflop.decide.question import FAMILIES
from isoflop.laws.forms import Array
from isoflop.report.chart import FAMILY_COLOURS, LAW_COLOUR, Axis, Chart, Dash, Panel, Series, power, short
from isoflop.report.decision import iso_loss

ISOFLOP = "Loss of every size that the budget buys"
TRAINING = "training-optimal"
SHOWN_LOSS = 1.12  # of the least loss, up to which the curves are drawn
SMALLER = 180  # sizes of the grid below the training optimum that may serve cheaper
CHEAPEST_COLOUR = "#6a6fd8"  # no family's
REACH = 40.0  # of the best size, to either side
DEMANDS, AROUND = 25, 100.0  # served tokens drawn: how many, and how far about those that cost as much as training


def charts(plan: Plan, best: FamilyPlan) -> list[Chart]:
    """The figures of a plan; `best` the recommended family's plan."""
    if plan.curves.iso_loss is None:
        why = "This law tells the best size and tokens of a budget, and no loss, so there is no curve to draw."
        return [Chart("isoflop", ISOFLOP, "", absent=why), _lifetime(plan, best)]
    return [_isoflop(plan), _lifetime(plan, best), replace(iso_loss(plan), key="equal-loss")]


def colour_of(family: str, families: Sequence[str]) -> str:
    """A family keeps its colour whichever others are asked about."""
    known = [*FAMILIES, *(name for name in families if name not in FAMILIES)]
    return FAMILY_COLOURS[known.index(family) % len(FAMILY_COLOURS)]


def _isoflop(plan: Plan) -> Chart:
    chosen, best = plan.recommended.architecture.family, plan.training_optimal
    assert best.loss is not None
    lines: list[Series] = []
    band: list[Series] = []
    own = colour_of(chosen, plan.question.families)
    for one in plan.curves.iso_cost:
        colour, shown = colour_of(one.family, plan.question.families), _shown(one, best.n_params, best.loss)
        lines.append(_line_of(shown, colour, 2.2 if one.family == chosen else 1.4))
        if one.family == chosen:
            low, high = tuple(shown.low), tuple(shown.high)
            band = [Series("", "band", colour, tuple(shown.n_params), low=low, high=high)]
    within = f"{plan.question.within:.1%}"
    caption = (
        f"One budget, spent on models of different sizes. Shaded: the {plan.question.level:.0%} interval of {chosen}. "
        f"Thick: the sizes whose loss is within {within} of the least; any of them is as good a choice."
    )
    axes = Axis("parameters, all of them", log=True, unit="short"), Axis("loss, nats per token")
    series = (*band, *_near(plan, within, own), *reversed(lines), *_marks(plan, own))
    return Chart("isoflop", ISOFLOP, caption, (Panel(*axes, series),))


def _shown(one: IsoCost, size: float, least: float) -> IsoCost:
    """The part of a curve about the best size, as far as its loss is worth showing."""
    near = [abs(math.log(n / size)) < math.log(REACH) for n in one.n_params]
    keep = [a and ok and loss < SHOWN_LOSS * least for a, ok, loss in zip(near, one.possible, one.loss, strict=True)]
    lists = {name: list(compress(getattr(one, name), keep)) for name in one.__struct_fields__ if name != "family"}
    return IsoCost(family=one.family, **lists)


def _line_of(one: IsoCost, colour: str, width: float) -> Series:
    triples = zip(one.n_params, one.tokens, one.loss, strict=True)
    notes = tuple(f"{one.family}\nN {short(n)} · D {short(d)}\nloss {loss:.4f}" for n, d, loss in triples)
    return Series(one.family, "line", colour, tuple(one.n_params), tuple(one.loss), width=width, notes=notes)


def _near(plan: Plan, within: str, colour: str) -> list[Series]:
    sizes = [(point.n_params, point.loss) for point in plan.near_optimal if point.loss is not None]
    if not sizes:
        return []
    x, y = zip(*sizes, strict=True)
    return [Series(f"within {within} of the least", "line", colour, x, y, width=7)]


def _marks(plan: Plan, colour: str) -> list[Series]:
    chosen, training = plan.recommended, plan.training_optimal
    marks = []
    if training.loss is not None and plan.over_training is not None:
        note = f"{TRAINING}\nN {short(training.n_params)} · D {short(training.tokens)}\nloss {training.loss:.4f}"
        where = (training.n_params,), (training.loss,)
        marks.append(Series(TRAINING, "points", LAW_COLOUR, *where, symbol="circle-open", notes=(note,)))
    if chosen.loss is not None:
        note = f"recommended\nN {short(chosen.n_params)} · D {short(chosen.tokens)}\nloss {chosen.loss.value:.4f}"
        at_ = (float(chosen.n_params),), (chosen.loss.value,)
        marks.append(Series("recommended", "points", colour, *at_, symbol="diamond", size=11, notes=(note,)))
    return marks


def _lifetime(plan: Plan, best: FamilyPlan) -> Chart:
    """Training and serving together, in FLOPs as the question counts them."""
    counted, title = plan.question.count, "What a lifetime costs"
    demand_s = _demands(plan, best)
    lines = [
        _line(TRAINING, best, best.training, demand_s, LAW_COLOUR),
        _line("recommended", best, best.chosen, demand_s, colour_of(best.field.family, plan.question.families)),
    ]
    if best.field.believed.average.told:
        lines.append(_cheapest(best, demand_s))
    served = plan.question.served.tokens
    if served:
        lines.append(_asked(served, [value for line in lines for value in line.y]))
    words = "exact" if counted == "exact" else "6 N D and 2 N a served token"
    caption = (
        f"Training and serving together ({words}). The cheapest model of the training-optimal one's loss is smaller, "
        "and trained for longer, the more tokens are served."
    )
    axes = Axis("tokens served", log=True, unit="short"), Axis("FLOPs", log=True, unit="power")
    return Chart("lifetime", title, caption, (Panel(*axes, tuple(lines)),))


def _demands(plan: Plan, best: FamilyPlan) -> Array:
    """Served tokens about those that cost as much as training does, and about those asked for."""
    curve, spot = best.field.curve, best.training
    equal = at(curve.train_m, spot.place) * spot.tokens / at(curve.served_m, spot.place)
    served = plan.question.served.tokens or equal
    return np.geomspace(min(equal / AROUND, served / 3), max(equal * AROUND, served * 3), DEMANDS)


def _line(name: str, best: FamilyPlan, spot: Spot, demand_s: Array, colour: str) -> Series:
    curve = best.field.curve
    total_s = at(curve.train_m, spot.place) * spot.tokens + at(curve.served_m, spot.place) * demand_s
    size = short(at(curve.total_m, spot.place))
    notes = tuple(
        f"{name}, N {size}\n{short(s)} served\n{power(c)} FLOPs" for s, c in zip(demand_s, total_s, strict=True)
    )
    dash: Dash = "dash" if name == TRAINING else "solid"
    return Series(name, "line", colour, _floats(demand_s), _floats(total_s), dash=dash, notes=notes)


def _cheapest(best: FamilyPlan, demand_s: Array) -> Series:
    """For each demand the cheapest model of the training-optimal one's loss."""
    start = max(0, int(best.training.place) - SMALLER)
    field = best.field.part(slice(start, int(best.training.place) + 2))
    curve, tokens_m = field.curve, tokens_for_loss(field, best.training.log_loss)
    train_m = np.where(field.ok_m, curve.train_m * tokens_m, np.inf)
    x, y, notes = [], [], []
    for served in demand_s:
        total_m = train_m + served * curve.served_m
        m = int(total_m.argmin())
        x.append(float(served))
        y.append(float(total_m[m]))
        size, tokens = short(curve.total_m[m]), short(tokens_m[m])
        notes.append(f"cheapest of that loss: N {size} · D {tokens}\n{short(served)} served\n{power(y[-1])} FLOPs")
    name = "cheapest of the training-optimal loss"
    return Series(name, "line+points", CHEAPEST_COLOUR, tuple(x), tuple(y), size=5, width=1.6, notes=tuple(notes))


def _asked(served: float, costs: list[float]) -> Series:
    note = f"asked for: {short(served)} served"
    ends = (min(costs), max(costs))
    return Series("asked for", "line", LAW_COLOUR, (served, served), ends, dash="dot", width=1.4, notes=(note, note))


def _floats(values: Array) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
