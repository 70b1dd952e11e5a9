"""isoflop quantize from a checkpoint to a folder that loads, and what it refuses."""

from pathlib import Path

import msgspec
import pytest
import torch

from isoflop.architecture import Dense
from isoflop.cli.main import main
from isoflop.cost import parameters
from isoflop.laws.presets import preset_named
from isoflop.model import DecoderModel
from isoflop.model.quantized import Integer, QuantizedLinear
from isoflop.quantize.report import Report
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.checkpoint import Checkpoint, save_model
from isoflop.weights.load import load
from small_studies import write_corpus

CONTEXT = 32


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text") / "corpus")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    made = DecoderModel(Dense().build(32, 256, CONTEXT))
    initialize(made, 0, Recipe(lr=0.01, batch=1))
    save_model(folder, made, "a test")
    return folder


def line(model: Path, out: Path, corpus: Path, *more: str) -> list[str]:
    sizes = ["--eval-tokens", "2000", "--calibration-tokens", "1000"]
    return ["quantize", str(model), str(out), "--data", str(corpus), *sizes, *more]


def test_several_ways_beside_each_other(
    tmp_path: Path, model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    methods = ["--method", "gptq", "--method", "awq", "--method", "rtn", "--method", "qat", "--steps", "2"]
    assert main(line(model, out, corpus, *methods, "--trained-tokens", "1e6", "--json")) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=Report)
    assert msgspec.json.decode((out / "quantization_report.json").read_bytes(), type=Report) == report
    assert [figure.method for figure in report.figures] == [
        "GPTQ",
        "AWQ",
        "round to nearest",
        "quantization-aware training",
    ]
    first = report.figures[0]
    assert first.bits_per_weight == pytest.approx(4.5, rel=0.01)  # 16 bits of scale for 32 codes
    entries = Checkpoint(out).tensors.entries.values()
    assert first.bytes == sum(entry.nbytes for entry in entries)
    assert report.original_bytes == sum(entry.nbytes for entry in Checkpoint(model).tensors.entries.values())
    assert first.loss == pytest.approx(report.original_loss + first.loss_change.mean)
    assert first.loss_change.low <= first.loss_change.mean <= first.loss_change.high
    assert list(report.kept) == ["embedding"]
    assert report.law is not None
    n = parameters(load(model).decoder).non_embedding
    assert report.law.predicted == pytest.approx(float(preset_named(report.law.name).value(N=n, D=1e6, P=4.0)))
    assert len(report.law.outside) == 2


def test_what_is_written_is_what_was_measured(tmp_path: Path, model: Path, corpus: Path) -> None:
    out = tmp_path / "out"
    assert main(line(model, out, corpus, "--method", "rtn", "--format", "int8")) == 0
    again, tokens = load(out), torch.arange(24)[None]
    assert isinstance(again.layers[0].mixer.qkv, QuantizedLinear)
    assert again.layers[0].mixer.qkv.format == Integer(bits=8, group=32)
    with torch.no_grad():
        ours, theirs = again(tokens), load(model)(tokens)
    assert float((ours - theirs).abs().max()) < 0.05 * float(theirs.abs().max())
    assert main(line(out, tmp_path / "twice", corpus)) == 2  # quantized already


def test_mixed_bits_keep_their_budget(
    tmp_path: Path, model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(line(model, out, corpus, "--method", "rtn", "--bits-per-weight", "4.5", "--json")) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=Report)
    assert report.figures[0].bits_per_weight <= 4.5
    assert len(report.choices) == 2 * len(load(model).decoder.layers) + 1
    assert main(line(model, tmp_path / "less", corpus, "--bits-per-weight", "1.5")) == 2
    assert "the smallest formats take" in capsys.readouterr().err


def test_the_table(tmp_path: Path, model: Path, corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line(model, tmp_path / "out", corpus, "--format", "nf4", "--trained-tokens", "1e6")) == 0
    told = capsys.readouterr().out
    for words in ("same likeliest token", "GPTQ", "law kumar-2024-quantization", "in full precision", "written:"):
        assert words in told


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--method", "hqq"), "--method hqq is unknown; valid: rtn, gptq, awq, qat"),
        (("--format", "int9"), "--format int9 is unknown; valid: int8"),
        (("--format", "fp8", "--asymmetric"), "--asymmetric is of integers, not of fp8"),
        (("--group", "-1"), "--group -1 must be at least 0"),
        (("--method", "qat"), "--method qat and --steps K belong together"),
        (("--steps", "3"), "--method qat and --steps K belong together"),
        (("--bits-per-weight", "nan"), "--bits-per-weight nan must be a finite number above 0"),
        (("--bits-per-weight", "3.5", "--format", "nf4"), "--bits-per-weight chooses among integers, not nf4"),
        (("--context", "100000"), "--context 100000: the model takes at most"),
        (("--group", "10000000"), "the widest row has 88 weights; 0 makes a row a group"),
    ],
)
def test_wrong_questions(
    tmp_path: Path,
    model: Path,
    corpus: Path,
    more: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(line(model, tmp_path / "out", corpus, *more)) == 2
    told = capsys.readouterr().err
    assert message in told
    assert told.strip().splitlines()[-1].startswith("isoflop quantize: ")
    assert not (tmp_path / "out").exists()
