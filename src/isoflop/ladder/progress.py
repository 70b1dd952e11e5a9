"""How a study goes, for the person watching: a live table on a terminal, plain lines elsewhere."""

import sys
import time
from collections import deque

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from isoflop.ladder.messages import Done, Failed, Message, Note, Progress, Ready, Update
from isoflop.ladder.plan import Job

LINE_S = 15.0  # between plain lines
LAST_RATES = 15  # readings that a rate is the median of: one alone may have met a busy moment


class _JobState:
    """One job as far as it is known: what it still costs is counted in exact FLOPs."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.flops_per_token = job.spec.flops_per_token(job.context)
        self.progress: Progress | None = None
        self.rates: deque[float] = deque(maxlen=LAST_RATES)
        self.done = False
        self.readings = 0

    @property
    def label(self) -> str:
        run = self.job.runs[0]
        return f"{run.family} d_model {run.d_model}" + (f" seed {self.job.spec.seed}" if self.job.spec.seed else "")

    def update(self, progress: Progress) -> None:
        """The first reading holds the process's first steps, which are slow: it counts until there is a second."""
        self.readings += 1
        if self.readings == 2:
            self.rates.clear()
        self.progress = progress
        self.rates.append(progress.tokens_per_s)

    @property
    def rate(self) -> float:
        """Tokens a second of late; 0 before the first reading."""
        return float(np.median(self.rates)) if self.rates else 0.0

    def tokens_left(self) -> float:
        """Tokens still to train: of the trunk, and of each decay not behind us."""
        if self.done:
            return 0.0
        starts = {run.run: self.job.schedule.decay_start(run.steps) for run in self.job.runs}
        at, current = 0.0, self.progress
        left = max(starts.values()) * self.job.batch_tokens
        decays = {run.run: (run.steps - starts[run.run]) * self.job.batch_tokens for run in self.job.runs}
        if current:
            names = [run.run for run in self.job.runs]
            for finished in names[: names.index(current.run)]:
                decays[finished] = 0
            at = min(current.tokens, starts[current.run] * self.job.batch_tokens)
            if current.phase == "decay":
                run = next(run for run in self.job.runs if run.run == current.run)
                decays[current.run] = run.tokens - current.tokens
        return left - at + sum(decays.values())


class Board:
    """What is known of all jobs, and the time that is left."""

    def __init__(self, jobs: list[Job], workers: int) -> None:
        self.jobs = {job.trunk: _JobState(job) for job in jobs}
        self.workers, self.peak = workers, 0.0
        self.started = time.monotonic()

    def listen(self, message: Message) -> None:
        match message:
            case Ready(peak=peak):
                self.peak = max(self.peak, peak)
            case Update(progress=progress):
                self.jobs[progress.trunk].update(progress)
            case Done(trunk=trunk) | Failed(trunk=trunk):
                self.jobs[trunk].done = True

    def running(self) -> list[_JobState]:
        return [state for state in self.jobs.values() if state.progress and not state.done]

    def peak_share(self, state: _JobState) -> float | None:
        """Exact FLOP/s over the measured matmul peak of the job's threads; None on a GPU: no peak is known."""
        if state.job.device != "cpu" or not self.peak:
            return None
        return state.rate * state.flops_per_token / (self.peak * state.job.threads)

    def seconds_left(self) -> float | None:
        """From the rates seen so far; None before the first. A job not begun is priced by the estimate, corrected by
        how far the estimates of those begun were off."""
        pace = [self._measured_over_estimated(state) for state in self.jobs.values() if state.progress]
        if not pace:
            return None
        slow = float(np.median(pace))
        left = [self._seconds(state, slow) for state in self.jobs.values() if not state.done]
        return max(sum(left) / self.workers, max(left)) if left else 0.0

    def _estimated_rate(self, state: _JobState) -> float:
        """Tokens a second on one thread: all that is compared is measured on equally many."""
        tokens = sum(run.tokens for run in state.job.runs)
        return tokens / max(sum(run.estimated_s for run in state.job.runs), 1e-9)

    def _measured_over_estimated(self, state: _JobState) -> float:
        return self._estimated_rate(state) / max(state.rate, 1e-9)

    def _seconds(self, state: _JobState, slow: float) -> float:
        rate = state.rate if state.progress else self._estimated_rate(state) / slow
        return state.tokens_left() / max(rate, 1e-9)


class Lines:
    """Plain lines, for logs and pipes."""

    def __init__(self) -> None:
        self.said = time.monotonic()
        self.board: Board | None = None

    def stage(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def begin(self, jobs: list[Job], workers: int) -> None:
        self.board = Board(jobs, workers)
        runs = sum(len(job.runs) for job in jobs)
        self.stage(f"training {runs} runs on {len(jobs)} trunks, {workers} at a time")

    def listen(self, message: Message) -> None:
        assert self.board is not None
        self.board.listen(message)
        if isinstance(message, Note):
            self.stage(message.text)
        elif isinstance(message, Failed):
            self.stage(f"job {message.trunk} failed: {message.reason}")
        else:
            self.show(self.board)

    def show(self, board: Board) -> None:
        """Say how far it is, now and then."""
        if time.monotonic() - self.said > LINE_S:
            self.said = time.monotonic()
            self.stage(_line(board))

    def end(self) -> None:
        self.board = None


class Terminal(Lines):
    """A table that is redrawn in place."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self.live: Live | None = None

    def stage(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, jobs: list[Job], workers: int) -> None:
        super().begin(jobs, workers)
        self.live = Live(console=self.console, refresh_per_second=4, transient=True)
        self.live.start()

    def show(self, board: Board) -> None:
        if self.live:
            self.live.update(_table(board))

    def end(self) -> None:
        if self.live:
            self.live.stop()
        super().end()


def make_display() -> Lines:
    """A live table where standard error is a terminal, plain lines elsewhere."""
    console = Console(stderr=True)
    return Terminal(console) if console.is_terminal else Lines()


def _line(board: Board) -> str:
    running = ", ".join(
        f"{s.label}: {s.progress.phase} {s.progress.tokens:,} tokens, loss {s.progress.loss:.3f} nats a token, "
        f"{s.rate:,.0f} tokens/s{_of_peak(board, s)}"
        for s in board.running()
        if s.progress
    )
    return f"{_done(board)}, {_left(board)} left" + (f"; {running}" if running else "")


def _of_peak(board: Board, state: _JobState) -> str:
    share = board.peak_share(state)
    return "" if share is None else f" ({share:.0%} of peak, exact FLOPs)"


def _done(board: Board) -> str:
    return f"{sum(state.done for state in board.jobs.values())} of {len(board.jobs)} trunks done"


def _left(board: Board) -> str:
    seconds = board.seconds_left()
    return "unknown time" if seconds is None else f"about {seconds:.0f} s"


def _table(board: Board) -> Table:
    table = Table(title=f"{_done(board)}, {_left(board)} left", title_justify="left")
    for column in ("run", "job", "phase"):
        table.add_column(column)
    for column in ("tokens", "loss, nats a token", "tokens/s", "share of matmul peak (exact FLOPs)"):
        table.add_column(column, justify="right")
    for state in board.running():
        p, share = state.progress, board.peak_share(state)
        if p:
            table.add_row(
                p.run, state.label, p.phase, f"{p.tokens:,}", f"{p.loss:.4f}", f"{state.rate:,.0f}",
                "-" if share is None else f"{share:.0%}",
            )  # fmt: skip
    return table
