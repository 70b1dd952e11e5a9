"""isoflop extend from a checkpoint to a folder, and what it refuses."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from isoflop.architecture import Alibi, Decoder, Dense, Learned
from isoflop.architecture.extend import extended
from isoflop.cli.main import main
from isoflop.evaluate.curve import LossByPosition
from isoflop.model import DecoderModel
from isoflop.report.position import build
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.checkpoint import save_model
from isoflop.weights.load import load
from small_studies import write_corpus

OLD, NEW = 32, 96


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus")


def write_model(folder: Path, decoder: Decoder) -> Path:
    model = DecoderModel(decoder)
    initialize(model, 0, Recipe(lr=0.01, batch=1))
    save_model(folder, model, "a test")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("models")
    families = {"rope": Dense(), "alibi": Dense(position=Alibi()), "windows": Dense(window=8, sinks=True)}
    families["learned"] = Dense(position=Learned())
    written = {name: write_model(home / name, family.build(32, 256, OLD)) for name, family in families.items()}
    return written | {"pairs": write_model(home / "pairs", Dense().build(32, 300, OLD))}


def line(model: Path, out: Path, corpus: Path, *more: str) -> list[str]:
    asked = ["extend", str(model), str(out), "--context", str(NEW), "--data", str(corpus), "--eval-tokens", "4000"]
    return [*asked, *more]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, models: dict[str, Path], corpus: Path) -> Path:
    """Two methods, the first fine-tuned, two models beside."""
    out = tmp_path_factory.mktemp("extended") / "out"
    beside = [word for name in ("alibi", "windows") for word in ("--beside", str(models[name]))]
    methods = ["--method", "yarn", "--method", "linear", "--steps", "3", "--batch", "2"]
    assert main(line(models["rope"], out, corpus, *methods, *beside)) == 0
    return out


def result_of(out: Path) -> LossByPosition:
    return msgspec.json.decode((out / "position.json").read_bytes(), type=LossByPosition)


def test_the_folder_is_the_extended_model_with_its_numbers(whole, models):
    model = load(whole)
    assert model.decoder == extended(load(models["rope"]).decoder, NEW, "yarn")
    assert not torch.equal(model.embedding, load(models["rope"]).embedding)  # fine-tuned
    result = result_of(whole)
    kinds = ["own-context", "untouched", "scaled", "scaled", "tuned", "beside", "beside"]
    assert [curve.kind for curve in result.curves] == kinds
    assert [curve.name for curve in result.curves[2:]] == [
        *("YaRN", "linear", "YaRN, 3 steps of fine-tuning"),
        *("alibi (alibi)", "rope, window 8, sinks (windows)"),
    ]
    assert result.tuning is not None
    assert (result.tuning.method, result.tuning.tokens) == ("yarn", 3 * 2 * NEW)
    assert result.curves[4].digest == model.decoder.digest
    own, untouched = result.curves[:2]
    assert untouched.inside.nats == pytest.approx(own.inside.nats, rel=1e-6)  # rows by other kernels at other batches
    assert own.beyond.difference == 0.0


def test_the_page_holds_every_number_and_needs_nothing_else(whole):
    page, result = (whole / "report.html").read_text(), result_of(whole)
    assert page == build(result)
    for curve in result.curves:
        assert f"{curve.beyond.nats:.4f}" in page
        assert curve.name in page
    assert not re.search(r'(src|href)="http', page.split("<script>")[0])
    assert "trained context" in page


def test_names_in_the_page_are_text(whole):
    hostile = msgspec.structs.replace(result_of(whole), model="</title><script>alert(1)</script>")
    assert "<script>alert" not in build(hostile)


def test_nothing_is_written_where_something_is(whole, models, corpus, capsys):
    assert main(line(models["rope"], whole, corpus)) == 2
    assert "is there already" in capsys.readouterr().err


def test_without_steps_the_weights_stay_and_json_is_the_file(models, corpus, tmp_path, capsys):
    assert main(line(models["rope"], tmp_path / "out", corpus, "--json")) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out/position.json").read_bytes())
    before, after = load(models["rope"]).state_dict(), load(tmp_path / "out").state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


REFUSED = {
    "is not longer than the model's own": ("rope", ["--context", str(OLD)]),
    "valid: linear, ntk-aware, yarn, none": ("rope", ["--method", "ntk"]),
    "learned positions cannot be extended": ("learned", []),
    "alibi has no rope to scale": ("alibi", []),
    "no held-out document holds 1000001 tokens": ("rope", ["--context", "1000000"]),
    "has 300 kinds of tokens": ("rope", ["--beside", "pairs"]),
    "300 tokens are not bytes": ("pairs", []),
    "ends at 32 tokens": ("rope", ["--beside", "learned"]),
    "which --steps K asks for": ("rope", ["--lr", "0.1"]),
    "--steps -1 must be at least 0": ("rope", ["--steps", "-1"]),
    "holds neither a checkpoint": (".", []),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_a_wrong_question_is_one_line(reason, models, corpus, tmp_path, capsys):
    name, more = REFUSED[reason]
    model = models.get(name, tmp_path)
    more = [str(models.get(word, word)) for word in more]
    assert main(line(model, tmp_path / "out", corpus, *more)) == 2
    said = capsys.readouterr()
    complaints = [text for text in said.err.splitlines() if text.startswith("isoflop extend: ")]
    assert len(complaints) == 1
    assert reason in complaints[0]
    assert said.out == ""
    assert not (tmp_path / "out").exists()


def test_killed_while_it_trains_it_leaves_nothing(models, corpus, tmp_path):
    words = line(models["rope"], tmp_path / "out", corpus, "--steps", "100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "isoflop.cli.main", *words],
        stderr=subprocess.PIPE,
        text=True,
        env=dict(os.environ) | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    try:
        assert any("fine-tuning" in said for said in process.stderr)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert list(tmp_path.iterdir()) == []


def test_the_text_of_the_checkpoints_own_study_is_found(models, corpus, tmp_path):
    from isoflop.data.prepare import prepare
    from isoflop.data.spec import Data
    from isoflop.evaluate.text import find_dataset

    study = tmp_path / "study"
    made = prepare(Data(source=str(corpus), valid_fraction=0.3), study / "data")
    run = write_model(study / "jobs/trunk/models/run", load(models["rope"]).decoder)
    assert find_dataset(None, run, 256, NEW, tmp_path / "scratch").digest == made.digest
    asked = ["extend", str(study), str(tmp_path / "out"), "--context", str(NEW), "--eval-tokens", "500"]
    assert main(asked) == 0
    assert result_of(tmp_path / "out").data_digest == made.digest
    assert find_dataset(str(study), models["rope"], 256, NEW, tmp_path / "scratch").digest == made.digest
