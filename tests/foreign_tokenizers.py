"""Tokenizers as other projects make them: trained here by the tokenizers library, each with its own marks and ways."""

from collections.abc import Callable

import tokenizers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEXT = [
    f"Chapter {k}. The quick brown fox jumps over the lazy dog; déjà vu, {k * k} times!\n\n    Zażółć gęślą jaźń\n"
    for k in range(60)
]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def sentence_piece(vocab_size: int = 420) -> Tokenizer:
    """As Llama 2's: spaces as U+2581, unknown characters as bytes, <s> before a text."""
    inner = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    inner.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    marks = ["<unk>", "<s>", "</s>", *BYTES]
    trained(inner, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=marks, show_progress=False))
    return around(inner, "<s> $A", "<s>")


def byte_level(vocab_size: int = 420) -> Tokenizer:
    """As GPT-2's, with one mark, which nothing but the end of a document has."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trained(
        inner,
        trainers.BpeTrainer(
            vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
        ),
    )
    return inner


def unigram(vocab_size: int = 300) -> Tokenizer:
    """As T5's: normalized, spaces run together, unknown characters lost, </s> after a text."""
    inner = Tokenizer(models.Unigram())
    inner.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")])
    inner.pre_tokenizer = pre_tokenizers.Metaspace()
    inner.decoder = decoders.Metaspace()
    marks = ["<pad>", "</s>", "<unk>"]
    trained(
        inner,
        trainers.UnigramTrainer(vocab_size=vocab_size, special_tokens=marks, unk_token="<unk>", show_progress=False),
    )
    return around(inner, "$A </s>", "</s>")


def one_mark_on_both_sides(vocab_size: int = 420) -> Tokenizer:
    """As OPT's: the same mark begins a text and ends it."""
    return around(byte_level(vocab_size), "<|endoftext|> $A", "<|endoftext|>")


def words(vocab_size: int = 80) -> Tokenizer:
    """Words in small letters: most of a text is unknown, and none of its spaces comes back."""
    inner = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    trained(
        inner, trainers.WordLevelTrainer(vocab_size=vocab_size, special_tokens=["[UNK]", "[END]"], show_progress=False)
    )
    return inner


def trained(inner: Tokenizer, trainer: trainers.Trainer) -> None:
    inner.train_from_iterator(TEXT, trainer)


def around(inner: Tokenizer, template: str, mark: str) -> Tokenizer:
    inner.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(mark, inner.token_to_id(mark))]
    )
    return inner


# Each with the mark that ends a document.
KINDS: dict[str, tuple[Callable[[], Tokenizer], str]] = {
    "SentencePiece": (sentence_piece, "</s>"),
    "byte-level": (byte_level, "<|endoftext|>"),
    "unigram": (unigram, "</s>"),
    "one mark on both sides": (one_mark_on_both_sides, "<|endoftext|>"),
    "words": (words, "[END]"),
}
