"""Tokenizers from strangers: what would make too much of a text, or make the library die, is refused in one line."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from isoflop.cli.main import main
from isoflop.data.tokenizer import train_byte_pair
from isoflop.engine.vocabulary import open_vocabulary

ORDINARY = json.loads(train_byte_pair([b"hello hello world"], 260).json)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
PADDED = {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "x"}
A, B = ({"Sequence": {"id": id, "type_id": 0}} for id in "AB")
MARK = {"SpecialToken": {"id": "<s>", "type_id": 0}}


def replace(pattern: str, content: str, kind: str = "String") -> dict[str, Any]:
    return {"type": "Replace", "pattern": {kind: pattern}, "content": content}


def normalizers(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"normalizer": {"type": "Sequence", "normalizers": list(parts)}}


def split(regex: str) -> dict[str, Any]:
    part = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [part, BYTES]}}


def character_map(data: bytes) -> dict[str, Any]:
    return {"normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}}


def mark(content: str) -> dict[str, Any]:
    rest = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    return {"added_tokens": [{"id": 0, "content": content} | rest]}


REFUSED: list[tuple[dict[str, Any], str]] = [
    (normalizers(*[replace("a", "aa")] * 40), "makes up to 1.1e+12 characters of one"),
    (normalizers(*[replace("", "a")] * 40), "makes up to 1.1e+12 characters of one"),
    (normalizers(*[replace("a*", "aa", "Regex")] * 40), "characters of one"),
    (normalizers(*[{"type": "NFC"}] * 1000), "normalizer has more than 64 parts"),
    ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**6}}, "text of more than 16384 characters"),
    ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**4}}, "characters of one"),
    (character_map(b"\0\0\0"), "precompiled_charsmap is damaged"),
    (character_map(b"\xff\xff\xff\xff" + bytes(9)), "precompiled_charsmap is damaged"),
    (split("(" * 5000 + "a" + ")" * 5000), "parse depth limit over"),
    (split("a" * 20000), "pre_tokenizer has a text of more than"),
    ({"post_processor": {"type": "TemplateProcessing", "single": [MARK] * 100, "pair": [A, B]}}, "more than 64 parts"),
    ({"post_processor": {"type": "TemplateProcessing", "single": [MARK, A], "pair": [A, B]}}, "does not describe"),
    ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "pieces of no length"),
    ({"model": {"type": "Unigram", "unk_id": 10**9, "vocab": [["a", -1.0]]}}, "is not a tokenizer"),
    ({"model": ORDINARY["model"] | {"continuing_subword_prefix": "x" * 10**5}}, "prefix or a name of more than"),
    (mark("x" * 10**4), "an added token has more than"),
    (mark("\ud800"), "is not valid JSON"),
    ({"model": "evil"}, "is not a tokenizer"),
]


def folder_with(folder: Path, change: dict[str, Any]) -> Path:
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(json.dumps(ORDINARY | change))
    return folder


@pytest.mark.parametrize(("change", "message"), REFUSED)
def test_refused_before_it_runs(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as found:
        open_vocabulary(folder_with(tmp_path, change), 270)
    assert message in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    "change",
    [
        split("(a+)+$"),
        {"model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "z"}},
    ],
)
def test_a_text_at_which_the_library_fails(tmp_path: Path, change: dict[str, Any]) -> None:
    """The search of the first would take longer than anybody has, and ends at the library's own limit."""
    vocabulary = open_vocabulary(folder_with(tmp_path, change), 270)
    with pytest.raises(ValueError, match="the tokenizer failed at this text"):
        vocabulary.encode("a" * 60 + "b")


@pytest.mark.parametrize("strategy", [{"Fixed": 10**12}, "BatchLongest"])
def test_nothing_is_filled_up_or_cut(tmp_path: Path, strategy: Any) -> None:
    padding = PADDED | {"strategy": strategy, "pad_to_multiple_of": 10**12}
    truncation = {"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    vocabulary = open_vocabulary(folder_with(tmp_path, {"padding": padding, "truncation": truncation}), 270)
    assert vocabulary.decode(vocabulary.encode("hello world")) == "hello world"


def test_ordinary_ones_stay(tmp_path: Path) -> None:
    """Normalizers of published tokenizers: Llama 2, T5, CLIP, DeBERTa."""
    parts = [{"type": "Prepend", "prepend": "\u2581"}, replace(" ", "\u2581"), replace("``", '"'), {"type": "NFKC"}]
    parts += [replace(" {2,}", " ", "Regex"), replace("\\s+", " ", "Regex"), {"type": "Lowercase"}]
    assert open_vocabulary(folder_with(tmp_path, normalizers(*parts)), 270).encode("Hello  World")


def test_the_verb_says_it_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = folder_with(tmp_path, {})
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    assert main(["generate", str(folder), "a"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.startswith("isoflop generate: ")
