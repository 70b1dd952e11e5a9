"""What `isoflop quantize` prints."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.cli.tables import BYTES, new_table, scaled

if TYPE_CHECKING:
    from isoflop.quantize.measure import Interval
    from isoflop.quantize.report import Report

CALIBRATED = ("GPTQ", "AWQ")  # methods that look at text
PIPED_WIDTH = 150  # columns where nobody's terminal limits them


def print_report(report: "Report", out: Path) -> None:
    """A row a way to quantize, the layers' formats where they differ, the law, and what stayed as it was."""
    from rich.console import Console

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PIPED_WIDTH)
    columns = (
        "bits/weight",
        "bytes",
        "in memory",
        "nats/token",
        "above the original",
        "same likeliest token",
        "seconds",
    )
    table = new_table("", *columns, last="right")
    table.add_row(
        "original", "", *[scaled(report.original_bytes, BYTES)] * 2, f"{report.original_loss:.4f}", "", "", ""
    )
    for figure in report.figures:
        table.add_row(
            figure.method,
            f"{figure.bits_per_weight:.3f}",
            scaled(figure.bytes, BYTES),
            scaled(figure.memory_bytes, BYTES),
            f"{figure.loss:.4f}",
            _interval(figure.loss_change, "+.4f"),
            _interval(figure.agreement, ".4f"),
            f"{figure.seconds:.1f}",
        )
    console.print(table)
    for choice in report.choices:
        console.print(f"  {choice.unit}: {choice.format.bits} bits (alone {choice.nats_alone:+.4f} nats)")
    for line in _notes(report, out):
        console.print(line, soft_wrap=True)


def _interval(found: "Interval", form: str) -> str:
    if not math.isfinite(found.high):
        return f"{found.mean:{form}} (one document: no interval)"
    return f"{found.mean:{form}} ({found.low:{form}} to {found.high:{form}})"


def _notes(report: "Report", out: Path) -> list[str]:
    first = report.figures[0]
    formats = "; ".join(f"{n} of {name}" for name, n in first.formats.items())
    lines = [
        f"bits/weight count scales and zeros, over {report.n_weights:,} weights ({formats}); "
        f"intervals: 95 %, bootstrap "
        f"over {report.n_documents} held-out documents, {report.n_windows} windows of {report.context} tokens"
    ]
    if report.choices or any(figure.method in CALIBRATED for figure in report.figures):
        lines[0] += f"; calibrated on {report.calibration_tokens:,} tokens of training text"
    if report.law is not None:
        law = report.law
        range_ = f" ({'; '.join(law.outside)})" if law.outside else ""
        lines.append(
            f"law {law.name} at N {law.n_params_non_embedding:.4g}, D {law.tokens:.4g}, {law.bits:.3g} bits: "
            f"{law.predicted:+.4f} nats predicted, {law.measured:+.4f} measured{range_}"
        )
    reasons: dict[str, list[str]] = {}
    for name, why in report.kept.items():
        reasons.setdefault(why, []).append(name)
    kept = "; ".join(f"{len(names)} x {names[0].split('.')[-1]} ({why})" for why, names in reasons.items())
    lines += [f"in full precision: vectors; {kept}"] if kept else []
    return [*lines, f"written: {out} ({first.method}), {out / 'quantization_report.json'}"]
