"""`isoflop import` and `isoflop export`, from the command line."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import isoflop
from isoflop.architecture import Dense
from isoflop.cli.main import main
from isoflop.cli.transfer import progress
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.checkpoint import save_model
from isoflop.weights.writer import new_folder

TOKENS = torch.arange(9)[None]
TOKENIZER = {
    "tokenizer.json": '{"version": "1.0"}',
    "tokenizer_config.json": "{}",
    "merges.txt": "#version: 0.2\na b\n",
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = DecoderModel(Dense().build(32, 40, 16))
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    save_model(tmp_path / "checkpoint", model, "a test", special_tokens={"eos_token_id": 3})
    return tmp_path / "checkpoint"


def documents(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def wrong(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith(f"isoflop {arguments[0]}: ")
    return err


def test_there_and_back(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, back = tmp_path / "there", tmp_path / "deep" / "back"
    out = documents(capsys, "export", str(checkpoint), str(there))
    assert out == {"checkpoint": str(checkpoint), "out": str(there), "model_type": "llama"}
    for name, text in TOKENIZER.items():
        (there / name).write_text(text)
    found = documents(capsys, "import", str(there), str(back))
    decoder = isoflop.load(checkpoint).decoder
    assert found["model_type"] == "llama" and found["dtype"] == "float32" and found["ignored"] == []
    assert found["digest"] == decoder.digest and found["params"] == sum(
        parameter.numel() for parameter in isoflop.load(back).parameters()
    )
    with torch.no_grad():
        assert torch.equal(isoflop.load(back)(TOKENS), isoflop.load(checkpoint)(TOKENS))
    documents(capsys, "export", str(back), str(tmp_path / "again"))
    assert all((tmp_path / "again" / name).read_text() == text for name, text in TOKENIZER.items())
    keys = json.loads((tmp_path / "again" / "config.json").read_text())
    assert keys["eos_token_id"] == 3 and keys["architectures"] == ["LlamaForCausalLM"]


def test_a_model_of_bytes_takes_a_tokenizer_along(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoTokenizer

    model = DecoderModel(Dense().build(32, 256, 256))
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    save_model(tmp_path / "bytes", model, "a test")
    documents(capsys, "export", str(tmp_path / "bytes"), str(tmp_path / "there"))
    theirs, text = AutoTokenizer.from_pretrained(tmp_path / "there"), "def f(x):\n\treturn '\u00e9\u4e2d' + x  "
    assert theirs.encode(text, add_special_tokens=False) == list(text.encode())
    assert theirs.decode(list(text.encode()), clean_up_tokenization_spaces=False) == text


def test_half_precision(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", str(checkpoint), str(tmp_path / "there")])
    capsys.readouterr()
    assert main(["import", str(tmp_path / "there"), str(tmp_path / "half"), "--dtype", "bf16"]) == 0
    assert "parameters of a llama, matrices in bfloat16" in capsys.readouterr().out
    assert isoflop.load(tmp_path / "half").dtype == torch.bfloat16


def test_mistakes(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert "is not a folder" in wrong(capsys, "import", str(tmp_path / "nowhere"), out)
    assert "config.json: there is no such file" in wrong(capsys, "import", str(checkpoint), out)
    assert "is there already" in wrong(capsys, "export", str(checkpoint), str(checkpoint))
    assert "is not a folder" in wrong(capsys, "export", str(tmp_path / "nowhere"), out)
    main(["export", str(checkpoint), str(tmp_path / "there")])
    capsys.readouterr()
    assert "checkpoint.json: there is no such file" in wrong(capsys, "export", str(tmp_path / "there"), out)
    config = tmp_path / "there" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "a\n\x1b[31m\u2028b"}))
    assert r"model_type 'a\n\x1b[31m\u2028b' is not among" in wrong(capsys, "import", str(tmp_path / "there"), out)
    config.write_text(json.dumps(json.loads(config.read_text()) | {"model_type": "llama"}))
    (tmp_path / "there" / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "is not a valid safetensors file" in wrong(capsys, "import", str(tmp_path / "there"), out)
    shutil.rmtree(checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["there"]


def test_nothing_is_overwritten(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["export", str(checkpoint), str(tmp_path / "there")])
    capsys.readouterr()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "link", "checkpoint"):
        assert "is there already" in wrong(capsys, "import", str(tmp_path / "there"), str(tmp_path / name))
    inside = str(tmp_path / "file" / "deep" / "model")
    assert f"{tmp_path / 'file'} is no folder" in wrong(capsys, "import", str(tmp_path / "there"), inside)
    (tmp_path / "empty").mkdir()
    assert main(["import", str(tmp_path / "there"), str(tmp_path / "empty")]) == 0


def test_one_writer_at_a_time(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there, partial = tmp_path / "there", tmp_path / ".there.partial"
    partial.mkdir()
    (partial / "left").mkdir()
    (partial / "left" / "over").write_text("by a killed writer")
    with new_folder(there) as other:
        assert other == partial and list(other.iterdir()) == []
        (other / "file").write_text("other")
        assert "another isoflop is writing here" in wrong(capsys, "export", str(checkpoint), str(there))
        assert (other / "file").read_text() == "other"
    assert (there / "file").read_text() == "other" and not partial.exists()


def test_progress(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    tell = progress("import")
    for second in range(7):
        now[0] = float(second)
        tell(second * 10**9, 10**10)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "import: 2.00 of 10.00 GB, about 8 s left" and len(lines) == 3


def test_isoflop_alone_does_not_import_torch() -> None:
    code = "import sys, isoflop; assert callable(isoflop.load); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def paired(words: dict[str, int], **more: Any) -> str:
    decoder = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return json.dumps({"model": {"type": "BPE", "vocab": words, "merges": []}, "decoder": decoder} | more)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "has no tokenizer.json, and its 40 tokens are not bytes"),
        ({"tokenizer.json": "{"}, "tokenizer.json: is not valid JSON"),
        ({"tokenizer.json": '{"version": "1.0"}'}, "tokenizer.json: is not a tokenizer"),
        ({"tokenizer.json": paired({"a": 0}, decoder=None)}, "decoder none: only byte-level"),
        ({"tokenizer.json": paired({"a": 40})}, "has tokens up to number 40, and the model only 40"),
        (
            {"tokenizer.json": paired({"a": 0}), "tokenizer_config.json": "{"},
            "tokenizer_config.json: is not valid",
        ),
    ],
)
def test_weights_without_a_tokenizer_that_reads_text(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], files: dict[str, str], said: str
) -> None:
    """They are imported, as they are stored, and it is told what `generate` will refuse."""
    there, out = tmp_path / "there", tmp_path / "out"
    documents(capsys, "export", str(checkpoint), str(there))
    for name, text in files.items():
        (there / name).write_text(text)
    assert main(["import", str(there), str(out), "--json"]) == 0
    document, told = capsys.readouterr()
    assert told.startswith("isoflop import: the weights are imported, and no text can be read with them: ")
    assert told.count("\n") == 1 and said in told and said in json.loads(document)["no_text"]
    assert isoflop.load(out).decoder == isoflop.load(checkpoint).decoder
    assert all((out / name).read_text() == text for name, text in files.items())
    if "only 40" not in said:  # that is seen once a text needs it
        assert said in wrong(capsys, "generate", str(out), "a").replace(str(out), str(there))


def test_a_tokenizer_that_fits(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A mark beyond the model's tokens, which no text can need, among the rest."""
    there = tmp_path / "there"
    documents(capsys, "export", str(checkpoint), str(there))
    mark = {"id": 40, "content": "<pad>", "special": True, "single_word": False, "lstrip": False, "rstrip": False}
    (there / "tokenizer.json").write_text(
        paired({chr(i + 48): i for i in range(40)}, added_tokens=[mark | {"normalized": False}])
    )
    assert main(["import", str(there), str(tmp_path / "out"), "--json"]) == 0
    document, told = capsys.readouterr()
    assert told == "" and json.loads(document)["no_text"] is None
