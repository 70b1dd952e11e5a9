"""Corpus -> shards of tokens. Whatever kills it, what it leaves is either whole and believed or ignored and redone."""

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np

from isoflop.data.corpus import Census, Corpus, find_corpus, is_validation
from isoflop.data.dataset import (
    MANIFEST,
    TEXT,
    TOKENIZER,
    TRAIN,
    VALID,
    VALID_TEXT,
    Dataset,
    Manifest,
    intact,
    open_dataset,
    read_manifest,
)
from isoflop.data.shards import Shard, ShardWriter, exclusive, naming, sha256_of, sync_folder, write_synced
from isoflop.data.spec import N_BYTES, BytePair, Bytes, Data, File
from isoflop.data.tokenizer import BytePairTokenizer, ByteTokenizer, Tokenizer, Tokens, token_dtype, train_byte_pair
from isoflop.data.tokenizer_file import FileTokenizer

BATCH_BYTES = 2**20  # of text, tokenized at once
SPLIT_TOLERANCE = 0.1  # a split with less than this share of the bytes it should hold is refused

# Stage ("tokenizer" or "tokens"), then bytes of the corpus's files read so far and in all.
Progress = Callable[[str, int, int], None]


class Sorted(NamedTuple):
    """A document of the corpus, seen for the first time, and its split."""

    text: bytes
    held_out: bool
    position: int


def prepare(spec: Data, folder: Path, progress: Progress | None = None) -> Dataset:
    """The dataset that `spec` describes, in `folder`: found there whole, or made.

    A corpus that changes later is not noticed: the shards are what a study is about. Raises ValueError where the corpus
    cannot be used, OSError (with the path) where it cannot be read or the shards cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        if not is_prepared(spec, folder):
            _build(spec, folder, progress or _silent)
        return open_dataset(folder)


def _silent(stage: str, position: int, n_bytes: int) -> None:
    pass


def is_prepared(spec: Data, folder: Path) -> bool:
    """Whether the dataset lies whole in a folder. A tokenizer's file counts by what is in it. Raises ValueError where
    it is not there."""
    kind = spec.tokenizer
    digest = _digest_of(kind) if isinstance(kind, File) else None
    try:
        manifest = read_manifest(folder)
    except ValueError:
        return False
    same = manifest.spec == _recorded(spec) and digest in (None, manifest.tokenizer_sha256)
    return same and intact(folder, manifest)


def planned_vocab_size(spec: Data) -> int:
    """How many kinds of tokens there will be. Raises ValueError where a tokenizer's file is not one."""
    match spec.tokenizer:
        case Bytes():
            return N_BYTES
        case BytePair(vocab_size=vocab_size):
            return vocab_size
        case File(path=path, end=end):
            return FileTokenizer(Path(path), end).vocab_size


def _digest_of(kind: File) -> str:
    path = Path(kind.path)
    if not path.is_file():
        raise ValueError(f"data.tokenizer.path: {path}: there is no such tokenizer.json")
    return sha256_of(path)


def _recorded(spec: Data) -> Data:
    """What the manifest says of it: the tokenizer's file is the copy beside it."""
    if not isinstance(spec.tokenizer, File):
        return spec
    return msgspec.structs.replace(spec, tokenizer=msgspec.structs.replace(spec.tokenizer, path=TOKENIZER))


def _build(spec: Data, folder: Path, progress: Progress) -> None:
    names = [TRAIN, VALID]
    try:
        corpus = find_corpus(spec)
        tokenizer = _tokenizer(spec, corpus, progress)
        json = _content(tokenizer)
        if json is not None:
            write_synced(_partial(folder, TOKENIZER), json)
            names.append(TOKENIZER)
        train, valid, census = _write_shards(spec, corpus, tokenizer, folder, progress)
        _check_split(spec, train, valid)
        of_file = isinstance(tokenizer, FileTokenizer)
        names += [VALID_TEXT] if of_file else []
        manifest = Manifest(
            spec=_recorded(spec),
            source=corpus.description,
            dtype=token_dtype(tokenizer.vocab_size).str,
            vocab_size=tokenizer.vocab_size,
            train=train,
            valid=valid,
            duplicates=census.duplicates,
            skipped=list(corpus.skipped),
            corpus_digest=census.digest(),
            tokenizer_sha256=None if json is None else hashlib.sha256(json).hexdigest(),
            valid_text_sha256=sha256_of(_partial(folder, VALID_TEXT)) if of_file else None,
        )
        _commit(folder, names, manifest)
    finally:
        for name in (*names, TOKENIZER, VALID_TEXT, MANIFEST):
            with contextlib.suppress(OSError):  # a failure to tidy must not hide why we are leaving
                _partial(folder, name).unlink(missing_ok=True)


def _partial(folder: Path, name: str) -> Path:
    return folder / f".{name}.partial"


def _tokenizer(spec: Data, corpus: Corpus, progress: Progress) -> Tokenizer | FileTokenizer:
    match spec.tokenizer:
        case Bytes():
            return ByteTokenizer()
        case BytePair(vocab_size=vocab_size, sample_bytes=sample_bytes):
            return train_byte_pair(_sample(spec, corpus, sample_bytes, progress), vocab_size)
        case File(path=path, end=end):
            return FileTokenizer(Path(path), end)


def _content(tokenizer: Tokenizer | FileTokenizer) -> bytes | None:
    """The bytes of its tokenizer.json; None where tokens are bytes."""
    if isinstance(tokenizer, FileTokenizer):
        return tokenizer.content
    return tokenizer.json.encode() if isinstance(tokenizer, BytePairTokenizer) else None


def _sample(spec: Data, corpus: Corpus, sample_bytes: int, progress: Progress) -> Iterator[bytes]:
    """The first documents of the training split, until they make up `sample_bytes`."""
    left = sample_bytes
    for document in _documents(spec, corpus, Census()):
        if document.held_out:
            continue
        progress("tokenizer", document.position, corpus.n_bytes)
        yield document.text
        left -= len(document.text)
        if left <= 0:
            return


def _documents(spec: Data, corpus: Corpus, census: Census) -> Iterator[Sorted]:
    for document in corpus.documents():
        digest = census.admit(document.text)
        if digest is not None:
            yield Sorted(document.text, is_validation(digest, spec.valid_fraction), document.position)


def _write_shards(
    spec: Data, corpus: Corpus, tokenizer: Tokenizer | FileTokenizer, folder: Path, progress: Progress
) -> tuple[Shard, Shard, Census]:
    census = Census()
    dtype, separator = token_dtype(tokenizer.vocab_size), tokenizer.separator
    with (
        ShardWriter(_partial(folder, TRAIN), dtype, separator) as train,
        ShardWriter(_partial(folder, VALID), dtype, separator) as valid,
        _text_writer(tokenizer, folder) as write_text,
    ):
        for batch in _batches(_documents(spec, corpus, census)):
            texts = [document.text for document in batch if not document.held_out]
            train.append(tokenizer.encode_batch(texts), sum(map(len, texts)))
            texts = [document.text for document in batch if document.held_out]
            valid.append(write_text(texts), sum(map(len, texts)))
            progress("tokens", batch[-1].position, corpus.n_bytes)
        progress("tokens", corpus.n_bytes, corpus.n_bytes)
        return train.finish(), valid.finish(), census


@contextlib.contextmanager
def _text_writer(tokenizer: Tokenizer | FileTokenizer, folder: Path) -> Iterator[Callable[[list[bytes]], list[Tokens]]]:
    """Encodes held-out documents, and writes down what text each token stands for where the tokens alone do not say."""
    if not isinstance(tokenizer, FileTokenizer):
        yield tokenizer.encode_batch
        return
    path = _partial(folder, VALID_TEXT)
    with naming(path), path.open("wb") as file:

        def encode(texts: list[bytes]) -> list[Tokens]:
            measured = tokenizer.measured_batch(texts)
            for document in measured:
                text = np.zeros(len(document.n_bytes), TEXT)
                text["bytes"], text["end"][-1] = document.n_bytes, 1
                file.write(text.tobytes())
            return [document.tokens for document in measured]

        yield encode
        file.flush()
        os.fsync(file.fileno())


def _batches(documents: Iterator[Sorted]) -> Iterator[list[Sorted]]:
    batch: list[Sorted] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _check_split(spec: Data, train: Shard, valid: Shard) -> None:
    """Whole documents are held out, so where they are few a split may be far from what was asked."""
    total = train.bytes + valid.bytes
    for name, shard, share in (
        ("training", train, 1 - spec.valid_fraction),
        ("validation", valid, spec.valid_fraction),
    ):
        needed = max(1, round(share * total * SPLIT_TOLERANCE))
        if shard.bytes < needed:
            raise ValueError(
                f"{spec.source}: to hold out {spec.valid_fraction} of it ({train.documents + valid.documents} distinct "
                f"documents, {total} bytes) leaves {shard.bytes} bytes for {name}, at least {needed} are needed: give "
                f"more documents (a text is cut into one every {spec.document_bytes} bytes), or, in a study, another "
                "data.valid_fraction"
            )


def _commit(folder: Path, names: list[str], manifest: Manifest) -> None:
    """Put the new files in place. While they are exchanged there is no `dataset.json`, so no mixture is believed."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    write_synced(_partial(folder, MANIFEST), content)
    (folder / MANIFEST).unlink(missing_ok=True)
    sync_folder(folder)
    for name in names:
        _rename(folder, name)
    sync_folder(folder)
    _rename(folder, MANIFEST)
    sync_folder(folder)


def _rename(folder: Path, name: str) -> None:
    with naming(folder / name):
        _partial(folder, name).replace(folder / name)
