"""Where documents come from: Python's standard library, a folder, a file. Found once, streamed in order."""

import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from isoflop.data.readers import kind, read_documents, suffixes
from isoflop.data.spec import Data

STDLIB = "stdlib"
# Test suites are optional in distributions, as are packages installed beside the library.
NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"})
# Written when Python was built, with the builder's paths inside.
BUILT_PREFIXES = ("_sysconfigdata", "config-")

DIGEST_BYTES = 16  # kept of each document's SHA-256 to find duplicates; a collision needs some 2**64 documents


class Document(NamedTuple):
    """A document as UTF-8, and how many bytes of the corpus's files were read up to its end."""

    text: bytes
    position: int


@dataclass(frozen=True)
class Corpus:
    """The files of a corpus in their order. `n_bytes` is their size on disk, `skipped` what was passed over and why."""

    description: str
    files: tuple[Path, ...]
    n_bytes: int
    skipped: tuple[str, ...]
    text_key: str
    document_bytes: int

    def documents(self) -> Iterator[Document]:
        """Every document that is not empty. Raises ValueError (file and line) at the first that is not text."""
        before = 0
        for path in self.files:
            with path.open("rb") as raw:
                size = os.fstat(raw.fileno()).st_size
                for text in read_documents(path, raw, self.text_key, self.document_bytes):
                    if text:
                        yield Document(text, before + raw.tell())
            before += size


@dataclass
class Census:
    """Counts documents and drops those seen before; holds 16 bytes a document."""

    documents: int = 0
    duplicates: int = 0
    _seen: set[bytes] = field(default_factory=set)
    _order: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def admit(self, text: bytes) -> bytes | None:
        """The SHA-256 of a document, or None where the same text came before."""
        digest = hashlib.sha256(text).digest()
        if digest[:DIGEST_BYTES] in self._seen:
            self.duplicates += 1
            return None
        self._seen.add(digest[:DIGEST_BYTES])
        self._order.update(digest)
        self.documents += 1
        return digest

    def digest(self) -> str:
        """SHA-256 over the SHA-256 of every document admitted, in order."""
        return self._order.hexdigest()


def is_validation(digest: bytes, valid_fraction: float) -> bool:
    """Whether a document is held out: by its own hash alone, so neither order nor company matters."""
    return int.from_bytes(digest[:8], "big") < valid_fraction * 2**64


def find_corpus(spec: Data) -> Corpus:
    """The corpus that `spec` names. Raises ValueError where there is none, OSError where it cannot be read."""
    if spec.source == STDLIB:
        return _stdlib(Path(sysconfig.get_path("stdlib")), spec)
    path = Path(spec.source)
    if not path.exists():
        raise ValueError(
            f'{spec.source} does not exist; give "stdlib" or the path of a file or folder (--data, or data.source)'
        )
    return _folder(path, spec) if path.is_dir() else _file(path, spec)


def _stdlib(root: Path, spec: Data) -> Corpus:
    description = f"standard library of {platform.python_implementation()} {platform.python_version()}"
    walked = _walk(root, NOT_STDLIB)
    files = [path for path in walked if path.suffix == ".py" and not path.is_symlink()]
    files = [path for path in files if not path.relative_to(root).parts[0].startswith(BUILT_PREFIXES)]
    return _corpus(description, root, files, [], spec)


def _file(path: Path, spec: Data) -> Corpus:
    if not kind(path)[0]:
        raise ValueError(f"{path} is of no known format; known are {suffixes()}")
    return _corpus(str(path), path.parent, [path], [], spec)


def _folder(root: Path, spec: Data) -> Corpus:
    files, skipped = [], []
    for path in _walk(root):
        reason = _reason_to_skip(path, root)
        if reason:
            skipped.append(f"{path.relative_to(root).as_posix()}: {reason}")
        elif kind(path)[0] and path.is_file():
            files.append(path)
    if not files:
        raise ValueError(f"{root} holds no text; looked for {suffixes()}{_and_skipped(skipped)}")
    return _corpus(str(root), root, files, sorted(skipped), spec)


def _and_skipped(skipped: list[str]) -> str:
    return f"; passed over {len(skipped)} symbolic links, among them {min(skipped)}" if skipped else ""


def _reason_to_skip(path: Path, root: Path) -> str | None:
    """A link out of the folder would make the corpus depend on what lies elsewhere."""
    if not path.is_symlink():
        return None
    if not path.exists():
        return "symbolic link to nothing"
    inside = path.resolve().is_relative_to(root.resolve())
    return None if inside else "symbolic link that leaves the folder"


def _walk(root: Path, leave_out: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Every file below `root`, and every link to a folder (itself, not followed), but for hidden names and folders
    whose name is in `leave_out`."""
    for folder, folders, files in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in leave_out]
        here = Path(folder)
        yield from (here / name for name in files if not name.startswith("."))
        yield from (here / name for name in folders if (here / name).is_symlink())


def _raise(error: OSError) -> None:
    raise error


def _corpus(description: str, root: Path, files: list[Path], skipped: list[str], spec: Data) -> Corpus:
    ordered = sorted(files, key=lambda path: path.relative_to(root).as_posix())
    n_bytes = sum(path.stat().st_size for path in ordered)
    return Corpus(description, tuple(ordered), n_bytes, tuple(skipped), spec.text_key, spec.document_bytes)
