"""What a stranger's tokenizer.json may ask of the library that runs it.

A tokenizer is a small program: its normalizers can double a text as often as they like, its template can put a million
tokens before it, its padding after it, and the library dies of some of what it reads. Published tokenizers do none of
this; what is far beyond them is refused before the library sees it. The bounds are on how much is made of a text, and
not on the vocabulary, which is as large as its file.
"""

import base64
import binascii
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_PARTS = 64  # normalizers, pre-tokenizers, places of a template
MOST_STRING = 1 << 14  # characters of a pattern and the like; the longest published ones have some 500
MOST_MARK = 1 << 12  # characters of an added token
MOST_GROWTH = 256  # times that a text may grow in the normalizers
CHARACTER_MAP = "precompiled_charsmap"
PIPELINE = ("normalizer", "pre_tokenizer", "post_processor")


def require_tame(described: Any, file: Path) -> None:
    """Raises ValueError naming the part of a tokenizer.json that would make too much of a text."""
    if not isinstance(described, dict):
        raise ValueError(f"{file}: is not a tokenizer")
    parts = {key: list(_objects(described.get(key))) for key in PIPELINE}
    for key, objects in parts.items():
        if sum("type" in part for part in objects) > MOST_PARTS or any(_longest(part) > MOST_PARTS for part in objects):
            raise ValueError(f"{file}: the {key} has more than {MOST_PARTS} parts")
        if any(len(text) > MOST_STRING for part in objects for text in _strings(part)):
            raise ValueError(f"{file}: the {key} has a text of more than {MOST_STRING} characters")
    growth = math.prod(map(_growth, parts["normalizer"]))
    if growth > MOST_GROWTH:
        raise ValueError(f"{file}: the normalizer makes up to {growth:.3g} characters of one; at most {MOST_GROWTH}")
    for part in parts["normalizer"]:
        if CHARACTER_MAP in part and not _is_character_map(part[CHARACTER_MAP]):
            raise ValueError(f"{file}: the normalizer's {CHARACTER_MAP} is damaged")
    for part in parts["pre_tokenizer"]:
        if part.get("type") == "FixedLength" and not part.get("length"):
            raise ValueError(f"{file}: the pre_tokenizer cuts a text into pieces of no length")
    for part in parts["post_processor"]:
        if part.get("type") == "TemplateProcessing" and not _is_template(part):
            raise ValueError(f"{file}: the post_processor puts in a special token that it does not describe")
    _require_tame_model(described, file)


def _require_tame_model(described: dict[str, Any], file: Path) -> None:
    model, added = described.get("model"), described.get("added_tokens") or []
    if isinstance(model, dict) and any(len(text) > MOST_PARTS for text in model.values() if isinstance(text, str)):
        raise ValueError(f"{file}: the model has a prefix or a name of more than {MOST_PARTS} characters")
    marks = (mark.get("content") for mark in added if isinstance(mark, dict)) if isinstance(added, list) else ()
    if any(isinstance(mark, str) and len(mark) > MOST_MARK for mark in marks):
        raise ValueError(f"{file}: an added token has more than {MOST_MARK} characters")


def _is_template(part: dict[str, Any]) -> bool:
    """Whether every special token that a template puts in is described; the library dies of one that is not."""
    marks = [found["SpecialToken"] for found in _objects(part) if isinstance(found.get("SpecialToken"), dict)]
    described = part.get("special_tokens") or {}
    return all(isinstance(mark.get("id"), str) and mark["id"] in described for mark in marks)


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects in plain data."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from _objects(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _objects(inner)


def _strings(part: dict[str, Any]) -> Iterator[str]:
    return (value for key, value in part.items() if isinstance(value, str) and key != CHARACTER_MAP)


def _longest(part: dict[str, Any]) -> int:
    return max((len(value) for value in part.values() if isinstance(value, list)), default=0)


def _growth(part: dict[str, Any]) -> float:
    """Characters that a normalizer makes of one, at most. A regular expression may match nothing, between any two."""
    match part:
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)} if pattern:
            return max(1.0, len(content) / len(pattern))
        case {"type": "Replace", "content": str(content)}:
            return 1.0 + len(content)
        case {"type": "Prepend", "prepend": str(prefix)}:
            return max(1.0, len(prefix))
        case _:
            return 1.0


def _is_character_map(value: Any) -> bool:
    """Base64 of the length of a table of 32-bit words (little-endian), the table, and texts; null is none at all."""
    if value is None:
        return True
    try:
        data = base64.b64decode(value, validate=True)
    except (TypeError, ValueError, binascii.Error):
        return False
    n_bytes = int.from_bytes(data[:4], "little")
    return n_bytes > 0 and n_bytes % 4 == 0 and 4 + n_bytes <= len(data)
