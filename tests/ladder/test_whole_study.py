"""A study that nothing interrupts, and what the next start makes of a finished one."""

import csv
import json
import shutil
import time

import pytest
import torch

import isoflop
from isoflop.data.dataset import open_dataset
from isoflop.data.stream import evaluation_batches
from isoflop.ladder.job import EVALUATION_BATCH
from isoflop.ladder.study import load_study
from isoflop.table import read_table
from isoflop.weights.hugging_face import export_folder
from isoflop.weights.load import find_weights
from small_studies import SMALL, assert_tidy, finished, forecasts, law, processes_at, run, table, write_study

KEPT = ("law.json", "runs.csv", "runs.parquet", "forecast.json", "plan.json", "study.toml")


def test_what_lies_in_the_folder(reference):
    out = reference.out
    rows = table(out)
    assert [(row["role"], row["status"]) for row in rows] == [("fit", "done")] * 6 + [("target", "done")]
    assert len({row["trunk"] for row in rows}) == 3
    assert all(1 < float(row["loss_valid"]) < 5.545 for row in rows)
    assert (out / "report.html").stat().st_size > 10_000
    assert load_study(out / "study.toml") == load_study(reference.study)
    assert law(out)["certificate"]["n_used"] == 6
    assert len(list(out.glob("jobs/*/curve.csv"))) == 3
    assert not list(out.glob("jobs/*/checkpoint/decay*"))
    assert_tidy(out)


def test_parquet_is_exact_and_csv_the_same(reference):
    rows = read_table(reference.out)
    with (reference.out / "runs.csv").open(newline="") as file:
        for row, text in zip(rows, csv.DictReader(file), strict=True):
            assert (row.run, repr(row.loss_valid), str(row.tokens)) == (text["run"], text["loss_valid"], text["tokens"])


def test_planned_is_what_was_trained(reference):
    jobs = json.loads((reference.out / "plan.json").read_bytes())["plan"]["jobs"]
    planned = {run["run"]: run for job in jobs for run in job["runs"]}
    for row in read_table(reference.out):
        plan = planned[row.run]
        assert row.tokens == row.steps * row.batch_tokens == plan["tokens"]
        assert row.flops_exact == plan["flops_exact"]
    last = {}
    for path in reference.out.glob("jobs/*/curve.csv"):
        last |= {line["run"]: int(line["tokens"]) for line in csv.DictReader(path.read_text().splitlines())}
    assert all(last[run] == plan["tokens"] for run, plan in planned.items())


def test_forecast_precedes_its_run(reference):
    [seen], [told] = reference.seen, forecasts(reference.out)
    assert seen["measured"] is None
    assert seen["made_before_run"] is True
    changed = ("measured", "bits_per_byte", "relative_error", "inside")
    assert {k: v for k, v in seen.items() if k not in changed} == {k: v for k, v in told.items() if k not in changed}
    target = read_table(reference.out)[-1]
    assert told["measured"] == target.loss_valid
    assert told["bits_per_byte"] == target.bits_per_byte
    assert (told["run"], told["n_params"], told["tokens"]) == (target.run, target.n_params, target.tokens)
    assert told["n_params_matmul"] == target.n_params_matmul
    assert told["flops_exact"] == target.flops_exact
    said = told["forecast"]
    assert said["low"] <= said["loss"] <= said["high"]
    assert said["level"] == 0.8
    assert told["relative_error"] == pytest.approx((said["loss"] - target.loss_valid) / target.loss_valid)


def test_the_target_is_kept(reference, tmp_path):
    """Its weights give the loss that was measured, to the last bit, and the same logits in transformers."""
    import transformers

    model, dataset = isoflop.load(reference.out), open_dataset(reference.out / "data")
    target = read_table(reference.out)[-1]
    batches = evaluation_batches(dataset.valid, 32, EVALUATION_BATCH, SMALL["training"]["eval_tokens"])
    with torch.no_grad():
        losses = [model.loss(torch.from_numpy(x), torch.from_numpy(y)).nats.item() * x.size for x, y in batches]
        tokens = sum(x.size for x, _ in evaluation_batches(dataset.valid, 32, EVALUATION_BATCH, 2048))
        assert sum(losses) / tokens == target.loss_valid
        export_folder(find_weights(reference.out), tmp_path / "theirs")
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "theirs")
        x = next(batch for batch, _ in evaluation_batches(dataset.valid, 32, EVALUATION_BATCH, 2048))
        assert torch.allclose(theirs(torch.from_numpy(x)).logits, model(torch.from_numpy(x)), rtol=1e-4, atol=1e-4)


def test_again_retrains_nothing(reference, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(reference.out, out)
    before, kept = finished(out), {name: (out / name).read_bytes() for name in KEPT}
    jobs = {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/*")}
    started = time.monotonic()
    ended = run(reference.study, out)
    assert ended.code == 0, ended
    assert "training" not in ended.err
    assert time.monotonic() - started < 20  # a start and a fit; importing torch alone would show in a quiet minute
    assert {name: (out / name).read_bytes() for name in KEPT} == kept
    assert finished(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.glob("jobs/*/*")} == jobs
    assert processes_at(out) == []


def test_changed_study_keeps_what_still_matches(reference, corpus, tmp_path):
    """A longer run joins a trunk: it alone is trained, and the forecast that follows owns up to being late."""
    out = tmp_path / "out"
    shutil.copytree(reference.out, out)
    before = finished(out)
    grid = SMALL["budgets"] | {"tokens": [2560, 5120, 10240, 12800], "d_model": [16, 24]}
    longer = write_study(tmp_path / "longer.toml", corpus, budgets=grid, execution={"workers": 1})
    ended = run(longer, out)
    assert ended.code == 0, ended
    assert "training 8 runs on 2 trunks, 1 at a time" in ended.err
    after = finished(out)
    assert {path: after[path] for path in before} == before
    assert len(after) == len(before) + 2
    old, new = {row["run"]: row for row in table(reference.out)}, {row["run"]: row for row in table(out)}
    assert len(new) == len(old) + 2
    assert {run: new[run] for run in old} == old
    [told] = forecasts(out)
    assert told["made_before_run"] is False
    assert told["measured"] == forecasts(reference.out)[0]["measured"]


def test_families_and_bf16(corpus, tmp_path):
    families = {"dense": SMALL["families"]["dense"], "sparse": {"type": "experts", "d_head": 8, "n_experts": 4}}
    study = write_study(
        tmp_path / "two.toml",
        corpus,
        families=families,
        budgets={"type": "grid", "d_model": [16, 24], "tokens": [1280, 1920, 2560]},
        training={"dtype": "bf16", "eval_tokens": 512},
        targets=[{"d_model": 32, "tokens": 2560, "family": "sparse"}],
    )
    out = tmp_path / "out"
    ended = run(study, out)
    assert ended.code == 0, ended
    documents = law(out)["families"]
    assert list(documents) == ["dense", "sparse"]
    assert all(document["certificate"]["n_used"] == 6 for document in documents.values())
    rows = table(out)
    assert [(row["family"], row["role"]) for row in rows] == (
        [("dense", "fit")] * 6 + [("sparse", "fit")] * 6 + [("sparse", "target")]
    )
    assert {row["dtype"] for row in rows} == {"bf16"}
    assert [told["family"] for told in forecasts(out)] == ["sparse"]
    assert_tidy(out)


@pytest.mark.gpu
def test_on_a_gpu(corpus, tmp_path):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; torch sees none")
    study = write_study(tmp_path / "gpu.toml", corpus, execution={"device": "cuda"}, training={"dtype": "bf16"})
    ended = run(study, tmp_path / "out")
    assert ended.code == 0, ended
    assert {row["device"] for row in table(tmp_path / "out")} == {"cuda"}
