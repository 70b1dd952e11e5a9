"""What a calibration expects of a study's runs: written before they start, shown beside what was measured."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from isoflop.architecture.files import from_dict
from isoflop.cli.main import main
from isoflop.cost.belief import belief_about
from isoflop.cost.quantity import Quantity
from isoflop.cost.this_device import TIMING, Calibration, Timing, calibration_path, read_calibration, run_rate
from isoflop.hardware import Accelerator, find_accelerator
from isoflop.ladder.machine import Machine
from isoflop.ladder.plan import Job, Plan, PlannedRun, make_plan
from isoflop.ladder.study import Study
from isoflop.ladder.timing import expect
from isoflop.report.timing import timing_table
from isoflop.table import RunRow, write_table

HARDWARE = Accelerator(
    name="this (test)",
    vendor="measured",
    tflops={"fp32": 0.1},
    memory_gb=16,
    bandwidth_tb_s=0.03,
    link_gb_s=30,
    source="test",
    date="2026-01",
)


def _calibration() -> Calibration:
    belief = msgspec.structs.replace(belief_about(find_accelerator("A100-SXM4-80GB")), source="measured")
    return Calibration(
        hardware=HARDWARE, belief=belief, alone=belief, threads=1, torch="2", date="2026-01-01", measurements={}
    )


@pytest.fixture
def calibrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calibration:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    calibration_path().parent.mkdir(parents=True)
    calibration_path().write_bytes(msgspec.json.encode(_calibration()))
    return _calibration()


def _plan(**execution: Any) -> Plan:
    study = from_dict(
        {
            "families": {"dense": {"type": "dense", "d_head": 16}},
            "budgets": {"type": "grid", "d_model": [16, 32], "tokens": [8192, 16384]},
            "training": {
                "context": 64,
                "rule": {"type": "power", "lr": 0.01, "batch_tokens": 512},
                "eval_tokens": 4096,
            },
            "execution": {"compile": "never"} | execution,
            "targets": [{"d_model": 64, "tokens": 16384}],
        },
        Study,
        "test",
    )
    return make_plan(study, 256, "digest", Machine(cores=2, compiler=True))


def test_every_run_that_trains_as_the_calibration_did(tmp_path: Path, calibrated: Calibration) -> None:
    plan = _plan(target_threads=2)
    expect(plan, tmp_path)
    found = msgspec.json.decode((tmp_path / TIMING).read_bytes(), type=Timing)
    assert set(found.tokens_per_s) == {run.run for job in plan.jobs for run in job.runs if job.threads == 1}
    job = next(job for job in plan.jobs if job.threads == 1)
    spec = job.spec
    rate = run_rate(calibrated, spec.decoder, 64, spec.recipe.batch, "fp32", False)
    assert found.tokens_per_s[job.runs[0].run] == rate and rate.low < rate.value < rate.high
    before = (tmp_path / TIMING).stat().st_mtime_ns
    expect(plan, tmp_path)
    assert (tmp_path / TIMING).stat().st_mtime_ns == before


def test_without_a_calibration_or_with_a_damaged_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    expect(_plan(), tmp_path)
    assert not (tmp_path / TIMING).exists()
    calibration_path().parent.mkdir(parents=True)
    calibration_path().write_text("{")
    expect(_plan(), tmp_path)
    assert not (tmp_path / TIMING).exists()


def test_plan_against_actual(tmp_path: Path, calibrated: Calibration) -> None:
    plan = _plan()
    expect(plan, tmp_path)
    told = json.loads((tmp_path / TIMING).read_text())["tokens_per_s"]
    names = list(told)
    rows = [
        SimpleNamespace(run=name, status="done", tokens_per_s=told[name]["value"] * factor, wall_s=1.0)
        for name, factor in zip(names, (1.0, 3.0), strict=False)
    ]
    study: Any = SimpleNamespace(folder=tmp_path, rows=rows, plan={"plan": msgspec.to_builtins(plan)})
    page = timing_table(study)
    assert "1 of 2 intervals held" in page and "this (test) of 2026-01-01" in page and "<td" in page
    (tmp_path / TIMING).unlink()
    page = timing_table(study)
    assert "measured over planned" in page and "isoflop calibrate" in page
    (tmp_path / TIMING).write_text("[]")
    with pytest.raises(ValueError, match=r"timing\.json is no list of expected speeds"):
        timing_table(study)


def test_finished_runs_teach(tmp_path: Path, calibrated: Calibration) -> None:
    """A study that ran at half the expected speed: expectations of the next one fall towards it."""
    plan = _plan()
    rate = {job.trunk: _rate_of(calibrated, job).value for job in plan.jobs}
    rows = [_row(job, run, rate[job.trunk] / 2) for job in plan.jobs for run in job.runs]
    write_table(rows, tmp_path)
    (tmp_path / "plan.json").write_bytes(msgspec.json.encode({"plan": plan}))
    assert main(["calibrate", "--learn", str(tmp_path)]) == 0
    found = read_calibration()
    for job in plan.jobs:
        after = _rate_of(found, job)
        assert rate[job.trunk] / 2.2 < after.value < 0.75 * rate[job.trunk] and after.source == "measured"


def _row(job: Job, run: PlannedRun, tokens_per_s: float) -> RunRow:
    return RunRow(
        **{field: getattr(run, field) for field in ("run", "role", "family", "d_model", "n_params", "tokens", "steps")},
        **{field: getattr(run, field) for field in ("n_params_non_embedding", "n_params_matmul")},
        **{field: getattr(run, field) for field in ("flops_exact", "flops_6nd")},
        **{"architecture": "", "n_layers": 2, "unique_tokens": 1, "loss_train": 2.0, "loss_valid": 2.0},
        **{"bits_per_byte": None, "seed": 0, "lr": 0.01, "batch_tokens": job.batch_tokens, "context": job.context},
        **{"optimizer": "adamw", "schedule": "wsd", "wall_s": run.tokens / tokens_per_s, "tokens_per_s": tokens_per_s},
        **{"device": "cpu", "dtype": "fp32", "threads": 1, "compiled": False, "trunk": job.trunk},
        **{"status": "done", "reason": None},
    )


def _rate_of(found: Calibration, job: Job) -> Quantity:
    return run_rate(found, job.spec.decoder, job.context, job.spec.recipe.batch, job.spec.dtype, False)


@pytest.mark.usefixtures("calibrated")
def test_no_study_to_learn_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--learn", str(tmp_path)]) == 2
    assert "not a study directory with finished runs" in capsys.readouterr().err
