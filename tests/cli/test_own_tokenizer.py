"""A llama with a tokenizer of its own, made by transformers: imported, quantized, extended and evaluated on plain text,
with the losses that transformers finds on the same documents; and a ladder in that tokenizer."""

import hashlib
import json
import math
import sysconfig
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foreign_tokenizers import KINDS, sentence_piece
from isoflop.cli.main import main
from isoflop.data.corpus import is_validation
from isoflop.evaluate.curve import LossByPosition
from isoflop.quantize.report import Report
from isoflop.weights.load import load
from small_studies import write_study

VOCAB, OLD, NEW = 448, 32, 64  # the tokenizer has 420
MODULES = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:30]
DOCUMENTS = [path.read_text()[:1000] for path in MODULES]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """theirs/: what transformers saves; ours/: the same imported; text.jsonl."""
    import transformers

    home = tmp_path_factory.mktemp("llama")
    marks = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=sentence_piece(), **marks)
    tokenizer.save_pretrained(home / "theirs")
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.LlamaConfig(
        vocab_size=VOCAB, max_position_embeddings=OLD, num_key_value_heads=2, bos_token_id=1, eos_token_id=2, **sizes
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 1 / parameter.shape[-1] ** 0.5)
    model.save_pretrained(home / "theirs")
    (home / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    assert main(["import", str(home / "theirs"), str(home / "ours")]) == 0
    return home


def line(home: Path, verb: str, out: Path, *more: str, model: str = "ours") -> list[str]:
    return [verb, str(home / model), str(out), "--data", str(home / "text.jsonl"), "--json", *more]


def windows_of(home: Path, context: int, fraction: float) -> tuple[torch.Tensor, np.ndarray]:
    """By transformers' tokenizer alone: the windows of held-out documents, and the bytes of each target's text."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(home / "theirs")
    tokens, sizes = [], []
    for text in DOCUMENTS:
        if is_validation(hashlib.sha256(text.encode()).digest(), fraction):
            told = tokenizer(text, return_offsets_mapping=True)
            ends = [len(text[:after].encode()) for _, after in told["offset_mapping"]]
            for first in range(0, len(ends) - context, context + 1):
                tokens.append(told["input_ids"][first : first + context + 1])
                sizes.append(np.diff(ends[first : first + context + 1]))
    assert tokens[0][0] == tokenizer.bos_token_id
    return torch.tensor(tokens), np.array(sizes)


def nats_of(folder: Path, tokens: torch.Tensor) -> Any:
    """Transformers' losses, [W, T]."""
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(tokens[:, :-1]).logits
    return F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none").double().numpy()


@pytest.mark.parametrize("model", ["ours", "theirs"])
def test_quantize(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str) -> None:
    more = ["--context", "32", "--calibration-tokens", "1000", "--method", "gptq", "--method", "rtn"]
    assert main(line(home, "quantize", tmp_path / "out", *more, model=model)) == 0
    report = msgspec.json.decode(capsys.readouterr().out, type=Report)
    tokens, _ = windows_of(home, 32, 0.5)
    assert report.n_windows == len(tokens) and report.data == str(home / "text.jsonl")
    assert report.original_loss == pytest.approx(nats_of(home / "theirs", tokens).mean(), abs=1e-4)
    with torch.no_grad():
        logits = load(tmp_path / "out", torch.float32)(tokens[:, :-1])
    assert report.figures[0].loss == pytest.approx(float(F.cross_entropy(logits.mT, tokens[:, 1:])), abs=1e-3)
    assert (tmp_path / "out/tokenizer.json").read_bytes() == (home / "theirs/tokenizer.json").read_bytes()
    assert main(["generate", str(tmp_path / "out"), "The quick", "--max-tokens", "3"]) == 0


def test_extend(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line(home, "extend", tmp_path / "out", "--context", str(NEW), "--method", "yarn")) == 0
    result = msgspec.json.decode(capsys.readouterr().out, type=LossByPosition)
    assert main(["export", str(tmp_path / "out"), str(tmp_path / "yarn")]) == 0
    tokens, sizes = windows_of(home, NEW, 0.5)
    assert result.n_windows == len(tokens)
    found = {curve.kind: curve for curve in result.curves}
    for kind, folder in (("untouched", home / "theirs"), ("scaled", tmp_path / "yarn")):
        nats = nats_of(folder, tokens)
        for mean, span in ((found[kind].inside, slice(0, OLD)), (found[kind].beyond, slice(OLD, NEW))):
            assert mean.nats == pytest.approx(nats[:, span].mean(), abs=1e-4)
            bits = nats[:, span].sum() / math.log(2) / sizes[:, span].sum()
            assert mean.bits_per_byte == pytest.approx(bits, rel=1e-4)


def test_one_text_file(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is cut into documents, of which some are held out."""
    (tmp_path / "novel.txt").write_text("".join(DOCUMENTS))
    sizes = ["--context", "32", "--calibration-tokens", "1000", "--eval-tokens", "640", "--method", "rtn", "--json"]
    asked = ["quantize", str(home / "ours"), str(tmp_path / "out"), *sizes]
    assert main([*asked, "--data", str(tmp_path / "novel.txt")]) == 0
    assert msgspec.json.decode(capsys.readouterr().out, type=Report).n_documents >= 1


def test_a_ladder_in_that_tokenizer(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "text.jsonl").write_bytes((home / "text.jsonl").read_bytes())
    (tmp_path / "own.json").write_bytes((home / "theirs/tokenizer.json").read_bytes())
    kind = {"type": "file", "path": "own.json", "end": "</s>"}
    study = write_study(
        tmp_path / "study.toml",
        corpus,
        budgets={"type": "grid", "d_model": [16], "tokens": [512]},
        training={"context": 16, "rule": {"type": "power", "lr": 0.01, "batch_tokens": 128}, "eval_tokens": 512},
        targets=[{"d_model": 16, "tokens": 1024}],
    )
    described = study.read_text().replace("[data]", f"[data]\nvalid_fraction = 0.3\ntokenizer = {_toml(kind)}")
    study.write_text(described)
    out = ["study", str(study), "--out", str(tmp_path / "out"), "--json"]
    assert main([*out, "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)
    study.write_text(described.replace("own.json", "gone.json"))
    assert wrong(capsys, *out).endswith("gone.json: there is no such tokenizer.json")
    study.write_text(described.replace('end = "</s>"', 'end = "<stop>"'))
    assert "has no token '<stop>', which is to end a document" in wrong(capsys, *out)


def _toml(table: dict[str, str]) -> str:
    return "{ " + ", ".join(f'{key} = "{value}"' for key, value in table.items()) + " }"


def wrong(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 2
    out, err = capsys.readouterr()
    complaints = [text for text in err.splitlines() if text.startswith(f"isoflop {arguments[0]}: ")]
    assert out == "" and len(complaints) == 1 and err.rstrip("\n").endswith(complaints[0])
    return complaints[0]


def changed(home: Path, folder: Path, **keys: Any) -> Path:
    """The model as transformers saved it, with another tokenizer.json."""
    for path in (home / "theirs").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    described = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(described | keys))
    return folder


def pairs(words: dict[str, int]) -> dict[str, Any]:
    return {"model": {"type": "BPE", "vocab": words, "merges": []}}


HOSTILE: list[tuple[dict[str, Any], str]] = [
    ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**4}}, "characters of one"),
    ({"model": {"type": "BPE", "vocab": {"a": 10**9}, "merges": []}}, "at most 16777216"),
    (
        {"model": {"type": "BPE", "vocab": {"a": 448, "</s>": 2}, "merges": []}},
        "tokens up to number 448, and the model",
    ),
    (
        {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []},
        "has no token 2, which is to end",
    ),
    ({"model": None}, "is not a tokenizer"),
]


@pytest.mark.parametrize(("keys", "message"), HOSTILE)
@pytest.mark.parametrize("verb", ["quantize", "extend"])
def test_hostile(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str, keys: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    changed(home, folder, **keys)
    # `extend` is asked for more than the model takes; `quantize` would refuse that before it reads the tokenizer
    longer = ("--context", str(NEW)) if verb == "extend" else ()
    asked = line(home, verb, tmp_path / "out", *longer, model=str(folder))
    assert message in wrong(capsys, *asked)
    assert not (tmp_path / "out").exists()


def test_a_model_of_another_tokenizer(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A prepared folder in other tokens; a folder without tokenizer.json; one that leads outside."""
    from isoflop.data.prepare import prepare
    from isoflop.data.spec import Data, File

    make, end = KINDS["byte-level"]
    make(600).save(str(tmp_path / "large.json"))
    spec = Data(source=str(home), tokenizer=File(path=str(tmp_path / "large.json"), end=end), valid_fraction=0.5)
    prepare(spec, tmp_path / "data")
    folder = tmp_path / "model"
    folder.mkdir()
    changed(home, folder)
    asked = ["quantize", str(folder), str(tmp_path / "out")]
    assert "the tokenizer is not this model's" in wrong(capsys, *asked, "--data", str(tmp_path / "data"))
    (folder / "tokenizer.json").rename(tmp_path / "outside.json")
    assert "has no tokenizer.json, and its 448 tokens are not bytes" in wrong(capsys, *asked, "--data", str(home))
    (folder / "tokenizer.json").symlink_to(tmp_path / "outside.json")
    assert "is a link that leaves the folder" in wrong(capsys, *asked, "--data", str(home))


@pytest.mark.parametrize("verb", ["quantize", "extend"])
def test_text_under_another_key(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: str) -> None:
    """What is wrong names an option of the verb, which helps."""
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"id": i, "body": text}) + "\n" for i, text in enumerate(DOCUMENTS)))
    longer = ["--context", str(NEW)] if verb == "extend" else ["--context", "32", "--calibration-tokens", "1000"]
    asked = [verb, str(home / "ours"), str(tmp_path / "out"), "--data", str(text), "--eval-tokens", "640", *longer]
    said = wrong(capsys, *asked)
    assert "line 1: has no key 'text'; it has 'id', 'body': name the one that holds the text (--text-key" in said
    assert "--text-key: is empty" in wrong(capsys, *asked, "--text-key", "")
    assert main([*asked, "--text-key", "body"]) == 0


def test_text_that_is_prepared_has_no_key(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from isoflop.data.prepare import prepare
    from isoflop.data.spec import Data, File

    tokenizer = File(path=str(home / "theirs/tokenizer.json"), end="</s>")
    prepare(Data(source=str(home / "text.jsonl"), tokenizer=tokenizer, valid_fraction=0.5), tmp_path / "data")
    asked = ["quantize", str(home / "ours"), str(tmp_path / "out"), "--data", str(tmp_path / "data")]
    assert "is prepared, and its text known; leave it out" in wrong(capsys, *asked, "--text-key", "body")
