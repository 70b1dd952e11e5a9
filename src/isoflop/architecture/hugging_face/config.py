"""The keys of a config.json, asked for by name and type. The file is nobody's friend: every answer is checked."""

import json
import math
from typing import Any, NamedTuple

from isoflop.architecture.base import LARGEST, MOST_LAYERS


class Config(NamedTuple):
    """The keys of a config.json and where they come from; errors open with the file."""

    source: str
    keys: dict[str, Any]

    def wrong(self, why: str) -> ValueError:
        return ValueError(f"{self.source}: {why}")

    def has(self, key: str) -> bool:
        """Whether the key is there and not null, which transformers takes for absent."""
        return self.keys.get(key) is not None

    def show(self, key: str) -> str:
        """The value as the file has it, in a few characters."""
        value = self.keys[key]
        if isinstance(value, dict | list | tuple):
            return "{...}" if isinstance(value, dict) else "[...]"
        text = json.dumps(value, default=str)
        return text if len(text) <= 40 else text[:40] + "..."

    def integer(self, key: str, default: int | None = None, least: int = 1) -> int:
        if default is not None and not self.has(key):
            return default
        value = self._typed(key, int, "a whole number")
        if not least <= value <= LARGEST:
            raise self.wrong(f"{key} = {self.show(key)} must be a whole number of at least {least} and at most 2^53")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        if default is not None and not self.has(key):
            return default
        value = self._typed(key, (int, float), "a number")
        if not abs(value) <= LARGEST:
            raise self.wrong(f"{key} = {self.show(key)} must be a number, finite and at most 2^53")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        if default is not None and not self.has(key):
            return default
        return bool(self._typed(key, bool, "true or false"))

    def text(self, key: str, default: str | None = None) -> str:
        if default is not None and not self.has(key):
            return default
        return str(self._typed(key, str, "a text"))

    def integers(self, key: str) -> list[int]:
        values = self._typed(key, (list, tuple), "a list of whole numbers")
        if not all(type(value) is int for value in values):
            raise self.wrong(f"{key} must be a list of whole numbers")
        return list(values)

    def numbers(self, key: str) -> tuple[float, ...]:
        values = self._typed(key, (list, tuple), "a list of numbers")
        if not all(type(value) in (int, float) and abs(value) <= LARGEST for value in values):
            raise self.wrong(f"{key} must be a list of numbers")
        return tuple(float(value) for value in values)

    def names(self, key: str) -> list[str]:
        values = self._typed(key, (list, tuple), "a list of names")
        if not all(isinstance(value, str) for value in values):
            raise self.wrong(f"{key} must be a list of names")
        return list(values)

    def section(self, key: str) -> "Config":
        """The object under a key, empty where it is absent."""
        value = self._typed(key, dict, "an object") if self.has(key) else {}
        return Config(f"{self.source}: {key}", value)

    def n_layers(self, key: str = "num_hidden_layers") -> int:
        n_layers = self.integer(key)
        if n_layers > MOST_LAYERS:
            raise self.wrong(f"{key} = {n_layers}: at most {MOST_LAYERS} layers make sense")
        return n_layers

    def layer_kinds(self, n_layers: int, known: tuple[str, ...], key: str = "layer_types") -> list[str]:
        """What the file says of each layer, one of `known`."""
        kinds = self.names(key)
        other = next((kind for kind in kinds if kind not in known), None)
        if other is not None:
            raise self.wrong(f"{key}: '{other[:40]}' cannot be represented, only {' and '.join(map(repr, known))}")
        if len(kinds) != n_layers:
            raise self.wrong(f"{key} names {len(kinds)} layers, num_hidden_layers = {n_layers}")
        return kinds

    def only(self, key: str, *allowed: object, why: str = "cannot be represented") -> None:
        """Refuse a value that changes what the model computes. Absent and null are always allowed."""
        if self.has(key) and not any(self.keys[key] == value for value in allowed):
            raise self.wrong(f"{key} = {self.show(key)}: {why}")

    def quotient(self, key: str, by: str) -> int:
        """One size divided by another, where it divides."""
        whole, part = self.integer(key), self.integer(by)
        if whole % part:
            raise self.wrong(f"{key} = {whole} is not a multiple of {by} = {part}")
        return whole // part

    def _typed(self, key: str, kind: type | tuple[type, ...], words: str) -> Any:
        if key not in self.keys:
            raise self.wrong(f"the key '{key}' is missing")
        value = self.keys[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(f"{key} = {self.show(key)} must be {words}")
        return value


def special_float(value: Any) -> Any:
    """Infinity as JSON of transformers 5 has it, {"__float__": "Infinity"}, or as it is; anything else unchanged."""
    if isinstance(value, dict) and value.get("__float__") == "Infinity":
        return math.inf
    return value
