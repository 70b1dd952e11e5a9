"""The text side of a checkpoint: text to tokens, the bytes of each token, and the tokens that end a text.

Nothing here is executed or fetched. Byte-level vocabularies (Radford et al. 2019: ours, and most published ones) and
those of SentencePiece (spaces as U+2581, bytes as <0xNN>) are read from tokenizer.json; a model of bytes needs no file.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from isoflop.data.spec import N_BYTES
from isoflop.data.tokenizer import ByteTokenizer, byte_alphabet
from isoflop.data.tokenizer_file import open_tokenizer, told
from isoflop.weights.folder import inside
from isoflop.weights.special_tokens import special_tokens

TOKENIZER = "tokenizer.json"
SPACE = "\u2581"
_BYTE = re.compile("<0x[0-9A-Fa-f]{2}>")


class Inner(Protocol):
    """What encodes."""

    def encode(self, text: str, whole: bool) -> list[int]: ...


class Vocabulary:
    """`pieces[token]` is the bytes of a token, none for one that marks something; `special` are the names of those.
    `end_tokens` end a text. `strips_space`: the first piece of a text begins with a space that is not in the text."""

    def __init__(
        self,
        inner: Inner,
        pieces: list[bytes],
        special: dict[str, int],
        end_tokens: tuple[int, ...],
        begin_token: int | None,
        strips_space: bool = False,
    ) -> None:
        self._inner = inner
        self.pieces, self.special, self.strips_space = pieces, special, strips_space
        self.end_tokens, self.begin_token = end_tokens, begin_token
        self.names = {token: name for name, token in special.items()}

    def encode(self, text: str, whole: bool = False) -> list[int]:
        """The tokens of a text. `whole`: it begins with what the tokenizer puts before a text, such as a begin token.
        Raises ValueError where it cannot be text, or has a token that the model lacks."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"text holds half a character (a lone surrogate) at character {error.start}") from None
        tokens = self._inner.encode(text, whole)
        if tokens and max(tokens) >= len(self.pieces):
            raise ValueError(
                f"the text needs token {max(tokens)}, and the model has {len(self.pieces)}: "
                "the tokenizer is not this model's"
            )
        return tokens

    def decode(self, tokens: Sequence[int]) -> str:
        """The text of tokens; bytes that are no UTF-8 become U+FFFD. Raises ValueError where a token is unknown."""
        wrong = next((token for token in tokens if not 0 <= token < len(self.pieces)), None)
        if wrong is not None:
            raise ValueError(f"token {wrong} is not among the model's 0 to {len(self.pieces) - 1}")
        return b"".join([self.pieces[token] for token in tokens]).decode(errors="replace")


def open_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """The vocabulary that lies beside a model's weights. Raises ValueError naming the file where there is none, it is
    damaged, or of a kind that is not read."""
    marks = special_tokens(folder)
    if not (folder / TOKENIZER).exists():
        if vocab_size != N_BYTES:
            raise ValueError(f"{folder}: has no {TOKENIZER}, and its {vocab_size} tokens are not bytes")
        return _bytes(marks)
    return _from_file(inside(folder, TOKENIZER), vocab_size, marks)


class _Bytes:
    def encode(self, text: str, whole: bool) -> list[int]:
        tokens: list[int] = ByteTokenizer().encode(text.encode()).tolist()
        return tokens


def _bytes(marks: dict[str, list[int]]) -> Vocabulary:
    pieces = [b"", *(bytes([byte]) for byte in range(1, N_BYTES))]
    return Vocabulary(_Bytes(), pieces, {}, tuple(marks.get("eos_token_id", [0])), _first(marks, "bos_token_id"))


class _File:
    """The tokenizers library's reading of the file."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def encode(self, text: str, whole: bool) -> list[int]:
        try:
            tokens: list[int] = self._tokenizer.encode(text, add_special_tokens=whole).ids
        except BaseException as error:
            raise told(error, "the tokenizer failed at this text") from None
        return tokens


def _from_file(file: Path, vocab_size: int, marks: dict[str, list[int]]) -> Vocabulary:
    _, described, tokenizer = open_tokenizer(file)
    to_bytes, strips = _reader(described.get("decoder"), file)
    added = tokenizer.get_added_tokens_decoder()
    marking = {token: added[token].content for token in added if added[token].special}
    pieces = [b""] * vocab_size
    for word, token in tokenizer.get_vocab().items():
        if token < vocab_size and token not in marking:
            pieces[token] = word.encode() if token in added else to_bytes(word)
    special = {name: token for token, name in marking.items()}
    ends = tuple(token for token in marks.get("eos_token_id", []) if token < vocab_size)
    return Vocabulary(_File(tokenizer), pieces, special, ends, _first(marks, "bos_token_id"), strips)


def _reader(decoder: Any, file: Path) -> tuple[Any, bool]:
    """What a word of the vocabulary stands for, and whether a text's first space is dropped."""
    parts = decoder.get("decoders", [decoder]) if isinstance(decoder, dict) else []
    kinds = {part.get("type") for part in parts if isinstance(part, dict)}
    if "ByteLevel" in kinds:
        to_byte = {character: byte for byte, character in enumerate(byte_alphabet())}
        return lambda word: bytes(to_byte[c] for c in word) if all(c in to_byte for c in word) else word.encode(), False
    if kinds & {"Metaspace", "ByteFallback", "Replace"}:
        return _sentence_piece, bool(kinds & {"Metaspace", "Strip"})
    said = ", ".join(sorted(map(str, kinds))) or "none"
    raise ValueError(f"{file}: decoder {said}: only byte-level and SentencePiece vocabularies are read")


def _sentence_piece(word: str) -> bytes:
    if _BYTE.fullmatch(word):
        return bytes.fromhex(word[3:5])
    return word.replace(SPACE, " ").encode()


def _first(marks: dict[str, list[int]], key: str) -> int | None:
    return marks[key][0] if marks.get(key) else None
