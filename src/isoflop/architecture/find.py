"""ARCH on a command line: the name of a published model, a TOML file, or a Hugging Face directory or config.json."""

import difflib
from pathlib import Path
from typing import Any

import msgspec

from isoflop.architecture.base import MOST_LAYERS, Description
from isoflop.architecture.decoder import Decoder, Layer
from isoflop.architecture.files import from_dict, read_toml, shown
from isoflop.architecture.hugging_face import load_hugging_face
from isoflop.architecture.pattern import expand
from isoflop.architecture.zoo import canonical, entries, refusal

_PUBLISHED = Path(__file__).parent / "published"


def find_decoder(arch: str) -> Decoder:
    """The decoder that `arch` names; of a published name letter case does not matter, and what has a slash is a path.
    Raises ValueError in one line."""
    published = None if "/" in arch else published_decoder(arch)
    if published is not None:
        return published
    path = Path(arch)
    if path.is_dir() or (path.suffix == ".json" and path.exists()):
        return load_hugging_face(path)
    if path.exists() or path.suffix == ".toml":
        return load_decoder(path)
    raise ValueError(f"'{arch}' is neither a file nor a published model{did_you_mean(arch)}")


def published_decoder(name: str) -> Decoder | None:
    """A published model by name or alias; None where the zoo does not know it. Raises ValueError for one that it knows
    and cannot express."""
    file = _PUBLISHED / f"{name.lower()}.toml"
    if file.name in {known.name for known in _PUBLISHED.glob("*.toml")}:
        return load_decoder(file)
    own_name = canonical(name)
    if own_name is None:
        return None
    refused = refusal(own_name, entries()[own_name])
    if refused is not None:
        raise refused
    return load_decoder(_PUBLISHED / f"{own_name}.toml")


def did_you_mean(name: str) -> str:
    """The end of an error about a name that is not in the zoo."""
    near = difflib.get_close_matches(name.lower(), entries(), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'? (isoflop zoo lists them all)" if near else " (isoflop zoo lists them)"


def published_names() -> list[str]:
    """Names of the published models that come with Isoflop, sorted."""
    return sorted(file.name.removesuffix(".toml") for file in _PUBLISHED.glob("*.toml"))


def load_decoder(path: Path) -> Decoder:
    """A decoder from a TOML file, whose layers are written in one of two ways. Raises ValueError.

    - A list `layers`, each entry a `Layer`, in order; an entry may say `repeat = N`.
    - Tables `[blocks.NAME]`, each a `Layer`, and their order in `pattern`, such as "(local*5 global)*4"; see
      pattern.py.

    A layer without a mixer or without a feed-forward says so: `feed_forward = "none"`.
    """
    data = _without_nones(read_toml(path))
    if "pattern" in data or "blocks" in data:
        return _from_pattern(data, path)
    entries = data.get("layers")
    repeats = [_take_repeat(path, i, entry) for i, entry in enumerate(entries)] if isinstance(entries, list) else []
    if sum(repeats) > MOST_LAYERS:
        raise ValueError(
            f"{path}: layers and their repeats make {sum(repeats)} layers; at most {MOST_LAYERS} make sense"
        )
    decoder = from_dict(data, Decoder, str(path))  # before repeating: errors then count the file's own entries
    layers: list[Layer] = []
    for layer, repeat in zip(decoder.layers, repeats, strict=True):
        layers += [layer] * repeat
    return msgspec.structs.replace(decoder, layers=tuple(layers))


def _without_nones(data: dict[str, Any]) -> dict[str, Any]:
    """TOML has no null: "none" in place of a mixer or a feed-forward means that there is none."""
    layers, blocks = data.get("layers"), data.get("blocks")
    entries = (layers if isinstance(layers, list) else []) + (list(blocks.values()) if isinstance(blocks, dict) else [])
    for entry in entries:
        if isinstance(entry, dict):
            entry.update({key: None for key in ("mixer", "feed_forward") if entry.get(key) == "none"})
    return data


class _Blocks(Description, frozen=True):
    """The part of a file that a decoder does not know: named layers, and their order."""

    blocks: dict[str, Layer]
    pattern: str


def _from_pattern(data: dict[str, Any], path: Path) -> Decoder:
    if "layers" in data:
        raise ValueError(f"{path}: layers are written either as 'layers' or as 'blocks' with a 'pattern', not as both")
    written: dict[str, Any] = {key: data.pop(key) for key in ("blocks", "pattern") if key in data}
    named = from_dict(written, _Blocks, str(path))
    try:
        order = expand(named.pattern, named.blocks)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    unused = [name for name in named.blocks if name not in order]
    if unused:
        raise ValueError(f"{path}: [blocks.{unused[0]}] does not occur in pattern = '{named.pattern}'")
    once = {"layers": [written["blocks"][name] for name in named.blocks]}  # checks each block with the decoder once
    decoder = from_dict(data | once, Decoder, str(path))
    return msgspec.structs.replace(decoder, layers=tuple(named.blocks[name] for name in order))


def _take_repeat(path: Path, index: int, entry: object) -> int:
    repeat = entry.pop("repeat", 1) if isinstance(entry, dict) else 1
    if type(repeat) is not int or not 1 <= repeat <= MOST_LAYERS:
        raise ValueError(
            f"{path}: [layers.{index}] repeat = {shown(repeat)} must be a whole number between 1 and {MOST_LAYERS}"
        )
    return repeat
