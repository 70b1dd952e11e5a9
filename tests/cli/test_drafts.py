"""--draft of generate and serve: the same text, and what it gained."""

import json
from pathlib import Path
from typing import Any

import pytest

from isoflop.architecture import Decoder, Dense
from isoflop.cli.main import main
from isoflop.data.tokenizer import train_byte_pair
from isoflop.engine import draft_exit
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.checkpoint import save_model


def saved(folder: Path, decoder: Decoder, seed: int, files: Path | None = None, exit_after: int | None = None) -> None:
    model = DecoderModel(decoder)
    initialize(model, seed, Recipe(lr=1e-3, batch=1))
    special = {"bos_token_id": 0, "eos_token_id": 0}
    save_model(folder, model, "a test", files, special, exit_after)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`large`, and a `small` one so much cheaper that its guesses are worth a try; both of bytes."""
    folder = tmp_path_factory.mktemp("drafts")
    saved(folder / "large", Dense(aspect=16).build(128, 256, 256), 0)
    saved(folder / "early", Dense(aspect=16).build(128, 256, 256), 0, exit_after=3)
    saved(folder / "small", Dense(aspect=32).build(32, 256, 256), 1)
    (folder / "files").mkdir()
    (folder / "files" / "tokenizer.json").write_text(
        train_byte_pair([b"the turn of the user is the turn of the user " * 50], 270).json
    )
    saved(folder / "other", Dense().build(32, 270, 256), 1, folder / "files")
    return folder


def generated(capsys: pytest.CaptureFixture[str], checkpoints: Path, *more: object) -> Any:
    arguments = ["generate", checkpoints / "large", "an example of an example", "--json", "--max-tokens", 40, *more]
    assert main([*map(str, arguments)]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_text_is_the_models_own(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = generated(capsys, checkpoints, "--temperature", 0)
    assert wanted["drafts"] is None
    for draft in (checkpoints / "small", "ngram", "early-exit:1"):
        found = generated(capsys, checkpoints, "--temperature", 0, "--draft", draft, "--drafts", 3)
        assert found["outputs"][0]["tokens"] == wanted["outputs"][0]["tokens"]
        gain = found["drafts"]
        assert 0 < gain["judged"] <= gain["drafted"] and gain["accepted"] <= gain["judged"]
        assert gain["acceptance"] == gain["accepted"] / gain["judged"]
        assert gain["predicted_speed_up"] > 0 and gain["measured_speed_up"] > 0


def test_the_exit_that_was_trained_is_the_default(
    checkpoints: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, own = [], draft_exit.early_exit
    monkeypatch.setattr(draft_exit, "early_exit", lambda engine, n: (asked.append(n), own(engine, n))[1])
    said = []
    for draft in ("early-exit", "early-exit:2"):
        arguments = ["generate", checkpoints / "early", "an example", "--json", "--max-tokens", 9, "--draft", draft]
        assert main([*map(str, arguments), "--temperature", "0"]) == 0
        said.append(json.loads(capsys.readouterr().out)["outputs"])
    assert asked == [3, 2] and said[0] == said[1]


def test_a_seed_says_the_same_again(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = [generated(capsys, checkpoints, "--seed", 3, "--draft", checkpoints / "small") for _ in range(2)]
    assert said[0]["outputs"][0]["tokens"] == said[1]["outputs"][0]["tokens"]


def test_a_line_tells_what_was_gained(checkpoints: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(checkpoints / "large"), "abcabc", "--draft", "ngram", "--temperature", "0"]) == 0
    said = capsys.readouterr().err
    assert "isoflop generate: drafts: " in said


@pytest.mark.parametrize(
    ("draft", "message"),
    [
        ("early-exit:9", "early exit after 9 of "),
        ("nowhere", "--draft nowhere: no such checkpoint; valid: a CKPT, ngram, early-exit, early-exit:LAYERS"),
        (
            "early-exit",
            "--draft early-exit: the model was trained with none; valid: early-exit:1 to early-exit:7",
        ),
        ("early-exit:", "--draft early-exit:: no such checkpoint; valid: a CKPT, ngram, early-exit, early-exit:LAYERS"),
        ("other", "its tokenizer (270 tokens) is not that of"),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "serve"])
def test_wrong_questions(
    verb: str, draft: str, message: str, checkpoints: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = str(checkpoints / draft) if draft == "other" else draft
    assert main([verb, str(checkpoints / "large"), *(["x"] if verb == "generate" else []), "--draft", named]) == 2
    assert message in capsys.readouterr().err
