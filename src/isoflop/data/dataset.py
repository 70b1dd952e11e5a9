"""What `prepare` left in a folder: two shards of tokens, memory-mapped, and what they are made of.

Of a tokenizer from a file there is a third: for each token of the validation split the bytes of text that it stands
for, and whether it ends a document. Elsewhere the tokens themselves say both.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from isoflop.data.shards import Shard, sha256_of
from isoflop.data.spec import BytePair, Bytes, Data, File
from isoflop.data.tokenizer import BytePairTokenizer, ByteTokenizer, Tokenizer, token_dtype
from isoflop.data.tokenizer_file import FileTokenizer

MANIFEST = "dataset.json"
TRAIN = "train.bin"
VALID = "valid.bin"
VALID_TEXT = "valid-text.bin"
TOKENIZER = "tokenizer.json"
TEXT = np.dtype([("bytes", "<u4"), ("end", "u1")])  # of VALID_TEXT, without padding


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`dataset.json`. `corpus_digest` is SHA-256 over the SHA-256 of every document in order, duplicates dropped."""

    format: Literal[1] = 1
    spec: Data
    source: str  # where the text came from, in words
    dtype: str
    vocab_size: int
    train: Shard
    valid: Shard
    duplicates: int
    skipped: list[str]  # files passed over, and why
    corpus_digest: str
    tokenizer_sha256: str | None  # None where tokens are bytes
    valid_text_sha256: str | None = None  # None where the tokens themselves say it

    def shards(self) -> tuple[tuple[str, Shard], ...]:
        return ((TRAIN, self.train), (VALID, self.valid))

    def digest(self) -> str:
        """SHA-256 of all that training sees: the tokens of both splits and what they mean."""
        parts = [self.dtype, self.vocab_size, self.train.sha256, self.valid.sha256, self.tokenizer_sha256]
        parts += [] if self.valid_text_sha256 is None else [self.valid_text_sha256]
        return hashlib.sha256(msgspec.json.encode(parts)).hexdigest()


@dataclass(frozen=True, eq=False)
class Dataset:
    """`train` and `valid` [n_tokens] are read-only views of the files; `valid_bytes` [n_tokens] are the bytes of text
    that each token stands for, 0 for a separator, and `valid_ends` [n_documents] the places of the separators."""

    folder: Path
    manifest: Manifest
    train: NDArray[np.unsignedinteger[Any]]
    valid: NDArray[np.unsignedinteger[Any]]
    tokenizer: Tokenizer | FileTokenizer

    @property
    def vocab_size(self) -> int:
        return self.manifest.vocab_size

    @cached_property
    def valid_bytes(self) -> NDArray[np.uint32]:
        if isinstance(self.tokenizer, FileTokenizer):
            return np.ascontiguousarray(_map(self.folder / VALID_TEXT, self.manifest.valid.tokens, TEXT)["bytes"])
        sizes: NDArray[np.uint32] = self.tokenizer.token_bytes[self.valid]
        return sizes

    @cached_property
    def valid_ends(self) -> NDArray[np.int64]:
        if isinstance(self.tokenizer, FileTokenizer):
            return np.flatnonzero(_map(self.folder / VALID_TEXT, self.manifest.valid.tokens, TEXT)["end"])
        return np.flatnonzero(self.valid == self.tokenizer.separator)

    @cached_property
    def digest(self) -> str:
        """The same for the same tokens and tokenizer, wherever they came from."""
        return self.manifest.digest()

    def require(self, *, train_tokens: int = 0, valid_tokens: int = 0) -> None:
        """Raises ValueError where a split holds fewer tokens than a run needs."""
        for name, shard, needed in (
            ("training", self.manifest.train, train_tokens),
            ("validation", self.manifest.valid, valid_tokens),
        ):
            if shard.tokens < needed:
                raise ValueError(
                    f"{self.folder}: the {name} split holds {shard.tokens} tokens ({shard.bytes} bytes of text), "
                    f"{needed} are needed: give more text, or, in a study, change data.valid_fraction"
                )


def open_dataset(folder: Path) -> Dataset:
    """Map a prepared folder. Sizes and the tokenizer are checked; the shards' digests are `intact`'s to check.

    Raises ValueError where there is no dataset or it is damaged.
    """
    manifest = read_manifest(folder)
    dtype = np.dtype(manifest.dtype)
    if dtype != token_dtype(manifest.vocab_size):
        raise ValueError(f"{folder / MANIFEST}: dtype {manifest.dtype} is not that of {manifest.vocab_size} tokens")
    train, valid = (_map(folder / name, shard.tokens, dtype) for name, shard in manifest.shards())
    return Dataset(folder, manifest, train, valid, _open_tokenizer(folder, manifest))


def read_manifest(folder: Path) -> Manifest:
    """`dataset.json` of a folder. Raises ValueError where it is absent or not one."""
    path = folder / MANIFEST
    if not path.is_file():
        raise ValueError(f"{folder}: holds no {MANIFEST}, so no dataset was prepared here; prepare it first")
    try:
        return msgspec.json.decode(path.read_bytes(), type=Manifest)
    except ValueError as wrong:
        raise ValueError(f"{path}: is no dataset of this version ({wrong}); prepare it again") from None


def intact(folder: Path, manifest: Manifest) -> bool:
    """Whether every file has the digest that `manifest` gives it."""
    expected = {name: shard.sha256 for name, shard in manifest.shards()}
    if manifest.tokenizer_sha256 is not None:
        expected[TOKENIZER] = manifest.tokenizer_sha256
    if manifest.valid_text_sha256 is not None:
        expected[VALID_TEXT] = manifest.valid_text_sha256
    return all((folder / name).is_file() and sha256_of(folder / name) == sha for name, sha in expected.items())


def _map(path: Path, n_tokens: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    size = path.stat().st_size if path.is_file() else 0
    if size != n_tokens * dtype.itemsize:
        raise ValueError(
            f"{path}: {size} bytes where {MANIFEST} says {n_tokens * dtype.itemsize}: damaged; prepare it again"
        )
    return np.asarray(np.memmap(path, dtype, mode="r"))  # a plain array indexes faster than a memmap


def _open_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer | FileTokenizer:
    kind = manifest.spec.tokenizer
    if isinstance(kind, Bytes):
        return ByteTokenizer()
    path = folder / TOKENIZER
    if not path.is_file() or sha256_of(path) != manifest.tokenizer_sha256:
        raise ValueError(f"{path}: is not the tokenizer that {MANIFEST} names: damaged; prepare it again")
    match kind:
        case BytePair():
            return BytePairTokenizer(path.read_text(encoding="utf-8"))
        case File():
            return FileTokenizer(path, kind.end)
