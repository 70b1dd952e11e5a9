"""What to prepare: where text comes from, how it becomes tokens, how much of it is held out."""

import msgspec

N_BYTES = 256
SMALLEST_VOCAB = N_BYTES + 1  # every byte and the token that ends a document
LARGEST_VOCAB = 2**24
DOCUMENT_BYTES = 2**20
TEXT_KEY = "text"
SHORTEST_DOCUMENT, LONGEST_DOCUMENT = 2**8, 2**26


class Bytes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="bytes"):
    """One token a byte; 256 tokens. Byte 0, which text does not hold, ends a document."""


class BytePair(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="byte-pair"
):
    """Byte-level byte-pair encoding, trained on the first `sample_bytes` bytes of the training split."""

    vocab_size: int
    sample_bytes: int = 2**25

    def __post_init__(self) -> None:
        if not SMALLEST_VOCAB <= self.vocab_size <= LARGEST_VOCAB:
            raise ValueError(
                f"tokenizer.vocab_size: {self.vocab_size} is outside {SMALLEST_VOCAB} (every byte and the end of a "
                f"document) to {LARGEST_VOCAB}; 4096 suits small corpora"
            )
        if self.sample_bytes < 1:
            raise ValueError(f"tokenizer.sample_bytes: {self.sample_bytes} is not positive; {2**25} is the default")


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="file"):
    """The tokenizer.json of another model. `end` is the token that ends a document, by its text or its number; where
    the file has only one special token it need not be said. Prepared tokens go by the file's content, not its path."""

    path: str
    end: str | int | None = None

    def __post_init__(self) -> None:
        if not self.path:
            raise ValueError("tokenizer.path: is empty; give the path of a tokenizer.json")


class Data(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A corpus and how to tokenize it.

    `source` is "stdlib" (the source of the running Python's standard library) or the path of a file or folder;
    `text_key` is the key (JSON lines) or column (Parquet) that holds the text; plain text of more than `document_bytes`
    is cut into several documents; `valid_fraction` of the documents, chosen by their hash, are held out for validation.
    """

    source: str = "stdlib"
    tokenizer: Bytes | BytePair | File = Bytes()
    text_key: str = TEXT_KEY
    document_bytes: int = DOCUMENT_BYTES
    valid_fraction: float = 0.05

    def __post_init__(self) -> None:
        if not self.source:
            raise ValueError('data.source: is empty; give "stdlib" or the path of a file or folder')
        if not self.text_key:
            raise ValueError('data.text_key: is empty; give the key or column that holds the text, such as "text"')
        if not SHORTEST_DOCUMENT <= self.document_bytes <= LONGEST_DOCUMENT:
            raise ValueError(
                f"data.document_bytes: {self.document_bytes} is outside {SHORTEST_DOCUMENT} to {LONGEST_DOCUMENT}; "
                f"{DOCUMENT_BYTES} is the default"
            )
        if not 0 < self.valid_fraction < 1:
            raise ValueError(
                f"data.valid_fraction: {self.valid_fraction} is not between 0 and 1, both excluded; "
                "0.05 holds out one document in twenty"
            )
