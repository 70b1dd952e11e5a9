"""Figure 5: the best N and D against compute under the law."""

from collections.abc import Callable

import numpy as np

from isoflop.report import groups
from isoflop.report.chart import LAW_COLOUR, Axis, Chart, Panel, Series, family_colours
from isoflop.report.common import (
    NO_LAW,
    fitted,
    floats,
    flops_axis,
    frontier_points,
    label,
    n_axis,
    note,
    optimum_note,
    percent,
)
from isoflop.report.frontier import at_ratio, price
from isoflop.report.load import Law, Study
from isoflop.table import RunRow

TOKENS_PER_PARAMETER = 20.0  # the rule of thumb read off Hoffmann et al. 2022, table A3


def allocation(study: Study) -> Chart:
    """The best N and D against compute under each law, beside 20 tokens a parameter."""
    title = "Best size and best number of tokens against compute"
    if not any(frontier_points(study, law) for law in study.laws.values()):
        return Chart("allocation", title, "", absent=NO_LAW)
    sizes, tokens = _rule_of_thumb(study)
    n_series, d_series = [sizes], [tokens]
    for family, colour in family_colours(study.families).items():
        if family in study.laws:
            name = label(study, family, "best under the fitted law")
            points = [p for p in frontier_points(study, study.laws[family]) if p.n and p.tokens]
            x, notes = tuple(p.flops for p in points), tuple(optimum_note(p) for p in points)
            n_series += _band(study, family, colour, [(p.flops, p.n_ends) for p in points])
            d_series += _band(study, family, colour, [(p.flops, p.tokens_ends) for p in points])
            n_series.append(Series(name, "line", colour, x, tuple(p.n or 0 for p in points), notes=notes))
            d_series.append(Series(name, "line", colour, x, tuple(p.tokens or 0 for p in points), notes=notes))
            n_series += _lowest_runs(study, family, colour, study.n)
            d_series += _lowest_runs(study, family, colour, lambda row: float(row.tokens))
    d_axis = Axis("training tokens D", log=True, unit="short")
    panels = (Panel(flops_axis(), n_axis(study), tuple(n_series)), Panel(flops_axis(), d_axis, tuple(d_series)))
    return Chart("allocation", title, _allocation_caption(study), panels)


def _band(study: Study, family: str, colour: str, ends: list[tuple[float, tuple[float, float] | None]]) -> list[Series]:
    """The interval of the best size (or D), where the bootstrap gives one."""
    known = [(flops, *pair) for flops, pair in ends if pair is not None]
    if not known:
        return []
    x, low, high = zip(*known, strict=True)
    return [Series(label(study, family, "interval of the best"), "band", colour, x, low=low, high=high)]


def _rule_of_thumb(study: Study) -> tuple[Series, Series]:
    """N and D of 20 tokens a parameter, over the drawn budgets, at what the runs' FLOPs cost."""
    points = [point.flops for law in study.laws.values() for point in frontier_points(study, law)]
    x = np.geomspace(min(points), max(points), 31)
    cost = price(study, study.rows)
    pairs = [at_ratio(cost, float(flops), TOKENS_PER_PARAMETER) for flops in x]
    name = f"{TOKENS_PER_PARAMETER:.0f} tokens a parameter"
    drawn = [Series(name, "line", LAW_COLOUR, floats(x), y, dash="dash", width=1.5) for y in zip(*pairs, strict=True)]
    return drawn[0], drawn[1]


def _lowest_runs(study: Study, family: str, colour: str, value: Callable[[RunRow], float]) -> list[Series]:
    """The measured counterpart: the size (or D) of the run of lowest loss at each budget, where runs share budgets."""
    rows = fitted(study, family)
    if not groups.is_isoflop(study, rows):
        return []
    parts = [group for group in groups.by_flops(rows) if groups.is_curve(study, group)]
    best = [min(group.rows, key=lambda row: float(row.loss_valid or 0)) for group in parts]
    x, y = tuple(row.flops_exact for row in best), tuple(value(row) for row in best)
    notes = tuple(note(study, row) for row in best)
    return [
        Series(
            label(study, family, "lowest run of a budget"), "points", colour, x, y, symbol="circle-open", notes=notes
        )
    ]


def _allocation_caption(study: Study) -> str:
    text = (
        "What to buy with a compute, under the fitted law. Circles are the run of lowest loss at each budget of three"
        " sizes or more: they come in steps, since only the sizes that were trained can win. The dashed line is the"
        " Chinchilla rule of thumb of 20 tokens a parameter; where it crosses the law depends on what N counts (see the"
        " axis)."
    )
    levels = {p.level for law in study.laws.values() for p in law.band if p.n_ends and p.level is not None}
    if levels:
        text += f" Shaded: {percent(max(levels))} intervals of the best N and D, by refitting to resampled trunks."
    named = len(study.families) > 1
    exponents = [
        f"{law.family if named else 'the law'} has N growing as C^{a:.2f}, D as C^{1 - a:.2f}"
        for law, a in _exponents(study)
    ]
    return f"{text} At six FLOPs a parameter and token, {'; '.join(exponents)}." if exponents else text


def _exponents(study: Study) -> list[tuple[Law, float]]:
    """a in N ~ C^a: beta / (alpha + beta) (Hoffmann et al. 2022, eq. 4)."""
    laws = [law for law in study.laws.values() if law.alpha + law.beta > 0]
    return [(law, law.beta / (law.alpha + law.beta)) for law in laws]
