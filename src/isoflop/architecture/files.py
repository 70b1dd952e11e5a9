"""Descriptions from TOML and dictionaries, with errors that say what, where, and what would be valid."""

import copy
import difflib
import re
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import inspect

from isoflop.architecture.base import in_short

T = TypeVar("T")

LARGEST_FILE = 4 * 2**20  # bytes
MOST_SHOWN = 80  # characters of a wrong value

# A step of msgspec's paths: .field, [index], or [...] for some key of a dictionary.
_STEP = r"\.([^.\[\]`]+)|\[(\d+|\.\.\.)\]"

# More than 64 names, each followed by a point; names are bare or quoted.
_DEEP_KEY = re.compile(r"""(?<![\w-])(?:(?:[\w-]++|"(?:[^"\\\n]|\\.)*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){64}""")


def load_toml(path: Path, kind: type[T]) -> T:
    """A description of type `kind` from a TOML file. Raises ValueError naming the file and the key."""
    return from_dict(read_toml(path), kind, str(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Plain data from a TOML file. Raises ValueError naming the file."""
    try:
        with path.open("rb") as file:
            text = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise ValueError(f"{path}: there is no such file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is not a TOML file") from None
    if len(text) > LARGEST_FILE:
        raise ValueError(f"{path}: is larger than {LARGEST_FILE >> 20} MiB, which no description is")
    return _parsed(text, path)


def _parsed(text: bytes, path: Path) -> dict[str, Any]:
    try:
        decoded = text.decode("utf-8").replace("\r\n", "\n")
        if _DEEP_KEY.search(decoded):  # the parser's time grows with the square of their depth
            raise ValueError("a key of more than 64 parts")
        return tomllib.loads(decoded)
    except UnicodeDecodeError:
        raise ValueError(f"{path}: is not a TOML file") from None
    except RecursionError:
        raise ValueError(f"{path}: is not valid TOML: it is nested too deeply") from None
    except ValueError as error:  # of TOML, or of a number with thousands of digits
        raise ValueError(f"{path}: is not valid TOML: {error}") from None


def from_dict(data: dict[str, Any], kind: type[T], source: str) -> T:
    """A description of type `kind` from plain data; `source` opens every error's line."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"{source}: {_explain(str(error), data, kind)}") from None


def _explain(message: str, data: Any, kind: Any) -> str:
    """msgspec's message with the place first, in TOML's terms, and a suggestion where a name is wrong."""
    text, _, at = message.partition(" - at `")
    path = _name_keys([name or index for name, index in re.findall(_STEP, at)], message, data, kind)
    place = f"[{'.'.join(path)}] " if path else ""
    unknown = re.fullmatch(r"Object contains unknown field `(.*)`", text)
    if unknown:
        return f"{place}unknown key {shown(unknown[1])}{_suggest(unknown[1], _keys_at(path, data, kind))}"
    missing = re.fullmatch(r"Object missing required field `(.*)`", text)
    if missing:
        return f"{place}the key '{missing[1]}' is missing"
    wrong = re.fullmatch(r"Invalid (?:value|enum value) '(.*)'", text)
    if wrong and path:
        choices = _choices_at(path, data, kind)
        return f"{place}{shown(wrong[1])} is not valid{_suggest(wrong[1], choices)}"
    expected = re.fullmatch(r"Expected `(.*)`, got `(.*)`", text)
    if expected:
        found = _dig(data, path)
        wanted = expected[1].removesuffix(" | null")  # TOML has no null
        value = "" if isinstance(found, dict | list) else f" {shown(found)}"
        return f"{place}expected {wanted}, found {expected[2]}{value}"
    return f"{place}{text[:1].lower() + text[1:]}" if text.startswith("Expected") else f"{place}{text}"


def _name_keys(path: list[str], message: str, data: Any, kind: Any) -> list[str]:
    """The path with each `...` replaced by the first key whose value alone is refused with the same message."""
    path = list(path)
    while "..." in path:
        at = path.index("...")
        keys = [key for key in _dig(data, path[:at]) if _refusal(_keep_only(data, path[:at], key), kind) == message]
        if not keys:
            return path[:at]
        path[at] = keys[0]
    return path


def _keep_only(data: Any, path: list[str], key: str) -> Any:
    data = copy.deepcopy(data)
    holder = _dig(data, path)
    for other in [other for other in holder if other != key]:
        del holder[other]
    return data


def _refusal(data: Any, kind: Any) -> str | None:
    try:
        msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        return str(error)
    return None


def _suggest(name: str, valid: list[str]) -> str:
    near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"{hint} (valid: {', '.join(valid)})" if valid else hint


def shown(value: Any) -> str:
    """A value in a few characters."""
    text = in_short(value) if isinstance(value, int) else repr(value)
    return text if len(text) <= MOST_SHOWN else text[:MOST_SHOWN] + "..."


def _dig(data: Any, path: list[str]) -> Any:
    for step in path:
        data = data[int(step)] if isinstance(data, list | tuple) else data.get(step)
    return data


def _keys_at(path: list[str], data: Any, kind: Any) -> list[str]:
    info = _type_at(path, data, kind)
    if not isinstance(info, inspect.StructType):
        return []
    tag = [str(info.tag_field)] if info.tag is not None and info.tag_field else []
    return tag + [field.encode_name for field in info.fields]


def _choices_at(path: list[str], data: Any, kind: Any) -> list[str]:
    """Valid values of a tag or a literal."""
    owner = _static_type(path[:-1], data, kind)
    members = owner.types if isinstance(owner, inspect.UnionType) else (owner,)
    structs = [m for m in members if isinstance(m, inspect.StructType)]
    if path[-1] in {s.tag_field for s in structs}:
        return [str(s.tag) for s in structs]
    found = _type_at(path, data, kind)
    literals = found.types if isinstance(found, inspect.UnionType) else (found,)
    return [str(v) for one in literals if isinstance(one, inspect.LiteralType) for v in one.values]


def _type_at(path: list[str], data: Any, kind: Any) -> inspect.Type:
    return _pick(_static_type(path, data, kind), _dig(data, path))


def _static_type(path: list[str], data: Any, kind: Any) -> inspect.Type:
    """The declared type at a path; unions on the way are resolved by the tags in the data."""
    info = inspect.type_info(kind)
    for step in path:
        info = _descend(_pick(info, data), step)
        data = _dig(data, [step])
    return info


def _descend(info: inspect.Type, step: str) -> inspect.Type:
    if isinstance(info, inspect.StructType):
        return next((f.type for f in info.fields if f.encode_name == step), inspect.AnyType())
    if isinstance(info, inspect.DictType):
        return info.value_type
    if isinstance(info, inspect.ListType | inspect.VarTupleType):
        return info.item_type
    return inspect.AnyType()


def _pick(info: inspect.Type, data: Any) -> inspect.Type:
    if not isinstance(info, inspect.UnionType):
        return info
    structs = [t for t in info.types if isinstance(t, inspect.StructType)]
    tagged = [t for t in structs if isinstance(data, dict) and data.get(str(t.tag_field)) == t.tag]
    return tagged[0] if tagged else structs[0] if len(structs) == 1 else info
