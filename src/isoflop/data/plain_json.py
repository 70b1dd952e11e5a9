"""JSON from strangers as plain data: bounded, every key once, and only characters that are text."""

import json
import re
from pathlib import Path
from typing import Any

MOST_JSON = 100_000_000  # bytes; the safetensors library allows headers of as many
MOST_TOLD = 300  # characters of a library's words, which may repeat what a file says

_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> Any:
    """Plain data from a JSON file. Raises ValueError naming the file where it is too large, not JSON, or says a key
    twice."""
    return parsed(bounded(path), path)


def bounded(path: Path) -> bytes:
    """A file's content. Raises ValueError where it is too large."""
    if path.stat().st_size > MOST_JSON:
        raise ValueError(f"{path}: {path.stat().st_size} bytes; at most {MOST_JSON} are read")
    return path.read_bytes()


def parsed(content: bytes, path: Path) -> Any:
    """Plain data from what is the content of `path`. Raises ValueError as `read_json`."""
    try:
        found = json.loads(content, object_pairs_hook=no_key_twice)
        if _HALF_CHARACTER.search(content):  # two that belong together are a character, one alone is no text
            json.dumps(found, ensure_ascii=False).encode()
        return found
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: is not valid JSON: {str(error)[:MOST_TOLD]}") from None


def no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of its pairs. Raises ValueError where a key comes twice."""
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise ValueError(f"the key '{next(key for key in keys if keys.count(key) > 1)[:80]}' occurs twice")
    return dict(pairs)
