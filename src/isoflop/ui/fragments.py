"""The answer in words and tables, as HTML that the page and the exported report share. Bars are SVG, as the page's own
policy allows no style in an attribute."""

from collections.abc import Sequence
from html import escape

from isoflop.cost.quantity import Quantity
from isoflop.decide.answer import Candidate, Lever, Plan, Recommended, Weights
from isoflop.report.chart import power, short
from isoflop.ui.memory import MemoryTable

GIB = 2**30
LEAST_SHOWN = 0.0001  # of a loss
NUMBER = ' class="number"'


def facts(plan: Plan) -> str:
    """The recommended model in a few figures, each with its interval and where it comes from."""
    chosen = plan.recommended
    active = f", {short(chosen.n_active)} active" if chosen.n_active != chosen.n_params else ""
    tokens = f"{chosen.tokens_per_param:.3g} a parameter"
    if chosen.epochs > 1:
        tokens += f", {chosen.epochs:.3g} epochs"
    shown = [
        ("Parameters", short(chosen.n_params), f"exact{active}"),
        ("Tokens", short(chosen.tokens), tokens),
        ("Loss", *_quantity(chosen.loss, "{:.3f}")),
        *_as_good(plan),
        ("Training FLOPs", power(chosen.train_flops), f"{plan.question.count}"),
        *_on_devices(chosen),
    ]
    items = "".join(
        f"<div><dt>{name}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>"
        for name, value, more in shown
    )
    return f'<dl class="facts">{items}</dl>'


def _as_good(plan: Plan) -> list[tuple[str, str, str]]:
    near = plan.near_optimal_range
    if near is None:
        return []
    sizes, tokens = (sorted(pair) for pair in ((near.n_low, near.n_high), (near.tokens_low, near.tokens_high)))
    words = f"on {short(tokens[0])} to {short(tokens[1])} tokens"
    return [(f"Within {near.within:.1%} of the least", f"{short(sizes[0])} to {short(sizes[1])}", words)]


def _on_devices(chosen: Recommended) -> list[tuple[str, str, str]]:
    amounts = [
        ("Days", None if chosen.train_hours is None else chosen.train_hours.times(1 / 24), "{:.3g}"),
        ("Device hours", chosen.train_device_hours, "{:,.0f}"),
        ("Training", chosen.train_cost, "${:,.0f}"),
        ("Serving 1M tokens", chosen.serve_cost_per_mtok, "${:.3g}"),
    ]
    return [(name, *_quantity(amount, form)) for name, amount, form in amounts if amount is not None]


def _quantity(amount: Quantity | None, form: str) -> tuple[str, str]:
    """A value, and its bounds and source."""
    if amount is None:
        return "not told", "by this law"
    if amount.low == amount.high:
        return form.format(amount.value), amount.source
    level = "" if amount.level is None else f" ({amount.level:.0%})"
    return form.format(amount.value), f"{form.format(amount.low)} to {form.format(amount.high)}{level}, {amount.source}"


def candidates(found: Sequence[Candidate], colours: dict[str, str]) -> str:
    """Families against each other, with the probability that each is best."""
    rows = []
    for one in found:
        verdict = "" if one.verdict is None else f'<small class="{one.verdict.replace(" ", "-")}">{one.verdict}</small>'
        name = f"{_swatch(colours[one.family])}{escape(one.family)}{verdict}"
        if one.why_not is not None:
            rows.append(f'<tr><th scope="row">{name}</th><td colspan="4" class="why">{escape(one.why_not)}</td></tr>')
            continue
        best = "" if one.p_best is None else _barred(one.p_best, f"{one.p_best:.0%}")
        cells = (best, _size(one), "" if one.tokens is None else short(one.tokens), _loss(one.loss))
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(map(_number, cells))}</tr>')
    heads = ("family", "probability of being best", "parameters", "tokens", "loss")
    return table("Families at equal cost of the lifetime", heads, rows, "candidates")


def _size(one: Candidate) -> str:
    if one.n_params is None or one.n_active is None:
        return ""
    active = "" if one.n_active == one.n_params else f"<small>{short(one.n_active)} active</small>"
    return f"{short(one.n_params)}{active}"


def _loss(loss: Quantity | None) -> str:
    return "" if loss is None else f"{loss.value:.3f}<small>{loss.low:.3f} to {loss.high:.3f}</small>"


def points(plan: Plan) -> str:
    """The training-optimal, the recommended and the lifetime-optimal model side by side."""
    chosen, lifetime = plan.recommended, plan.lifetime_optimal
    loss = None if chosen.loss is None else chosen.loss.value
    found = [("training-optimal", plan.training_optimal)]
    if lifetime is not None:
        found.append(("lifetime-optimal", lifetime))
    shown = [(name, one.n_params, one.tokens, one.tokens_per_param, one.loss, one.train_flops) for name, one in found]
    recommended = float(chosen.n_params), chosen.tokens, chosen.tokens_per_param, loss, chosen.train_flops
    shown.insert(1, ("recommended", *recommended))
    rows = []
    for name, size, tokens, ratio, value, train in shown:
        cells = short(size), short(tokens), f"{ratio:.3g}", "" if value is None else f"{value:.3f}", power(train)
        rows.append(f'<tr><th scope="row">{name}</th>{"".join(map(_number, cells))}</tr>')
    heads = ("model", "parameters", "tokens", "a parameter", "loss", "training FLOPs")
    return table("Best to train, and best over a lifetime", heads, rows, "points")


def memory(told: MemoryTable) -> str:
    """Bytes by kind, as bars of the same scale."""
    most = max([told.limit or 0.0, *(sum(group.kinds.values()) for group in told.groups)]) or 1.0
    parts = []
    for group in told.groups:
        total = sum(group.kinds.values())
        rows = [
            f'<tr><th scope="row">{escape(kind)}</th>{_number(_barred(value / most, gib(value)))}</tr>'
            for kind, value in group.kinds.items()
        ]
        rows.append(f'<tr class="total"><th scope="row">all</th>{_number(_barred(total / most, gib(total)))}</tr>')
        parts.append(table(group.title, ("kind", "GiB"), rows, "memory"))
    words = "" if told.limit is None else f"<p>One device has {gib(told.limit)} GiB to use.</p>"
    pair = f'<div class="pair">{"".join(parts)}</div>'
    return f'<h3>Memory by kind</h3>{pair}{words}<p class="soft">{escape(told.words)}</p>'


def levers(found: Sequence[Lever]) -> str:
    """What would help most."""
    if not found:
        return '<p class="absent">Nothing that was tried would lower the loss.</p>'
    most = max(lever.worth for lever in found)
    rows = []
    for lever in found:
        change = "" if lever.loss_change is None else f"{lever.loss_change:+.4f}".replace("-", "\N{MINUS SIGN}")
        worth = _barred(lever.worth / most, f"{lever.worth:.3g}\N{MULTIPLICATION SIGN}")
        then = f"<small>then {short(lever.n_params)} on {short(lever.tokens)} tokens</small>"
        rows.append(f'<tr><th scope="row">{escape(lever.change)}{then}</th>{_number(worth)}{_number(change)}</tr>')
    return table("What would help most", ("change", "worth in compute", "loss"), rows, "levers")


def serving(found: Sequence[Weights]) -> str:
    """The recommended model served in fewer bits; its price where devices have one."""
    priced = any(one.cost_per_mtok is not None for one in found)
    rows = []
    for one in found:
        cells = [gib(one.memory_bytes), "" if one.loss_added is None else _added(one.loss_added.value)]
        if priced:
            cells.append("none" if one.cost_per_mtok is None else f"${one.cost_per_mtok.value:.3g}")
        rows.append(f'<tr><th scope="row">{escape(one.weights)}</th>{"".join(map(_number, cells))}</tr>')
    heads = ("weights", "GiB with one request", "loss added", *(["1M tokens"] if priced else []))
    return table("Served in fewer bits", heads, rows, "serving")


def _added(loss: float) -> str:
    if loss == 0:
        return "none"
    return f"{loss:.4f}" if loss >= LEAST_SHOWN else f"below {LEAST_SHOWN:g}"


def reasons(plan: Plan) -> str:
    """What binds, what over-training does, and what the answer rests on."""
    binds = [limit.words for limit in plan.binding]
    if plan.over_training is not None:
        binds.append(plan.over_training.words)
    return f"<h3>What binds</h3>{_items(binds)}<h3>What it rests on</h3>{_items(plan.notes)}"


def built(plan: Plan) -> str:
    """The decoder itself, to be saved as a file."""
    made = plan.recommended.architecture
    layout = "" if plan.recommended.layout is None else f"<p>Layout: {escape(plan.recommended.layout)}.</p>"
    file = f'<pre tabindex="0" aria-label="The architecture as TOML">{escape(made.toml)}</pre>'
    details = f"<details><summary>As a file</summary>{file}</details>"
    return f"<h3>The model</h3><p>{escape(made.summary)}</p>{layout}{details}"


def table(caption: str, heads: Sequence[str], rows: Sequence[str], kind: str) -> str:
    """Rows that are HTML already, under heads."""
    top = "".join(f'<th scope="col"{NUMBER if i else ""}>{escape(head)}</th>' for i, head in enumerate(heads))
    return (
        f'<div class="scroll" tabindex="0" role="group" aria-label="{escape(caption)}"><table class="{kind}">'
        f"<caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _barred(share: float, text: str) -> str:
    """A horizontal bar beside the number it stands for."""
    width = 100 * min(max(share, 0.0), 1.0)
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="rail" width="100" height="8"/><rect width="{width:.1f}" height="8"/></svg>'
        f'<span class="beside">{text}</span>'
    )


def gib(value: float) -> str:
    """Bytes as GiB."""
    return f"{value / GIB:,.3g}" if value < 1000 * GIB else f"{value / GIB:,.0f}"


def _items(texts: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in texts) + "</ul>"


def _number(html: str) -> str:
    return f"<td{NUMBER}>{html}</td>"


def _swatch(colour: str) -> str:
    circle = f'<circle cx="5" cy="5" r="5" fill="{colour}"/>'
    return f'<svg class="swatch" viewBox="0 0 10 10" aria-hidden="true">{circle}</svg>'
