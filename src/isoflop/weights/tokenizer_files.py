"""The files of a tokenizer, which go along with the weights unread."""

import os
from pathlib import Path

from isoflop.weights.folder import inside

FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
)
MOST_BYTES = 256 << 20


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """Copy what there is of a tokenizer from one folder to another; returns the names. Raises ValueError where a file
    is a link that leaves the folder, no plain file, or larger than any tokenizer."""
    copied = [name for name in FILES if os.path.lexists(source / name)]
    for name in copied:
        file = inside(source, name)
        if file.stat().st_size > MOST_BYTES:
            raise ValueError(f"{file}: {file.stat().st_size} bytes; a tokenizer's file has at most {MOST_BYTES}")
        (target / name).write_bytes(file.read_bytes())
    return copied
