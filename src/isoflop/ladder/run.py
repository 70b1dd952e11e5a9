"""A whole study, from file to report. Every stage reads what the one before wrote, so it can be killed anywhere."""

import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import msgspec
import tomli_w

from isoflop.atomic import sweep, write_atomically
from isoflop.data.corpus import find_corpus
from isoflop.data.dataset import Dataset
from isoflop.data.prepare import is_prepared, planned_vocab_size, prepare
from isoflop.ladder.collect import collect
from isoflop.ladder.design import data_warnings
from isoflop.ladder.execute import JobFailure, execute
from isoflop.ladder.forecast import Measured, complete_forecasts, fit_families, make_forecasts, write_laws
from isoflop.ladder.lock import locked
from isoflop.ladder.machine import this_machine
from isoflop.ladder.messages import Message
from isoflop.ladder.plan import Job, Plan, in_order, make_plan
from isoflop.ladder.results import read_result
from isoflop.ladder.study import Study
from isoflop.ladder.timing import expect
from isoflop.ladder.until import Additions, add_until, possible_of, require_start, write_additions
from isoflop.laws.fit import Fit
from isoflop.table import RunRow, write_table

GPU_WORKERS = 4


class Display(Protocol):
    """Who is told how a study goes."""

    def stage(self, text: str) -> None: ...
    def begin(self, jobs: list[Job], workers: int) -> None: ...
    def listen(self, message: Message) -> None: ...
    def end(self) -> None: ...


class Outcome(msgspec.Struct, frozen=True):
    """What a study came to."""

    rows: list[RunRow]
    laws: dict[str, Fit | str]
    forecasts: list[Measured]
    failures: list[JobFailure]
    seconds: float
    additions: Additions | None  # with [forecast] until, once every planned run is done


def run_study(study: Study, folder: Path, display: Display) -> Outcome:
    """Train what is not yet trained, fit, forecast, train the held-out runs, compare, report. Raises ValueError for a
    study that cannot be run, OSError for a disk that cannot be written, KeyboardInterrupt on Ctrl-C."""
    started = time.monotonic()
    check_study(study, folder)
    _require_training(study.execution.device)
    _make_folder(folder)
    with locked(folder) as lock:
        sweep(folder)
        dataset = prepare_data(study, folder, display)
        plan = plan_study(study, dataset)
        _write_plan(study, plan, dataset, folder)
        expect(plan, folder)
        runner = _Runner(study, plan, folder, lock, display)
        failures = runner.train("fit", list(study.families))
        rows = runner.tabulate(failures)
        additions = None
        if study.forecast.until is not None and not failures:
            additions, failures = runner.narrow(dataset, rows)
            plan, rows = runner.plan, runner.tabulate(failures)
        laws = fit_families(study, rows)
        write_laws(study, laws, rows, folder)
        forecasts = make_forecasts(study, laws, plan, rows, folder)
        failures += runner.train("target", runner.ready_to_test(laws, failures))
        rows = runner.tabulate(failures)
        forecasts = complete_forecasts(forecasts, rows, folder)
    return Outcome(rows, laws, forecasts, failures, time.monotonic() - started, additions)


def check_study(study: Study, folder: Path) -> None:
    """Raises ValueError for what can be told wrong before anything is written: sizes, budgets, a source of no text."""
    make_plan(study, planned_vocab_size(study.data), "", this_machine())
    if not is_prepared(study.data, folder / "data"):
        find_corpus(study.data)


def _require_training(device: str) -> None:
    if find_spec("torch") is None:
        raise ValueError("training needs torch, which is not installed here: pip install 'isoflop[train]'")
    if device == "cpu":
        return
    import torch

    count, wanted = torch.cuda.device_count(), device.partition(":")[2] or "0"
    if not wanted.isdigit() or int(wanted) >= count:
        valid = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise ValueError(f"[execution] device = '{device}' is not on this machine; valid here: {valid}")


def prepare_data(study: Study, folder: Path, display: Display) -> Dataset:
    """The token shards of a study, made if they are not there."""
    display.stage(f"preparing text: {study.data.source}")
    dataset = prepare(study.data, folder / "data")
    batch = study.training.context + 1
    dataset.require(train_tokens=batch, valid_tokens=batch)
    return dataset


def plan_study(study: Study, dataset: Dataset) -> Plan:
    """The plan, with the findings that need the data. Raises ValueError where the text is smaller than one batch."""
    from isoflop.data.stream import BatchStream

    plan = make_plan(study, dataset.vocab_size, dataset.digest, this_machine())
    stream = BatchStream(dataset.train, study.training.context, 0)
    stream.require(max(job.spec.recipe.batch for job in plan.jobs))
    warnings = plan.warnings + data_warnings(plan.jobs, stream.windows_per_epoch * study.training.context)
    if study.forecast.until is not None:
        require_start(study, plan)
    return msgspec.structs.replace(plan, warnings=warnings)


class _Runner:
    """The stages that share a plan and a folder."""

    def __init__(self, study: Study, plan: Plan, folder: Path, lock: int, display: Display) -> None:
        self.study, self.plan, self.folder, self.lock, self.display = study, plan, folder, lock, display

    def train(self, role: str, families: list[str]) -> list[JobFailure]:
        """Run every job of a role in these families that lacks a result."""
        folder = self.folder / "jobs"
        jobs = [
            job
            for job in self.plan.jobs
            if job.runs[0].role == role
            and job.runs[0].family in families
            and any(read_result(folder / job.trunk, run.run) is None for run in job.runs)
        ]
        if not jobs:
            return []
        workers = count_workers(self.study, jobs)
        self.display.begin(jobs, workers)
        try:
            return execute(jobs, folder, self.folder / "data", workers, self.lock, self.display.listen)
        finally:
            self.display.end()

    def narrow(self, dataset: Dataset, rows: list[RunRow]) -> tuple[Additions, list[JobFailure]]:
        """Add runs to the plan, and train them, until held-out intervals are as narrow as asked."""

        def train(jobs: list[Job]) -> tuple[list[RunRow], list[JobFailure]]:
            self.plan = msgspec.structs.replace(self.plan, jobs=in_order([*self.plan.jobs, *jobs]))
            _write_plan(self.study, self.plan, dataset, self.folder)
            failures = self.train("fit", list(self.study.families))
            return self.tabulate(failures), failures

        possible = possible_of(self.study, self.plan, dataset)
        told, failures = add_until(self.study, self.plan, possible, rows, train, self.display.stage)
        write_additions(self.folder, told)
        return told, failures

    def ready_to_test(self, laws: dict[str, Fit | str], failures: list[JobFailure]) -> list[str]:
        """The families whose held-out runs may start: a forecast is only one if nothing that it rests on is missing."""
        failed = {failure.trunk for failure in failures}
        incomplete = {job.runs[0].family for job in self.plan.jobs if job.trunk in failed}
        for family in sorted(incomplete):
            self.display.stage(f"{family}: held-out runs wait for the failed ones; the same command repeats those")
        return [family for family, fit in laws.items() if isinstance(fit, Fit) and family not in incomplete]

    def tabulate(self, failures: list[JobFailure]) -> list[RunRow]:
        rows = collect(self.plan, self.folder / "jobs", {f.trunk: f.reason for f in failures})
        write_table(rows, self.folder)
        return rows


def count_workers(study: Study, jobs: list[Job]) -> int:
    """How many of these jobs run at a time."""
    cores, asked = this_machine().cores, study.execution.workers
    if not asked:
        on_cpu = study.execution.device == "cpu"
        asked = max(1, cores // max(job.threads for job in jobs)) if on_cpu else GPU_WORKERS
    return min(asked, len(jobs))


def _write_plan(study: Study, plan: Plan, dataset: Dataset, folder: Path) -> None:
    record = {
        "plan": plan,
        "environment": environment(),
        "data": dataset.manifest,
        "data_digest": dataset.digest,
    }
    write_atomically(folder / "plan.json", msgspec.json.format(msgspec.json.encode(record)) + b"\n")
    write_atomically(folder / "study.toml", tomli_w.dumps(_without_none(msgspec.to_builtins(study))).encode())


def environment() -> dict[str, str]:
    """What else a result depends on: versions and the machine."""
    found = {"python": platform.python_version(), "machine": platform.machine(), "cores": str(this_machine().cores)}
    for package in ("isoflop", "torch", "numpy", "scipy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _without_none(value: Any) -> Any:
    """TOML has no null: a key that is not set is left out."""
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return [_without_none(item) for item in value] if isinstance(value, list) else value


def _make_folder(folder: Path) -> None:
    try:
        (folder / "jobs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(error.errno, f"cannot write {folder}: {os.strerror(error.errno or 0)}") from error
