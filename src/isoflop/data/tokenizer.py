"""Text to tokens and back, exactly: bytes, or byte-level byte pairs (Sennrich et al. 2016; Radford et al. 2019). Other
models' tokenizers are in tokenizer_file.py.

Token 0 ends a document in both. It stands for no byte of text (`token_bytes` 0), though predicting it costs nats:
bits per byte is then all that a model spends on the documents and their ends, over the bytes of the documents alone,
and means the same for every tokenizer.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from isoflop.data.spec import N_BYTES

SEPARATOR = 0
SEPARATOR_TEXT = "<|end-of-document|>"
MIN_FREQUENCY = 2  # a pair seen once is no pattern

Tokens = NDArray[np.unsignedinteger[Any]]


class Tokenizer(Protocol):
    """`decode(encode(text)) == text` for any UTF-8 `text` without a NUL; `encode` never gives the separator, which ends
    a document, and which a text may begin after."""

    separator: int
    begin: int

    @property
    def vocab_size(self) -> int: ...

    @property
    def token_bytes(self) -> NDArray[np.uint32]:
        """[vocab_size]: the bytes of text that each token stands for; 0 for the separator."""

    def encode(self, text: bytes) -> Tokens:
        """[n_tokens]. Raises ValueError where `text` cannot be text."""

    def encode_batch(self, texts: Sequence[bytes]) -> list[Tokens]:
        """`encode` of each, faster."""

    def decode(self, tokens: Sequence[int] | NDArray[np.integer[Any]]) -> bytes:
        """The bytes of the tokens; the separator has none."""


def token_dtype(vocab_size: int) -> np.dtype[Any]:
    """The smallest little-endian unsigned type that holds every token."""
    return np.dtype(next(f"<u{size}" for size in (1, 2, 4) if vocab_size <= 2 ** (8 * size)))


class ByteTokenizer:
    """One token a byte."""

    vocab_size = N_BYTES
    separator = begin = SEPARATOR

    @cached_property
    def token_bytes(self) -> NDArray[np.uint32]:
        sizes = np.ones(N_BYTES, np.uint32)
        sizes[SEPARATOR] = 0
        return sizes

    def encode(self, text: bytes) -> Tokens:
        if b"\0" in text:
            raise ValueError("text holds a NUL byte, which ends a document where tokens are bytes; remove it")
        return np.frombuffer(text, np.uint8)

    def encode_batch(self, texts: Sequence[bytes]) -> list[Tokens]:
        return [self.encode(text) for text in texts]

    def decode(self, tokens: Sequence[int] | NDArray[np.integer[Any]]) -> bytes:
        ids = _checked_ids(tokens, N_BYTES)
        return bytes(ids[ids != SEPARATOR].astype(np.uint8))


class BytePairTokenizer:
    """Byte pairs from `json`, the content of a `tokenizer.json` as the tokenizers library writes it."""

    separator = begin = SEPARATOR

    def __init__(self, json: str) -> None:
        import tokenizers

        self.json = json
        self._inner = tokenizers.Tokenizer.from_str(json)
        self._inner.encode_special_tokens = True  # a document that spells the separator does not end there
        self.vocab_size: int = self._inner.get_vocab_size()
        self._dtype = token_dtype(self.vocab_size)

    @cached_property
    def _pieces(self) -> list[bytes]:
        """The bytes of each token."""
        to_byte = {character: byte for byte, character in enumerate(byte_alphabet())}
        pieces = [b""] * self.vocab_size
        for piece, token in self._inner.get_vocab().items():
            if token != SEPARATOR:
                pieces[token] = bytes(to_byte[character] for character in piece)
        return pieces

    @cached_property
    def token_bytes(self) -> NDArray[np.uint32]:
        return np.array([len(piece) for piece in self._pieces], np.uint32)

    def encode(self, text: bytes) -> Tokens:
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[bytes]) -> list[Tokens]:
        encodings = self._inner.encode_batch_fast([decoded(text) for text in texts], add_special_tokens=False)
        return [np.array(encoding.ids, self._dtype) for encoding in encodings]

    def decode(self, tokens: Sequence[int] | NDArray[np.integer[Any]]) -> bytes:
        return b"".join([self._pieces[token] for token in _checked_ids(tokens, self.vocab_size).tolist()])


def train_byte_pair(texts: Iterable[bytes], vocab_size: int) -> BytePairTokenizer:
    """Byte pairs learnt from `texts`, which are streamed. Raises ValueError where they hold too few pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        special_tokens=[SEPARATOR_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator((text.decode() for text in texts), trainer)
    reached = inner.get_vocab_size()
    if reached < vocab_size:
        raise ValueError(
            f"tokenizer.vocab_size: the training text holds pairs for {reached} tokens, {vocab_size} were asked for; "
            f"ask for at most {reached}, raise tokenizer.sample_bytes, or give more text"
        )
    assert inner.token_to_id(SEPARATOR_TEXT) == SEPARATOR
    return BytePairTokenizer(inner.to_str(pretty=True))


def byte_tokenizer_json() -> str:
    """A tokenizer.json that computes what `ByteTokenizer` does, for programs that read nothing else."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    numbers = {character: byte for byte, character in enumerate(byte_alphabet()) if byte != SEPARATOR}
    inner = Tokenizer(models.BPE(vocab={SEPARATOR_TEXT: SEPARATOR} | numbers, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(SEPARATOR_TEXT, special=True)])
    return str(inner.to_str(pretty=True))


def byte_alphabet() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (Radford et al. 2019): printable Latin-1
    for itself, the others, in order, from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(N_BYTES, 2 * N_BYTES))
    return [chr(byte if byte in printable else next(spare)) for byte in range(N_BYTES)]


def decoded(text: bytes) -> str:
    """The characters of a text. Raises ValueError."""
    try:
        return text.decode()
    except UnicodeDecodeError as wrong:
        raise ValueError(f"text is not UTF-8 at byte {wrong.start}; tokens are of UTF-8 text") from None


def _checked_ids(tokens: Sequence[int] | NDArray[np.integer[Any]], vocab_size: int) -> NDArray[np.int64]:
    ids = np.asarray(tokens, np.int64).reshape(-1)
    if ids.size and not (ids.min() >= 0 and ids.max() < vocab_size):
        raise ValueError(f"tokens {ids.min()} to {ids.max()} are not all among the vocabulary's 0 to {vocab_size - 1}")
    return ids
