"""A tokenizer in GGUF's keys. llama.cpp splits text before its byte pairs by rules of its own that a file only names:
only tokenizers whose rule is known by name are written."""

from pathlib import Path
from typing import Any

from isoflop.data.plain_json import parsed, read_json
from isoflop.data.spec import N_BYTES
from isoflop.data.tokenizer import SEPARATOR, SEPARATOR_TEXT, byte_alphabet, byte_tokenizer_json
from isoflop.weights.checkpoint import Checkpoint
from isoflop.weights.folder import inside

TOKENIZER = "tokenizer.json"
# Byte-level pre-tokenizers by the pattern they split with, and llama.cpp's name of the rule. None: GPT-2's own.
_WORDS, _SIGNS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|", r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
RULES: dict[str | None, str] = {
    None: "gpt-2",
    _WORDS + r"\p{N}" + _SIGNS + _SPACES: "qwen2",
    _WORDS + r"\p{N}{1,3}" + _SIGNS + _SPACES: "llama-bpe",
}
# llama.cpp wants merges, and reads no empty list of them. This one joins two NULs, which no text holds.
NO_MERGES = [f"{byte_alphabet()[0]} {byte_alphabet()[0]}"]


def add_tokenizer(writer: Any, folder: Path, ours: Checkpoint, wanted: bool) -> None:
    """Write the vocabulary (of a model of bytes that has no file, one without merges), or, where none is wanted or
    known, that there is none. Raises ValueError where llama.cpp has no rule for the tokenizer."""
    found = _described(folder, ours) if wanted else None
    if found is None:
        writer.add_tokenizer_model("none")
        return
    content, path, special = found
    rule = _rule_of(content, path)
    tokens, types = _tokens(content, ours.decoder.vocab_size, path)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(rule)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    merges = content["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges] or NO_MERGES)
    for key, add in (("bos_token_id", writer.add_bos_token_id), ("eos_token_id", writer.add_eos_token_id)):
        token = special.get(key)
        token = token[0] if isinstance(token, list) and token else token
        if isinstance(token, int):
            add(token)
    writer.add_add_bos_token(False)


def _described(folder: Path, ours: Checkpoint) -> tuple[Any, Path, dict[str, Any]] | None:
    """The tokenizer that a checkpoint's text is read with, where it comes from, and its special tokens."""
    special, path = ours.record.special_tokens, folder / TOKENIZER
    if TOKENIZER in ours.record.files:
        return read_json(inside(folder, TOKENIZER)), path, special
    if ours.decoder.vocab_size != N_BYTES:
        return None
    return parsed(byte_tokenizer_json().encode(), path), path, {"eos_token_id": SEPARATOR} | special


def _rule_of(content: Any, path: Path) -> str:
    without = f"{path}: llama.cpp has no known rule for this tokenizer"
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict) or model.get("type") != "BPE" or not isinstance(model.get("merges"), list):
        raise ValueError(f"{without}: it is no byte-pair encoding; --no-tokenizer leaves it out")
    pattern = _pattern(content.get("pre_tokenizer"))
    if pattern not in RULES:
        raise ValueError(f"{without}: its way to split text is unknown; --no-tokenizer leaves it out")
    return RULES[pattern]


def _pattern(pre: Any) -> str | None:
    """What a byte-level pre-tokenizer splits with; None for GPT-2's pattern, "" for what is not byte-level."""
    if not isinstance(pre, dict):
        return ""
    if pre.get("type") == "ByteLevel":
        return None if pre.get("use_regex", True) and not pre.get("add_prefix_space") else ""
    steps = pre.get("pretokenizers") if pre.get("type") == "Sequence" else None
    if not isinstance(steps, list) or [step.get("type") for step in steps] != ["Split", "ByteLevel"]:
        return ""
    found = steps[0].get("pattern", {}).get("Regex")
    return found if isinstance(found, str) else ""


def _tokens(content: Any, vocab_size: int, path: Path) -> tuple[list[str], list[int]]:
    """Pieces and their kinds by number; what the model has numbers for and the tokenizer has not is unused."""
    from gguf import TokenType

    pieces = {int(number): str(piece) for piece, number in content["model"]["vocab"].items()}
    added = {int(token["id"]): token for token in content.get("added_tokens", [])}
    pieces |= {number: str(token["content"]) for number, token in added.items()}
    if pieces and max(pieces) >= vocab_size:
        raise ValueError(f"{path}: has token {max(pieces)}, and the model only {vocab_size}")
    types = []
    for number in range(vocab_size):
        special = number in added and (added[number].get("special") or added[number]["content"] == SEPARATOR_TEXT)
        kind = TokenType.CONTROL if special else TokenType.USER_DEFINED if number in added else TokenType.NORMAL
        types.append(int(kind if number in pieces else TokenType.UNUSED))
    return [pieces.get(number, f"<unused{number}>") for number in range(vocab_size)], types
