"""A plan on a terminal."""

from typing import TYPE_CHECKING

from isoflop.cli.tables import BYTES, COUNTS, new_table, scaled

if TYPE_CHECKING:
    from rich.table import Table

    from isoflop.cost.quantity import Quantity
    from isoflop.decide.answer import Plan, Point
    from isoflop.decide.vary import Bar, Varied


def show(plan: "Plan", rows: "list[Varied]", bars: "list[Bar]") -> None:
    """Print the decision, what it rests on, and what would change it."""
    from rich.console import Console

    console = Console(highlight=False)
    console.print(f"[bold]{plan.sentence}[/]")
    best = plan.recommended
    console.print(best.architecture.summary + ("" if best.layout is None else f"\nlayout: {best.layout}"))
    tables = [_recommended(plan), _points(plan), _candidates(plan)]
    tables += [_serving(plan)] if plan.question.served.tokens or plan.question.hardware else []
    tables += [_varied(rows)] if rows else []
    tables += [_tornado(bars)] if bars else []
    for table in tables:
        console.print(table)
    for binding in plan.binding:
        console.print(f"binds: [bold]{binding.limit}[/]: {binding.words}")
    if plan.over_training is not None:
        console.print(plan.over_training.words)
    for lever in plan.levers:
        console.print(f"lever: {lever.words}")
    missing = [f"{one.family}: {one.why_not}" for one in plan.candidates if one.why_not]
    missing += [f"{row.key} = {row.value}: {row.why_not}" for row in rows if row.why_not]
    for note in [*missing, *plan.notes]:
        console.print(f"[yellow]note:[/] {note}")
    console.print(f"[dim]{plan.command}[/]")


def _recommended(plan: "Plan") -> "Table":
    best = plan.recommended
    table = new_table("train", "value", "interval", "source")
    table.add_row("parameters", f"{best.n_params:,}", "", "exact")
    if best.n_active != best.n_params:
        table.add_row("active parameters", f"{best.n_active:,}", "", "exact")
    table.add_row("tokens", scaled(best.tokens, COUNTS), f"{best.tokens_per_param:.3g} a parameter", "")
    if best.loss is not None:
        table.add_row("loss", *_shown(best.loss, "{:.4f}"))
    table.add_row("training FLOPs", f"{best.train_flops:.4g}", f"6 N D: {best.train_flops_6nd:.4g}", "exact")
    if best.serve_flops:
        table.add_row("serving FLOPs", f"{best.serve_flops:.4g}", "", "exact")
    bills = {
        "days by the clock": None if best.train_hours is None else best.train_hours.times(1 / 24),
        "device hours": best.train_device_hours,
        "training, dollars": best.train_cost,
        "energy, kWh": best.train_energy_kwh,
        "dollars a million": best.serve_cost_per_mtok,
    }
    for name, quantity in bills.items():
        if quantity is not None:
            table.add_row(name, *_shown(quantity, "{:,.4g}"))
    table.add_row("serving memory", scaled(best.serve_memory_bytes.value, BYTES), plan.question.served.weights, "exact")
    return table


def _shown(quantity: "Quantity", form: str) -> tuple[str, str, str]:
    interval = f"{form.format(quantity.low)} to {form.format(quantity.high)}"
    level = "" if quantity.level is None else f" ({quantity.level:.0%})"
    return form.format(quantity.value), interval + level, quantity.source


def _points(plan: "Plan") -> "Table":
    table = new_table("before rounding", "parameters", "tokens", "loss", "lifetime")
    _point(table, "best to train", plan.training_optimal)
    if plan.lifetime_optimal is not None:
        _point(table, "cheapest of its loss", plan.lifetime_optimal)
    near = plan.near_optimal_range
    if near is not None:
        sizes = f"{scaled(near.n_low, COUNTS)} to {scaled(near.n_high, COUNTS)}"
        tokens = f"{scaled(near.tokens_low, COUNTS)} to {scaled(near.tokens_high, COUNTS)}"
        table.add_row(f"within {near.within:.1%}", sizes, tokens, "", "")
        if near.n_best_low is not None and near.n_best_high is not None:
            sure = f"{scaled(near.n_best_low, COUNTS)} to {scaled(near.n_best_high, COUNTS)}"
            table.add_row(f"best size, {near.level:.0%}", sure, "", "", "")
    table.caption = f"lifetime: training and serving together, {plan.lifetime_unit}"
    return table


def _point(table: "Table", name: str, point: "Point") -> None:
    loss = "" if point.loss is None else f"{point.loss:.4f}"
    counts = (scaled(point.n_params, COUNTS), scaled(point.tokens, COUNTS))
    table.add_row(name, *counts, loss, f"{point.lifetime:.4g}")


def _candidates(plan: "Plan") -> "Table":
    table = new_table("candidates", "parameters", "active", "tokens", "behind", "best", "verdict")
    for one in plan.candidates:
        if one.n_params is None or one.n_active is None or one.tokens is None:
            table.add_row(one.family, "", "", "", "", "", "none")
            continue
        behind = "" if one.behind is None else f"{one.behind.low:+.3f} {one.behind.high:+.3f}"
        counts = [scaled(value, COUNTS) for value in (one.n_params, one.n_active, one.tokens)]
        table.add_row(one.family, *counts, behind, "" if one.p_best is None else f"{one.p_best:.0%}", one.verdict or "")
    table.caption = "behind: loss over the recommended, its interval; best: the probability of being the best"
    return table


def _serving(plan: "Plan") -> "Table":
    table = new_table("weights", "memory", "loss added", "dollars a million")
    for one in plan.serving:
        added = f"{one.loss_added.low:.2g} to {one.loss_added.high:.2g}"
        cost = "" if one.cost_per_mtok is None else f"{one.cost_per_mtok.value:.4g}"
        table.add_row(one.weights, scaled(one.memory_bytes, BYTES), added, cost)
    table.caption = "loss added by rounding: Kumar et al. 2024, far beyond its fitted sizes (assumed)"
    return table


def _varied(rows: "list[Varied]") -> "Table":
    table = new_table("what if", "family", "parameters", "tokens", "loss", "P(best)")
    for row in rows:
        name = f"{row.key} = {row.value}"
        if row.n_params is None or row.tokens is None:
            table.add_row(name, "none", "", "", "", "")
            continue
        loss, wins = ("" if v is None else form.format(v) for v, form in ((row.loss, "{:.4f}"), (row.p_best, "{:.0%}")))
        table.add_row(name, row.family or "", scaled(row.n_params, COUNTS), scaled(row.tokens, COUNTS), loss, wins)
    return table


def _tornado(bars: "list[Bar]") -> "Table":
    table = new_table("halved / doubled", "loss", "parameters", "tokens")
    for bar in bars:
        losses = " / ".join("none" if value is None else f"{value:.4f}" for value in bar.loss)
        sizes = " / ".join("none" if value is None else scaled(value, COUNTS) for value in bar.n_params)
        tokens = " / ".join("none" if value is None else scaled(value, COUNTS) for value in bar.tokens)
        table.add_row(f"{bar.key} ({bar.value:.4g})", losses, sizes, tokens)
    return table
