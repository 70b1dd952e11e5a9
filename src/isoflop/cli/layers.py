"""Layers in words: which kinds a decoder has, how many of each, and where."""

from itertools import groupby
from typing import Any

import msgspec

from isoflop.architecture import Attention, Decoder, LatentAttention, Layer, MixtureOfExperts


class LayerGroup(msgspec.Struct, frozen=True):
    """All layers of one description: how many, their places such as "0-2, 5", and the description as plain data."""

    count: int
    places: str
    layer: dict[str, Any]


def layer_groups(decoder: Decoder) -> list[LayerGroup]:
    """The distinct layers in order of their first place."""
    places: dict[Layer, list[int]] = {}
    for place, layer in enumerate(decoder.layers):
        places.setdefault(layer, []).append(place)
    return [LayerGroup(len(at), _ranges(at), _plain(layer)) for layer, at in places.items()]


def kind_of(decoder: Decoder) -> str:
    """`attention`, `state-space` or `hybrid` by its mixers, and `experts` where a feed-forward has them; `dense` is
    attention without experts."""
    mixers = {type(layer.mixer) for layer in decoder.layers if layer.mixer is not None}
    attends = mixers & {Attention, LatentAttention}
    sparse = any(isinstance(layer.feed_forward, MixtureOfExperts) for layer in decoder.layers)
    family = "" if mixers == attends else "hybrid" if attends else "state-space"
    return " ".join(word for word in (family, "experts" if sparse else "") if word) or "dense"


def words(part: dict[str, Any] | None) -> str:
    """A mixer or feed-forward on one line: its kind, then its fields."""
    if part is None:
        return "none"
    fields = [f"{key} {_value(value)}" for key, value in part.items() if key != "type"]
    return " ".join([str(part["type"])] + ([f"({', '.join(fields)})"] if fields else []))


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return words(value) if "type" in value else "(" + ", ".join(f"{k} {_value(v)}" for k, v in value.items()) + ")"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _plain(layer: Layer) -> dict[str, Any]:
    """The fields that were chosen: those that have no default, or not the default's value."""
    plain = {name: _chosen(getattr(layer, name)) for name in ("mixer", "feed_forward")}
    return plain | ({"parallel": layer.parallel} if layer.parallel != "no" else {})


def _chosen(part: msgspec.Struct | None) -> dict[str, Any] | None:
    if part is None:
        return None
    fields = {field.name: field for field in msgspec.structs.fields(part)}
    tag = part.__struct_config__.tag
    chosen: dict[str, Any] = {} if tag == type(part).__name__ else {"type": tag}
    for name, field in fields.items():
        value = getattr(part, name)
        if value != field.default:
            chosen[name] = _chosen(value) if isinstance(value, msgspec.Struct) else value
    return chosen


def _ranges(places: list[int]) -> str:
    """0, 1, 2, 5 as "0-2, 5"."""
    runs = [[place for _, place in run] for _, run in groupby(enumerate(places), lambda pair: pair[1] - pair[0])]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)
