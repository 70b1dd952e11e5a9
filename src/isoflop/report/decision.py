"""A plan as a page: the sentence, the curves behind it, the candidates, what binds and what would help."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from isoflop.atomic import write_atomically
from isoflop.decide.answer import IsoCost, Plan
from isoflop.decide.vary import Bar
from isoflop.report.chart import Axis, Chart, Panel, Series, family_colours, short
from isoflop.report.page import HINT, document, figure

SIZE = Axis("parameters, all", log=True, unit="short")
LOSS = "loss the law expects"


def write_page(path: str | Path, plan: Plan, bars: Sequence[Bar] = ()) -> None:
    """Write the page, atomically. ValueError where plotly is not installed."""
    write_atomically(Path(path), page(plan, bars).encode())


def page(plan: Plan, bars: Sequence[Bar] = ()) -> str:
    """The page as HTML that needs nothing else."""
    drawn = charts(plan)
    binds = "".join(f"<li>{escape(one.limit)}: {escape(one.words)}</li>" for one in plan.binding)
    helps = "".join(f"<li>{escape(one.words)}</li>" for one in plan.levers)
    notes = "".join(f"<li>{escape(note)}</li>" for note in plan.notes)
    body = (
        f'<header><h1>Isoflop plan</h1><p class="answer">{escape(plan.sentence)}</p>'
        f"<p>{escape(plan.recommended.architecture.summary)}</p></header>"
        f'<section class="warnings"><h2>Before you rely on this</h2><ul>{notes}</ul></section>'
        f"<section><h2>Figures</h2><p>{HINT}</p>{''.join(figure(chart) for chart in drawn)}</section>"
        f"<section><h2>Candidates</h2>{_candidates(plan)}</section>"
        f"<section><h2>What binds</h2><ul>{binds}</ul><h2>What would help</h2><ul>{helps}</ul></section>"
        f"{_tornado(bars)}<section><h2>Ask again</h2><pre>{escape(plan.command)}</pre></section>"
    )
    return document("Isoflop plan", body, drawn)


def charts(plan: Plan) -> list[Chart]:
    """Loss along the budget, and cost along the loss."""
    if plan.curves.iso_loss is None:
        why = "The law allocates a budget and tells no loss: there is no curve to draw."
        return [Chart("iso-cost", "Loss against size at this budget", "", absent=why)]
    return [iso_cost(plan), iso_loss(plan)]


def iso_cost(plan: Plan) -> Chart:
    """Every family at the budget; the recommended one's interval, its near-optimal sizes, what is trained."""
    families = tuple(one.family for one in plan.curves.iso_cost)
    colours = family_colours(families)
    best = plan.recommended
    series: list[Series] = []
    for one in plan.curves.iso_cost:
        if one.family == best.architecture.family:
            colour = colours[one.family]
            series.append(
                Series(one.family, "band", colour, tuple(one.n_params), low=tuple(one.low), high=tuple(one.high))
            )
    series += [_family(one, colours[one.family]) for one in plan.curves.iso_cost]
    if best.loss is not None:
        note = f"train this\nN {short(best.n_params)} · D {short(best.tokens)}\nloss {best.loss.value:.4f}"
        colour = colours[best.architecture.family]
        point = (float(best.n_params),), (best.loss.value,)
        series.append(Series("recommended", "points", colour, *point, symbol="star", size=15, notes=(note,)))
    near = [p for p in plan.near_optimal if p.loss is not None]
    sizes, losses = tuple(p.n_params for p in near), tuple(p.loss or 0.0 for p in near)
    within = f"within {plan.question.within:.1%} of the least"
    series.append(Series(within, "line", colours[best.architecture.family], sizes, losses, width=5))
    caption = (
        "Each line spends the whole training budget on models of one family, small ones for longer. The thick part is "
        f"{within}: optima are flat. The band is the {plan.question.level:.0%} interval of the recommended family; "
        "families share most of it. Look for how far the star lies from the bottom: that is what serving is worth."
    )
    return Chart("iso-cost", "Loss against size at this budget", caption, (Panel(SIZE, Axis(LOSS), tuple(series)),))


def _family(one: IsoCost, colour: str) -> Series:
    notes = tuple(
        f"{one.family}\nN {short(n)} ({short(a)} active) · D {short(d)}\nloss {loss:.4f}"
        for n, a, d, loss in zip(one.n_params, one.n_active, one.tokens, one.loss, strict=True)
    )
    return Series(one.family, "line", colour, tuple(one.n_params), tuple(one.loss), notes=notes)


def iso_loss(plan: Plan) -> Chart:
    """Training, and training with serving, at the training optimum's loss."""
    line = plan.curves.iso_loss
    assert line is not None
    sizes = tuple(line.n_params)
    series = [Series("training", "line", "#2f81c7", sizes, tuple(line.train))]
    if plan.lifetime_optimal is not None:
        series.append(Series("training and serving", "line", "#d9722b", sizes, tuple(line.lifetime)))
        best = plan.lifetime_optimal
        note = f"cheapest lifetime\nN {short(best.n_params)} · D {short(best.tokens)}"
        at = (best.n_params,), (best.lifetime,)
        series.append(Series("cheapest lifetime", "points", "#d9722b", *at, symbol="diamond", size=13, notes=(note,)))
    cost = Axis(plan.lifetime_unit, log=True, unit="power")
    caption = (
        f"What each size costs to reach the loss of {line.loss:.4f}, that of the size best to train. Look for how flat "
        "the bottom is, and how far serving moves it to smaller models."
    )
    return Chart("iso-loss", "Cost against size at this loss", caption, (Panel(SIZE, cost, tuple(series)),))


def _candidates(plan: Plan) -> str:
    head = _head("family", "parameters", "active", "tokens", "P(best)") + "<th>verdict</th></tr>"
    rows = []
    for one in plan.candidates:
        counts = [("" if v is None else short(v)) for v in (one.n_params, one.n_active, one.tokens)]
        wins = "" if one.p_best is None else f"{one.p_best:.0%}"
        cells = "".join(f'<td class="number">{cell}</td>' for cell in (*counts, wins))
        verdict = one.verdict or one.why_not or ""
        rows.append(f'<tr><th scope="row">{escape(one.family)}</th>{cells}<td>{escape(verdict)}</td></tr>')
    return _table(head, rows)


def _tornado(bars: Sequence[Bar]) -> str:
    if not bars:
        return ""
    head = _head("input", "loss", "parameters", "tokens") + "</tr>"
    rows = []
    for bar in bars:
        losses = " / ".join("none" if value is None else f"{value:.4f}" for value in bar.loss)
        others = [" / ".join("none" if v is None else short(v) for v in pair) for pair in (bar.n_params, bar.tokens)]
        cells = "".join(f'<td class="number">{cell}</td>' for cell in (losses, *others))
        rows.append(f'<tr><th scope="row">{escape(bar.key)} ({bar.value:.4g})</th>{cells}</tr>')
    return f"<section><h2>Each input halved / doubled</h2>{_table(head, rows)}</section>"


def _head(first: str, *numbers: str) -> str:
    """A row of headings that is still open: a name, and numbers, which stand to the right."""
    cells = "".join(f'<th scope="col" class="number">{name}</th>' for name in numbers)
    return f'<tr><th scope="col">{first}</th>{cells}'


def _table(head: str, rows: list[str]) -> str:
    body = f"<table><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="scroll" tabindex="0" role="region" aria-label="table">{body}</div>'
