"""Tokenizers of other projects: their tokens are the library's own, their bytes the text's, and they go by content."""

import functools
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from foreign_tokenizers import KINDS, TEXT
from isoflop.data.corpus import is_validation
from isoflop.data.dataset import open_dataset
from isoflop.data.prepare import planned_vocab_size, prepare
from isoflop.data.spec import BytePair, Data, File
from isoflop.data.tokenizer import byte_alphabet
from isoflop.data.tokenizer_file import FileTokenizer

SPOKEN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1) | st.lists(
    st.sampled_from(["The quick", " fox", "  ", "\n", "é", "ﬁ", "你好", "</s>", "<s>", "<|endoftext|>", "[END]", "🙂"])
).map("".join)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("tokenizers")
    for name, (make, _) in KINDS.items():
        make().save(str(home / f"{name}.json"))
    return {name: home / f"{name}.json" for name in KINDS}


@functools.cache
def opened(file: Path, end: str) -> FileTokenizer:
    return FileTokenizer(file, end)


@functools.cache
def library(file: Path) -> Tokenizer:
    inner = Tokenizer.from_file(str(file))
    inner.encode_special_tokens = True
    return inner


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=100)
@given(text=SPOKEN)
def test_tokens_are_the_librarys_and_bytes_the_texts(files: dict[str, Path], name: str, text: str) -> None:
    end = KINDS[name][1]
    tokenizer, theirs = opened(files[name], end), library(files[name])
    found = tokenizer.measured_batch([text.encode()])[0]
    assert found.n_bytes.sum() == len(text.encode())
    assert len(found.n_bytes) == len(found.tokens) + 1
    assert np.array_equal(tokenizer.encode_batch([text.encode()])[0], found.tokens)
    ids = theirs.encode(text).ids
    assert found.tokens.tolist() == (ids[:-1] if name == "unigram" else ids)
    assert tokenizer.separator == theirs.token_to_id(end)


@given(text=SPOKEN)
def test_bytes_are_those_of_the_pieces_where_each_piece_has_some(files: dict[str, Path], text: str) -> None:
    """A byte-level vocabulary says how long each token is: the same, but for bytes of one character, told at once."""
    found = opened(files["byte-level"], KINDS["byte-level"][1]).measured_batch([text.encode()])[0]
    words = {token: word for word, token in library(files["byte-level"]).get_vocab().items()}
    to_byte = {character: byte for byte, character in enumerate(byte_alphabet())}
    pieces = [bytes(to_byte[c] for c in words[token]) for token in found.tokens.tolist()]
    assert b"".join(pieces) == text.encode()
    told, read = np.cumsum(found.n_bytes), np.cumsum([len(piece) for piece in pieces])
    for after, place in zip(told, read, strict=False):
        text.encode()[:after].decode()  # up to a character's end
        assert 0 <= after - place < 4


def test_marks(files: dict[str, Path]) -> None:
    begins = {name: FileTokenizer(files[name], end).begin for name, (_, end) in KINDS.items()}
    assert begins == {"SentencePiece": 1, "byte-level": 0, "unigram": 1, "one mark on both sides": 0, "words": 1}
    assert FileTokenizer(files["byte-level"]).separator == 0  # the only special token
    assert FileTokenizer(files["words"], 1).separator == 1
    both = FileTokenizer(files["one mark on both sides"], "<|endoftext|>")
    assert both.encode_batch([b"a"])[0][0] == both.separator == 0


def changed(file: Path, target: Path, **keys: object) -> Path:
    target.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return target


def test_marks_beyond_the_vocabulary_are_not_needed(files: dict[str, Path], tmp_path: Path) -> None:
    """As a mark for images that a model of text has no number for."""
    added = json.loads(files["byte-level"].read_text())["added_tokens"]
    image = added[0] | {"id": 420, "content": "<image>"}
    found = FileTokenizer(changed(files["byte-level"], tmp_path / "t.json", added_tokens=[*added, image]), 0)
    assert (found.vocab_size, found.n_needed) == (421, 420)
    plain = changed(files["byte-level"], tmp_path / "u.json", added_tokens=[*added, image | {"special": False}])
    assert FileTokenizer(plain, 0).n_needed == 421


REFUSED = [
    ("SentencePiece", None, "which token ends a document? Its special tokens are '<unk>', '<s>', '</s>', '<0x00>'"),
    ("words", "[STOP]", "has no token '[STOP]', which is to end a document"),
    ("words", 80, "has no token 80, which is to end a document"),
]


@pytest.mark.parametrize(("name", "end", "message"), REFUSED)
def test_what_ends_a_document_is_not_guessed(
    files: dict[str, Path], name: str, end: str | int | None, message: str
) -> None:
    with pytest.raises(ValueError) as found:
        FileTokenizer(files[name], end)
    assert message in str(found.value) and "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": {"type": "BPE"}}, "is not a tokenizer"),
        ({"normalizer": {"type": "Prepend", "prepend": "x" * 10**4}}, "characters of one"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "pieces of no length"),
        ({"model": {"type": "WordLevel", "vocab": {"b": 0, "[END]": 1}, "unk_token": "z"}}, "failed at a text"),
    ],
)
def test_damaged_and_hostile_files(files: dict[str, Path], tmp_path: Path, keys: dict, message: str) -> None:
    with pytest.raises(ValueError) as found:
        FileTokenizer(changed(files["words"], tmp_path / "t.json", **keys), "[END]").encode_batch([b"a b"])
    assert message in str(found.value) and str(tmp_path / "t.json") in str(found.value)
    (tmp_path / "t.json").write_bytes(files["words"].read_bytes()[:-9])
    with pytest.raises(ValueError, match="is not valid JSON"):
        FileTokenizer(tmp_path / "t.json", "[END]")
    with pytest.raises(ValueError, match="there is no such tokenizer"):
        FileTokenizer(tmp_path / "nowhere.json", "[END]")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for k, text in enumerate(TEXT):
        (folder / f"{k:03d}.txt").write_text(text + "Ends like </s> or <|endoftext|>. " * (k % 3))
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_what_is_prepared(files: dict[str, Path], source: Path, tmp_path: Path, name: str) -> None:
    end, theirs = KINDS[name][1], library(files[name])
    spec = Data(source=str(source), tokenizer=File(path=str(files[name]), end=end), valid_fraction=0.3)
    dataset = prepare(spec, tmp_path / "data")
    assert dataset.vocab_size == planned_vocab_size(spec) == theirs.get_vocab_size()
    documents = [path.read_bytes() for path in sorted(source.iterdir())]
    held_out = [text for text in documents if is_validation(hashlib.sha256(text).digest(), 0.3)]
    ends = dataset.valid_ends
    assert len(ends) == len(held_out) == dataset.manifest.valid.documents
    assert (dataset.valid[ends] == dataset.tokenizer.separator).all()
    starts = np.concatenate([[0], ends[:-1] + 1])
    for text, first, last in zip(held_out, starts, ends, strict=True):
        assert dataset.valid_bytes[first : last + 1].sum() == len(text)
        ids = theirs.encode(text.decode()).ids
        assert dataset.valid[first:last].tolist() == (ids[:-1] if name == "unigram" else ids)
    assert len(dataset.train) == dataset.manifest.train.tokens


def test_it_goes_by_content(files: dict[str, Path], source: Path, tmp_path: Path) -> None:
    file = tmp_path / "here.json"
    file.write_bytes(files["SentencePiece"].read_bytes())

    def asked(path: Path) -> tuple[str, bool]:
        calls: list[object] = []
        spec = Data(source=str(source), tokenizer=File(path=str(path), end="</s>"), valid_fraction=0.3)
        return prepare(spec, tmp_path / "data", lambda *at: calls.append(at)).digest, bool(calls)

    digest, worked = asked(file)
    assert worked
    moved = file.rename(tmp_path / "there.json")
    assert asked(moved) == (digest, False)
    assert str(tmp_path) not in json.dumps(
        json.loads((tmp_path / "data/dataset.json").read_text())["spec"]["tokenizer"]
    )
    moved.write_bytes(files["unigram"].read_bytes())
    other, worked = asked(moved)
    assert worked and other != digest
    with pytest.raises(ValueError, match=r"data\.tokenizer\.path: .*here\.json: there is no such"):
        asked(file)


@pytest.mark.parametrize("name", ["valid-text.bin", "tokenizer.json"])
def test_damage_is_found_and_mended(files: dict[str, Path], source: Path, tmp_path: Path, name: str) -> None:
    spec = Data(source=str(source), tokenizer=File(path=str(files["byte-level"])), valid_fraction=0.3)
    prepare(spec, tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:-1])
    with pytest.raises(ValueError, match="damaged; prepare it again"):
        assert open_dataset(tmp_path).valid_bytes.sum() >= 0
    (tmp_path / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    prepare(spec, tmp_path)
    assert (tmp_path / name).read_bytes() == whole


def test_our_own_byte_pairs_from_their_file_are_the_same_tokens(source: Path, tmp_path: Path) -> None:
    made = prepare(Data(source=str(source), tokenizer=BytePair(vocab_size=300), valid_fraction=0.3), tmp_path / "a")
    file = File(path=str(tmp_path / "a" / "tokenizer.json"))
    again = prepare(Data(source=str(source), tokenizer=file, valid_fraction=0.3), tmp_path / "b")
    for split in ("train.bin", "valid.bin"):
        assert (tmp_path / "a" / split).read_bytes() == (tmp_path / "b" / split).read_bytes()
    assert np.array_equal(made.valid_ends, again.valid_ends)
    assert again.valid_bytes.sum() == made.valid_bytes.sum() == made.manifest.valid.bytes
