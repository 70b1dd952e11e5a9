"""One job in this process: stopped anywhere, damaged, diverged."""

import json
import re
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data.prepare import prepare
from isoflop.ladder.job import JobRunner, Stopped
from isoflop.ladder.machine import this_machine
from isoflop.ladder.messages import Failed
from isoflop.ladder.plan import make_plan
from isoflop.ladder.results import read_result
from isoflop.ladder.study import load_study
from isoflop.weights.checkpoint import Checkpoint
from small_studies import write_study

GRID = {"type": "grid", "d_model": [16], "tokens": [1024, 2048, 4096]}


class Bench:
    """A study's first job, and what became of it in a folder."""

    def __init__(self, study: Path, data: Path) -> None:
        self.study = load_study(study)
        self.dataset = prepare(self.study.data, data)
        self.job = make_plan(self.study, self.dataset.vocab_size, self.dataset.digest, 1).jobs[0]

    def train(self, folder: Path, stop_after: int | None = None, checkpoint_s: float = 1e9) -> list[str]:
        """Train, at most `stop_after` steps; returns the notes."""
        folder.mkdir(exist_ok=True)
        notes, self.steps = [], 0

        def stopping() -> bool:
            self.steps += 1
            return self.steps == stop_after

        job = msgspec.structs.replace(self.job, checkpoint_s=checkpoint_s)
        runner = JobRunner(job, folder, self.dataset, lambda progress: None, notes.append, stopping)
        try:
            runner.run()
        except Stopped:
            notes.append("stopped")
        return notes

    def results(self, folder: Path) -> list:
        found = [read_result(folder, run.run) for run in self.job.runs]
        return [msgspec.structs.replace(result, wall_s=0.0) if result else None for result in found]


def curve(folder: Path) -> list[str]:
    return [line.rsplit(",", 1)[0] for line in (folder / "curve.csv").read_text().splitlines()]


@pytest.fixture(scope="module", autouse=True)
def readings_apart():
    """A reading every fourth step, as long runs have them: not at every place where a run leaves its trunk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("isoflop.ladder.job.READS_PER_RUN", 4)
        yield


@pytest.fixture(scope="module")
def bench(corpus, tmp_path_factory) -> Bench:
    home = tmp_path_factory.mktemp("job")
    study = write_study(home / "s.toml", corpus, budgets=GRID, targets=[], training={"eval_tokens": 256})
    return Bench(study, home / "data")


@pytest.fixture(scope="module")
def whole(bench, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "job"
    assert bench.train(folder) == []
    assert all(bench.results(folder))
    return folder


@settings(max_examples=8)
@given(stops=st.lists(st.integers(1, 14), min_size=1, max_size=3), every_step=st.booleans())
def test_stopped_anywhere_it_goes_on(bench, whole, tmp_path_factory, stops, every_step):
    folder = tmp_path_factory.mktemp("stopped") / "job"
    for stop in stops:
        bench.train(folder, stop, 0.0 if every_step else 1e9)
    bench.train(folder)
    assert bench.results(folder) == bench.results(whole)
    assert curve(folder) == curve(whole)


def test_an_early_exit_is_judged_beside(corpus, tmp_path):
    """Its held-out loss is in the result; stopped anywhere, the job ends in the same numbers. A target's weights say
    where it is."""
    exits, target = {"eval_tokens": 256, "early_exit": {"after": 1}}, {"d_model": 16, "tokens": 2048}
    study = write_study(tmp_path / "s.toml", corpus, budgets=GRID, targets=[target], training=exits)
    bench = Bench(study, tmp_path / "data")
    bench.train(tmp_path / "whole")
    for stop in (6, 9):
        bench.train(tmp_path / "stopped", stop)
    bench.train(tmp_path / "stopped")
    found = bench.results(tmp_path / "whole")
    assert found == bench.results(tmp_path / "stopped")
    assert all(result.loss_exit != result.loss_valid and 0 < result.loss_exit < 10 for result in found)
    bench.job = make_plan(bench.study, bench.dataset.vocab_size, bench.dataset.digest, this_machine()).jobs[-1]
    bench.train(tmp_path / "target")
    (weights,) = (tmp_path / "target" / "models").iterdir()
    assert Checkpoint(weights).record.exit_after == 1


def test_results_without_an_exit_are_written_as_they_were(bench, whole):
    """No key more, so that results of older versions keep their digests and are believed."""
    for run in bench.job.runs:
        record = json.loads((whole / "runs" / f"{run.run}.json").read_bytes())
        assert "loss_exit" not in record["result"]


def test_a_trunk_serves_all_its_runs(bench, whole, tmp_path):
    """4, 8 and 16 steps cost 13 of trunk and 1 + 2 + 3 of decay, not 28."""
    assert [run.steps for run in bench.job.runs] == [4, 8, 16]
    bench.train(tmp_path / "job")
    assert bench.steps == 13 + 1 + 2 + 3
    assert curve(tmp_path / "job") == curve(whole)
    read = [line.split(",")[1:3] for line in curve(whole)[1:]]
    assert read == [["trunk", str(step)] for step in (3, 4, 6, 8, 12, 13)] + [
        ["decay", str(step)] for step in (4, 8, 16)
    ]


@pytest.mark.parametrize("place", ["tensors", "meta", "record", "truncated", "gone"])
@pytest.mark.parametrize("stop", [6, 15])  # in the second decay's trunk, and in a decay
def test_damaged_checkpoint(bench, whole, tmp_path, place, stop):
    folder = tmp_path / "job"
    assert bench.train(folder, stop) == ["stopped"]
    records = sorted((folder / "checkpoint").glob("*.json"))
    for record in records:
        damage(record, place)
    notes = bench.train(folder)
    assert all(note.startswith("damaged checkpoint, its run is redone: ") for note in notes)
    assert len(notes) == len(records)
    assert bench.results(folder) == bench.results(whole)
    assert curve(folder) == curve(whole)


def damage(record: Path, place: str) -> None:
    named = json.loads(record.read_bytes())
    tensors = record.parent / named["file"]
    match place:
        case "tensors":
            data = bytearray(tensors.read_bytes())
            data[-100] ^= 1
            tensors.write_bytes(data)
        case "meta":
            named["meta"]["step"] -= 1
            record.write_bytes(json.dumps(named).encode())
        case "record":
            record.write_bytes(record.read_bytes()[:-9])
        case "truncated":
            tensors.write_bytes(tensors.read_bytes()[:-1])
        case "gone":
            tensors.unlink()


def cut(path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def another_loss(path) -> None:
    """Damage that still parses: a digit of the loss."""
    text = path.read_text()
    found = re.search(r'"loss_valid": \d\.(\d)', text)
    path.write_text(text[: found.start(1)] + str((int(found[1]) + 1) % 10) + text[found.end(1) :])


@pytest.mark.parametrize("damage", [cut, another_loss])
@pytest.mark.parametrize("k", [0, 2])
def test_damaged_result_is_redone_alone(bench, whole, tmp_path, k, damage):
    folder = tmp_path / "job"
    bench.train(folder)
    paths = [folder / "runs" / f"{run.run}.json" for run in bench.job.runs]
    kept = {path: path.stat().st_mtime_ns for path in paths if path != paths[k]}
    damage(paths[k])
    assert bench.train(folder) == []
    assert bench.results(folder) == bench.results(whole)
    assert curve(folder) == curve(whole)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_damaged_curve_costs_its_lines_only(bench, whole, tmp_path):
    folder = tmp_path / "job"
    bench.train(folder, 15)
    path = folder / "curve.csv"
    path.write_bytes(path.read_bytes()[:-20] + b"\xff\n1,2\n")
    bench.train(folder)
    assert bench.results(folder) == bench.results(whole)
    assert set(curve(folder)) <= set(curve(whole))


def diverging(bench, lr: float) -> Bench:
    spec = bench.job.spec
    recipe = msgspec.structs.replace(spec.recipe, lr=lr)
    other = Bench.__new__(Bench)
    other.study, other.dataset = bench.study, bench.dataset
    other.job = msgspec.structs.replace(bench.job, spec=msgspec.structs.replace(spec, recipe=recipe))
    return other


def test_a_trunk_that_diverges_takes_its_runs(bench, tmp_path):
    mad = diverging(bench, 1e6)
    mad.train(tmp_path / "job")
    results = mad.results(tmp_path / "job")
    assert [result.status for result in results] == ["diverged"] * 3
    assert all(result.loss_valid is None and "the loss was" in result.reason for result in results)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "job").rglob("*.json")}
    mad.train(tmp_path / "job")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "job").rglob("*.json")} == before


def test_no_better_than_guessing_is_diverged(bench, tmp_path):
    """The loss stays finite, and small enough to be taken for a result."""
    mad = diverging(bench, 1e-9)
    mad.train(tmp_path / "job")
    results = mad.results(tmp_path / "job")
    assert [result.status for result in results] == ["diverged"] * 3
    assert all("no better than guessing (5.545)" in result.reason for result in results)


def test_what_a_worker_says_survives_the_wire():
    message = Failed("abc", "no space", disk=True)
    from isoflop.ladder.messages import Message

    assert msgspec.json.decode(msgspec.json.encode(message), type=Message) == message
