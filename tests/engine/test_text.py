"""Text from tokens: whole characters, stop strings over borders, tokenizers of both kinds."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers

from isoflop.data.tokenizer import train_byte_pair
from isoflop.engine.text import Detokenizer, Stops, TextStream
from isoflop.engine.vocabulary import Vocabulary, open_vocabulary

TEXT = "Zażółć gęślą jaźń: 你好, wörld! 🙂🙂 def f(x):\n    return x\n" * 20


def folder_with(tmp_path: Path, tokenizer: str | None, **special: Any) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(special))
    if tokenizer is not None:
        (tmp_path / "tokenizer.json").write_text(tokenizer)
    return tmp_path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    """Byte pairs of our own, of which the model has some to spare."""
    json = train_byte_pair([TEXT.encode()], 300).json
    return open_vocabulary(folder_with(tmp_path_factory.mktemp("pairs"), json, eos_token_id=0), 320)


@pytest.fixture(scope="module")
def bytes_(tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    return open_vocabulary(folder_with(tmp_path_factory.mktemp("bytes"), None, eos_token_id=[0, 3]), 256)


def sentence_piece() -> tokenizers.Tokenizer:
    """As Llama 2's: spaces as U+2581, one before the text, unknown characters as bytes."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    words += ["\u2581", "a", "b", "\u2581a", "ab", "\u2581ab"]
    merges = [("\u2581", "a"), ("a", "b"), ("\u2581a", "b")]
    inner = tokenizers.Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, merges, unk_token="<unk>", byte_fallback=True)
    )
    inner.add_special_tokens(["<unk>", "<s>", "</s>"])
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return inner


@given(st.text().filter(lambda text: "\0" not in text))
def test_text_comes_back(pairs: Vocabulary, bytes_: Vocabulary, text: str) -> None:
    for vocabulary in (pairs, bytes_):
        tokens = vocabulary.encode(text)
        assert vocabulary.decode(tokens) == text
        stream = Detokenizer(vocabulary)
        assert "".join([stream.feed(token) for token in tokens]) + stream.finish() == text


@given(st.lists(st.integers(0, 299)))
def test_any_tokens_become_text_once(pairs: Vocabulary, tokens: list[int]) -> None:
    stream, text = Detokenizer(pairs), ""
    for token in tokens:
        before, text = text, text + stream.feed(token)
        assert text.startswith(before)
        text.encode()
    assert text + stream.finish() == pairs.decode(tokens)


def test_half_a_character_waits(bytes_: Vocabulary) -> None:
    stream = Detokenizer(bytes_)
    assert [stream.feed(byte) for byte in "é🙂".encode()] == ["", "é", "", "", "", "🙂"]
    assert [stream.feed(0xC3), stream.feed(0x41), stream.feed(0xF0), stream.finish()] == ["", "\ufffdA", "", "\ufffd"]


@given(st.text("ab é🙂", min_size=1))
def test_sentence_piece(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    inner = sentence_piece()
    vocabulary = open_vocabulary(folder_with(tmp_path_factory.mktemp("sp"), inner.to_str(), eos_token_id=2), 300)
    tokens = vocabulary.encode(text)
    assert tokens == inner.encode(text).ids
    stream = Detokenizer(vocabulary, start=True)
    got = "".join([stream.feed(token) for token in tokens]) + stream.finish()
    assert got == inner.decode(tokens) == text
    assert vocabulary.special == {"<unk>": 0, "<s>": 1, "</s>": 2} and vocabulary.end_tokens == (2,)


@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_stop_strings(text: str, stops: list[str], data: st.DataObject) -> None:
    """However the text is cut up: that before the stop string which is complete first."""
    include = data.draw(st.booleans())
    stream, given_out, rest = Stops(stops, include), "", text
    while rest:
        n = data.draw(st.integers(1, len(rest)))
        given_out += stream.feed(rest[:n])
        rest = rest[n:]
    given_out += stream.finish()
    ends = [(text.find(stop) + len(stop), text.find(stop), stop) for stop in stops if stop in text]
    if not ends:
        assert given_out == text and stream.found is None
        return
    end, at, stop = min(ends)
    assert stream.found == stop and given_out == text[: end if include else at]


def test_nothing_is_said_that_a_stop_takes_back() -> None:
    stream = Stops(["</end>"])
    assert stream.feed("yes <") == "yes "
    assert stream.feed("/e") == ""
    assert stream.feed("ls") == "</els"
    assert stream.feed("e</end>more") == "e"
    assert stream.feed("and more") == "" and stream.found == "</end>"


def test_a_stream_of_tokens(bytes_: Vocabulary) -> None:
    stream = TextStream(bytes_, ["é!"])
    said = [stream.feed(byte) for byte in "né?é!x".encode()]
    assert "".join(said) == "né?" and stream.stopped and stream.stop == "é!"
    assert stream.finish() == ""


def test_marks_have_no_text(pairs: Vocabulary) -> None:
    assert pairs.decode([0, *pairs.encode("a"), 0, 310]) == "a"
    assert pairs.encode("<|end-of-document|>")[0] == 0


def test_refusals(tmp_path: Path, bytes_: Vocabulary) -> None:
    with pytest.raises(ValueError, match=r"has no tokenizer.json, and its 300 tokens are not bytes"):
        open_vocabulary(folder_with(tmp_path, None), 300)
    with pytest.raises(ValueError, match="is not a tokenizer"):
        open_vocabulary(folder_with(tmp_path, '{"version": "1.0"}'), 300)
    piece = json.loads(sentence_piece().to_str())
    piece["decoder"] = {"type": "WordPiece", "prefix": "##", "cleanup": True}
    with pytest.raises(ValueError, match="decoder WordPiece: only byte-level and SentencePiece"):
        open_vocabulary(folder_with(tmp_path, json.dumps(piece)), 300)
    with pytest.raises(ValueError, match="half a character"):
        bytes_.encode("a\ud800")
    with pytest.raises(ValueError, match="token 256 is not among the model's 0 to 255"):
        bytes_.decode([256])
    for stop, said in (("", "is empty"), ("a" * 1025, "has 1025 characters")):
        with pytest.raises(ValueError, match=f"stop: a string {said}; it must have 1 to 1024"):
            Stops([stop])


def test_a_tokenizer_of_another_model(tmp_path: Path) -> None:
    vocabulary = open_vocabulary(folder_with(tmp_path, train_byte_pair([TEXT.encode()], 300).json), 280)
    with pytest.raises(ValueError, match="the tokenizer is not this model's"):
        vocabulary.encode(TEXT)
