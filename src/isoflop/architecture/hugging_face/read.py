"""A decoder from a Hugging Face config.json. What the language cannot express exactly is refused by name.

Where a key may be absent, the value taken is the one that the configuration class of that model_type itself takes;
keys on whose value classes or their versions differ must be present.
"""

import json
from collections.abc import Callable
from pathlib import Path
from stat import S_ISREG, ST_MODE, ST_SIZE
from typing import Any

from isoflop.architecture.decoder import Decoder
from isoflop.architecture.hugging_face import deepseek, gemma, gpt, llama, sparse, state_space
from isoflop.architecture.hugging_face.config import Config

LARGEST_FILE = 16 * 2**20

READERS: dict[str, Callable[[Config], Decoder]] = {
    "gpt2": gpt.read_gpt2,
    "gpt_neox": gpt.read_gpt_neox,
    "llama": llama.read_llama,
    "mistral": llama.read_mistral,
    "mixtral": sparse.read_mixtral,
    "qwen2": llama.read_qwen2,
    "qwen3": llama.read_qwen3,
    "qwen2_moe": sparse.read_qwen2_moe,
    "qwen3_moe": sparse.read_qwen3_moe,
    "olmo2": llama.read_olmo2,
    "olmoe": sparse.read_olmoe,
    "gemma2": gemma.read_gemma2,
    "gemma3_text": gemma.read_gemma3,
    "phi3": llama.read_phi3,
    "falcon": gpt.read_falcon,
    "bloom": gpt.read_bloom,
    "mpt": gpt.read_mpt,
    "deepseek_v2": deepseek.read_deepseek_v2,
    "deepseek_v3": deepseek.read_deepseek_v3,
    "gpt_oss": sparse.read_gpt_oss,
    "llama4_text": sparse.read_llama4,
    "mamba": state_space.read_mamba,
    "mamba2": state_space.read_mamba2,
    "jamba": state_space.read_jamba,
    "nemotron_h": state_space.read_nemotron_h,
}

# Why a well-known kind of model cannot be read.
REFUSED = {
    "phimoe": "routes by sparsemixer, which masks and weighs the experts in two passes and cannot be represented",
    "qwen3_next": "mixes by gated delta rule and gates its attention, which cannot be represented",
    "kimi_linear": "mixes by a delta rule with a gate for each channel, which cannot be represented",
    "gemma3": "sees pictures too; its text part alone is a gemma3_text",
    "llama4": "sees pictures too; its text part alone is a llama4_text",
}

# Published with code of their own, which transformers has since taken over under the same model_type.
ONCE_OWN_CODE = {"phi3", "falcon", "mpt", "deepseek_v2", "deepseek_v3", "jamba", "nemotron_h"}


def load_hugging_face(path: Path) -> Decoder:
    """A decoder from a config.json or its folder. Raises ValueError naming what cannot be represented."""
    file = path / "config.json" if path.is_dir() else path
    try:
        mode, size = file.stat()[ST_MODE], file.stat()[ST_SIZE]
        if not S_ISREG(mode):
            raise ValueError(f"{file}: is not a plain file")
        if size > LARGEST_FILE:
            raise ValueError(f"{file}: is larger than 16 MiB, which no configuration is")
        keys = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{file}: there is no such file") from None
    except RecursionError:
        raise ValueError(f"{file}: is not valid JSON: it is nested too deeply") from None
    except ValueError as error:  # of JSON, of UTF-8, or of a number with thousands of digits
        ours = str(error).startswith(str(file))
        raise error if ours else ValueError(f"{file}: is not valid JSON: {_line(error)}") from None
    if not isinstance(keys, dict):
        raise ValueError(f"{file}: is not the configuration of a model")
    return from_hugging_face(keys, str(file))


def _line(error: ValueError) -> str:
    return " ".join(str(error).split())[:200]


def from_hugging_face(keys: dict[str, Any], source: str) -> Decoder:
    """A decoder from the keys of a config.json; `source` opens every error's line."""
    config = Config(source, keys)
    model_type = keys.get("model_type")
    if not isinstance(model_type, str):
        raise config.wrong("the key 'model_type' is missing, so this is not the configuration of a model")
    if model_type not in READERS:
        why = REFUSED.get(model_type, "is not among those that can be read exactly")
        raise config.wrong(f"model_type '{model_type[:40]}' {why} (readable: {', '.join(READERS)})")
    if config.has("auto_map") and model_type not in ONCE_OWN_CODE:
        raise config.wrong("auto_map: the model is code of its own, which its configuration does not tell")
    try:
        return READERS[model_type](config)
    except ValueError as error:
        raise error if str(error).startswith(source) else config.wrong(_line(error)) from None
