"""Tokenizers of other models: a tokenizer.json as the tokenizers library reads it, tamed, with nothing else executed.

A document is what the tokenizer makes of it, begin token and all, then the token that ends it. Special tokens that a
text spells are text. Some tokenizers normalize, and some lump together what they do not know, so bytes are not counted
by the token but by the place: from where the text of the token before ended to where its own does.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from isoflop.data.plain_json import MOST_TOLD, bounded, parsed
from isoflop.data.spec import LARGEST_VOCAB
from isoflop.data.tame import require_tame
from isoflop.data.tokenizer import Tokens, decoded, token_dtype

MOST_NAMED = 8  # special tokens that a message lists


class TokenizerFile(NamedTuple):
    """A tokenizer.json: its bytes, what they say, and the library's reading of them."""

    content: bytes
    described: dict[str, Any]
    inner: Any


class Measured(NamedTuple):
    """A document's tokens [n], and bytes [n + 1] of its text that each stands for; the last is of its end."""

    tokens: Tokens
    n_bytes: NDArray[np.uint32]


class FileTokenizer:
    """The tokenizer in `file`. `end`: the token that ends a document, by its text or its number; None: the one special
    token that there is. `n_needed`: the numbers that a document can need are below it; other marks may lie beyond."""

    def __init__(self, file: Path, end: str | int | None = None) -> None:
        self.content, _, self._inner = open_tokenizer(file)
        self._file = file
        self._inner.encode_special_tokens = True  # a document that spells a mark does not have it
        words: dict[str, int] = self._inner.get_vocab()
        self.vocab_size = max(words.values(), default=-1) + 1
        if not 0 < self.vocab_size <= LARGEST_VOCAB:
            raise ValueError(f"{file}: has tokens up to number {self.vocab_size - 1}; at most {LARGEST_VOCAB} are read")
        self._dtype = token_dtype(self.vocab_size)
        marks = {token: added.content for token, added in self._inner.get_added_tokens_decoder().items()}
        special = [token for token, added in self._inner.get_added_tokens_decoder().items() if added.special]
        self.separator = _end(file, end, words, {token: marks[token] for token in special})
        around = self._run(self._inner.encode_batch, [b""])[0].ids
        self.begin: int = around[0] if around else self.separator
        sample = self._run(self._inner.encode_batch, [b"a"])[0]
        self._ends_itself = sample.ids[-1:] == [self.separator] and sample.special_tokens_mask[-1] == 1
        self.n_needed = max(n_needed(self._inner, file), self.separator + 1)

    def encode_batch(self, texts: Sequence[bytes]) -> list[Tokens]:
        """The tokens of each document, without the one that ends it. Raises ValueError where the library fails."""
        return [self._tokens(encoding) for encoding in self._run(self._inner.encode_batch_fast, texts)]

    def measured_batch(self, texts: Sequence[bytes]) -> list[Measured]:
        """The same, with the bytes of text at each place, which add up to the document's. Raises ValueError."""
        encodings = self._run(self._inner.encode_batch, texts)
        return [self._measured(text, encoding) for text, encoding in zip(texts, encodings, strict=True)]

    def _measured(self, text: bytes, encoding: Any) -> Measured:
        tokens = self._tokens(encoding)
        ends = np.array([after for _, after in encoding.offsets], np.int64)
        ends[np.array(encoding.special_tokens_mask, bool)] = 0  # of no place, whatever the library says
        starts_of_characters = np.flatnonzero((np.frombuffer(text, np.uint8) & 0xC0) != 0x80)
        read = np.append(starts_of_characters, len(text))[np.maximum.accumulate(ends[: len(tokens)])]
        return Measured(tokens, np.diff(read, prepend=0, append=len(text)).astype(np.uint32))

    def _tokens(self, encoding: Any) -> Tokens:
        ids = encoding.ids
        own = ids[:-1] if self._ends_itself and ids[-1:] == [self.separator] else ids
        return np.array(own, self._dtype)

    def _run(self, encode: Callable[[list[str]], list[Any]], texts: Sequence[bytes]) -> list[Any]:
        strings = [decoded(text) for text in texts]
        try:
            return encode(strings)
        except BaseException as error:
            raise told(error, f"{self._file}: the tokenizer failed at a text") from None


def open_tokenizer(file: Path) -> TokenizerFile:
    """Read a tokenizer.json. Raises ValueError naming the file where it is damaged, hostile, or too large."""
    if not file.is_file():
        raise ValueError(f"{file}: there is no such tokenizer.json")
    if find_spec("tokenizers") is None:
        raise ValueError(f"{file}: needs the tokenizers library, which is not installed: pip install 'isoflop[train]'")
    import tokenizers

    content = bounded(file)
    described = parsed(content, file)
    require_tame(described, file)
    try:
        inner = tokenizers.Tokenizer.from_buffer(content)
    except BaseException as error:
        raise told(error, f"{file}: is not a tokenizer") from None
    inner.no_padding()  # a text is what it is, and not filled up to a trillion tokens
    inner.no_truncation()
    return TokenizerFile(content, described, inner)


def n_needed(inner: Any, file: Path) -> int:
    """All numbers that a text can need are below it: those of words, and of what is put around a text. Marks that are
    not put there may lie beyond; a text that spells one is text. Raises ValueError
    where the library fails."""
    added = inner.get_added_tokens_decoder()
    words = inner.get_vocab(with_added_tokens=False).values()
    marks = (token for token, mark in added.items() if not mark.special)
    try:
        around = inner.encode("").ids
    except BaseException as error:
        raise told(error, f"{file}: the tokenizer failed at a text") from None
    return max((*words, *marks, *around), default=-1) + 1


def told(error: BaseException, what: str) -> BaseException:
    """The library raises Exception itself, ValueError, and panics of its own that are neither; the rest passes."""
    if type(error) not in (Exception, ValueError) and type(error).__name__ != "PanicException":
        return error
    return ValueError(f"{what}: {str(error)[:MOST_TOLD]}")


def _end(file: Path, end: str | int | None, words: dict[str, int], special: dict[int, str]) -> int:
    """The number of the token that ends a document."""
    if isinstance(end, int):
        if end not in words.values():
            raise ValueError(f"{file}: has no token {end}, which is to end a document")
        return end
    if end is not None:
        if end not in words:
            raise ValueError(f"{file}: has no token {end!r}, which is to end a document (tokenizer.end)")
        return words[end]
    if len(special) != 1:
        listed = ", ".join(map(repr, list(special.values())[:MOST_NAMED])) or "none"
        raise ValueError(
            f"{file}: which token ends a document? Its special tokens are {listed}: give one's text or number "
            "as tokenizer.end"
        )
    return next(iter(special))
