"""What `isoflop fit` prints: the tables of a law's JSON document."""

from typing import Any


def print_document(document: dict[str, Any]) -> None:
    """The law, its certificate, what it forecasts, and every warning."""
    from rich.console import Console

    console = Console()
    console.print(_law_table(document))
    if "budgets" in document["certificate"]:
        console.print(_budget_table(document["certificate"]))
    else:
        console.print(_certificate_table(document["certificate"]))
        console.print(_evidence_table(document["certificate"]))
    if document["predictions"]:
        console.print(_prediction_table(document["predictions"]))
        for told in _cautions(document["predictions"]):
            console.print(f"[yellow]caution:[/] {told}", highlight=False)
    for told in document["certificate"]["warnings"]:
        console.print(f"[yellow]warning:[/] {told}", highlight=False)


def _law_table(document: dict[str, Any]) -> Any:
    from rich.table import Table

    law, intervals = document["law"], document["intervals"]
    told = law["form"] if "*" in law["form"].split("=")[0] else f"L = {law['form']}"
    table = Table(title=told, title_justify="left")
    table.add_column("parameter")
    table.add_column("value", justify="right")
    level = next(iter(intervals.values()))["level"] if intervals else None
    if level is not None:
        table.add_column(f"{level:.0%} interval", justify="right")
    for name in (name for name, value in law.items() if isinstance(value, float)):
        interval = intervals.get(name)
        shown = [f"{interval['low']:.6g} to {interval['high']:.6g}"] if interval else []
        table.add_row(name, f"{law[name]:.6g}", *shown)
    return table


def _certificate_table(certificate: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title="certificate", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value")
    for what, value in _certificate_lines(certificate):
        table.add_row(what, value)
    return table


def _certificate_lines(certificate: dict[str, Any]) -> list[tuple[str, str]]:
    condition, drawn = certificate["condition_number"], certificate["bootstrap"]
    left_out = ", ".join(f"{count} {reason}" for reason, count in certificate["excluded"].items())
    ranges = certificate["ranges"].items()
    reasons = "; ".join(certificate["reasons"])
    return [
        ("status", certificate["status"] + (f": {reasons}" if reasons else "")),
        ("objective", f"{certificate['objective']:.10g} (sum of Huber, delta {certificate['delta']:g})"),
        ("gradient norm", f"{certificate['gradient_norm']:.2g}"),
        ("starts at the optimum", f"{certificate['share_of_starts_at_optimum']:.0%} of {certificate['n_starts']}"),
        ("condition number", "none" if condition is None else f"{condition:.3g}"),
        ("parameters at a bound", ", ".join(certificate["at_bound"]) or "none"),
        ("residual rms", f"{certificate['residual_rms']:.3%} of the loss"),
        (
            "rows used",
            f"{certificate['n_used']} of {certificate['n_rows']}" + (f" (left out: {left_out})" if left_out else ""),
        ),
        *(
            (f"range of {name}", f"{r['low']:.3g} to {r['high']:.3g} ({r['decades']:.2f} decades)")
            for name, r in ranges
        ),
        ("bootstrap", "none" if drawn is None else f"{drawn['n']} resamples, seed {drawn['seed']}"),
        ("convention", certificate["convention"]),
        ("data", f"sha256 {certificate['data_digest'][:16]}"),
    ]


def _prediction_table(predictions: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="loss of a new run", title_justify="left")
    if "columns" in predictions[0]:
        return _form_prediction_table(predictions)
    for name in ("N", "D", "loss", f"{predictions[0]['level']:.0%} interval", "the law", "compute"):
        table.add_column(name, justify="right")
    for row in predictions:
        interval = "none" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
        beyond = f"{row['beyond']['compute']:.3g}x largest"
        table.add_row(f"{row['n']:.4g}", f"{row['d']:.4g}", f"{row['loss']:.4f}", interval, f"{row['law']:.4f}", beyond)
    return table


def _cautions(predictions: list[dict[str, Any]]) -> list[str]:
    """Every distinct warning of a forecast once, with the rows it is about where it is not about all."""
    rows: dict[str, list[str]] = {}
    for number, row in enumerate(predictions, start=1):
        if row["warning"]:
            rows.setdefault(row["warning"], []).append(str(number))
    return [
        warning if len(about) == len(predictions) else f"row {', '.join(about)}: {warning}"
        for warning, about in rows.items()
    ]


def _form_prediction_table(predictions: list[dict[str, Any]]) -> Any:
    from rich.table import Table

    table = Table(title="a new run (interval by bootstrap: it takes the form for true)", title_justify="left")
    for name in (*predictions[0]["columns"], "loss", f"{predictions[0]['level']:.0%} interval"):
        table.add_column(name, justify="right")
    for row in predictions:
        interval = "none" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
        sizes = [f"{value:.4g}" for value in row["columns"].values()]
        table.add_row(*sizes, f"{row['loss']:.4f}", interval)
    return table


def _budget_table(certificate: dict[str, Any]) -> Any:
    from rich.table import Table

    table = Table(title=f"budgets ({certificate['status']})", title_justify="left")
    for name in ("FLOPs", "runs", f"best {certificate['axis']}", "least loss"):
        table.add_column(name, justify="right")
    table.add_column("shape")
    for one in certificate["budgets"]:
        best, least = ("none" if one[key] is None else f"{one[key]:.4g}" for key in ("optimum", "loss"))
        table.add_row(f"{one['flops']:.3g}", str(one["runs"]), best, least, one["shape"])
    return table


def _evidence_table(certificate: dict[str, Any]) -> Any:
    """Profiles, and the runs that move the answer most."""
    from rich.table import Table

    table = Table(title="evidence", title_justify="left", show_header=False)
    table.add_column("what")
    table.add_column("value")
    for name, ends in certificate["profile"].items():
        low, high = ("open" if ends[end] is None else f"{ends[end]:.4g}" for end in ("low", "high"))
        table.add_row(f"{name}, {ends['level']:.0%} profile", f"{low} to {high}")
    influence = certificate["influence"]
    if isinstance(influence, dict) and influence["answer"] is not None:
        table.add_row(f"D/N at {influence['flops']:.3g} FLOPs", f"{influence['answer']:.4g}")
        for group in influence["groups"]:
            losses = ", ".join(f"{run['loss']:.4g}" for run in group["runs"])
            table.add_row(f"without the runs of loss {losses}", f"{group['answer']:.4g}")
    return table
