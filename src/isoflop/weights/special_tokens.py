"""Which tokens begin and end a text, as a checkpoint has it."""

from pathlib import Path

from isoflop.data.plain_json import read_json
from isoflop.weights.checkpoint import RECORD, is_checkpoint
from isoflop.weights.folder import inside
from isoflop.weights.hugging_face import CONFIG

GENERATION = "generation_config.json"


def special_tokens(folder: Path) -> dict[str, list[int]]:
    """Ids of the tokens that begin and end a text, from the checkpoint and from generation_config.json, which adds the
    ends of a turn."""
    record = read_json(inside(folder, RECORD if is_checkpoint(folder) else CONFIG))
    sources = [record.get("special_tokens", {}) if is_checkpoint(folder) else record]
    if (folder / GENERATION).exists():
        sources.append(read_json(inside(folder, GENERATION)))
    found: dict[str, list[int]] = {}
    for source in sources:
        for key in ("bos_token_id", "eos_token_id"):
            value = source.get(key) if isinstance(source, dict) else None
            for token in value if isinstance(value, list) else [value]:
                if isinstance(token, int) and not isinstance(token, bool) and token >= 0:
                    found.setdefault(key, []).append(token)
    return {key: list(dict.fromkeys(tokens)) for key, tokens in found.items()}
