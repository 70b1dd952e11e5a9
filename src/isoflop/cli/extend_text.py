"""How an extension goes and what came of it, on a terminal or as plain lines."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop.cli.tables import new_table
from isoflop.evaluate.curve import LossByPosition

if TYPE_CHECKING:
    from rich.progress import Progress

    from isoflop.evaluate.extension import Watch

LINE_S = 10.0  # between plain lines
PIPED_WIDTH = 150  # columns where nobody's terminal limits them


class Quiet:
    """Says nothing."""

    def stage(self, text: str) -> Callable[[int, int], None]:
        return lambda done, total: None


class Lines:
    """Plain lines on standard error, for logs and pipes."""

    def stage(self, text: str) -> Callable[[int, int], None]:
        print(text, file=sys.stderr, flush=True)
        started = said = time.monotonic()

        def tell(done: int, total: int) -> None:
            nonlocal said
            if time.monotonic() - said > LINE_S and done < total:
                said = time.monotonic()
                left = (said - started) * (total - done) / done
                print(f"{text}: {done / total:.0%}, about {left:.0f} s left", file=sys.stderr, flush=True)

        return tell


class Bars:
    """A bar a stage, with the time left."""

    def __init__(self, progress: "Progress") -> None:
        self.progress = progress

    def stage(self, text: str) -> Callable[[int, int], None]:
        task = self.progress.add_task(text, total=None)
        return lambda done, total: self.progress.update(task, completed=done, total=total)


@contextmanager
def watch(quiet: bool) -> "Iterator[Watch]":
    """Bars where standard error is a terminal, plain lines elsewhere, nothing if quiet."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield Quiet() if quiet else Lines()
        return
    text = TextColumn("{task.description}", markup=False)
    with Progress(text, BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), console=console) as progress:
        yield Bars(progress)


def print_result(result: LossByPosition, out: Path) -> None:
    """A row a model: within the trained context, beyond it, and above the model as it was."""
    from rich.console import Console

    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=PIPED_WIDTH)
    table = new_table("nats per token", "within", "beyond", "beyond, bits per byte", "above", last="right")
    for curve in result.curves:
        inside, beyond = curve.inside, curve.beyond
        table.add_row(
            curve.name,
            f"{inside.nats:.4f} ± {inside.nats_se:.4f}",
            f"{beyond.nats:.4f} ± {beyond.nats_se:.4f}",
            f"{beyond.bits_per_byte:.4f}",
            f"{beyond.difference:+.4f} ± {beyond.difference_se:.4f}",
        )
    console.print(table)
    console.print(
        f"within: positions 1 to {result.border}, the trained context; beyond: to {result.context}; above: beyond it, "
        f"over “{result.reference}” on the same {result.n_windows} windows of {result.n_documents} held-out documents; "
        "± one standard error over documents",
        soft_wrap=True,
    )
    console.print(f"written: {out} ({result.written}), {out / 'position.json'}, {out / 'report.html'}", soft_wrap=True)
