"""Bodies that do not fit their model: one line that names the field, what would be valid, and what was given."""

import json
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from isoflop.engine.server.errors import ApiError
from isoflop.engine.server.protocol import TAGS

MOST_SHOWN = 60  # characters of a value
MOST_NAMED = 100  # of a field, which may be a client's own word
MOST_ITEMS = 3  # of a list or an object, and of the objects inside it
KEY = "[key]"  # pydantic's, for what is wrong with a key and not with its value


async def tell_invalid(request: Request, error: Exception) -> JSONResponse:
    """Handler of such bodies: the first mistake."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        why = first.get("ctx", {}).get("error", "")
        return ApiError(400, f"body: is not valid JSON, at character {first['loc'][-1]}: {why}").response()
    where = ".".join(str(part)[:MOST_NAMED] for part in first["loc"][1:] if part not in TAGS and part != KEY)
    return ApiError(400, f"{where or 'body'}: {_said(first, bool(where))}", where or None).response()


def _said(error: Any, inside: bool) -> str:
    """What is wrong. `inside`: with a field, and not with the body as a whole."""
    kind: str = error["type"]
    if kind in _ALONE:
        return _ALONE[kind]
    if not inside:
        return "must be a JSON object; if it is one, send it with Content-Type: application/json"
    given = error["input"]
    bounds = {name: f"{bound:g}" if isinstance(bound, float) else bound for name, bound in error.get("ctx", {}).items()}
    valid = _MUST[kind].format(**bounds) if kind in _MUST else _as_pydantic(error["msg"])
    if kind in ("too_short", "too_long", "string_too_short", "string_too_long"):
        return f"must have {valid}, and has {len(given)}"
    return f"must be {valid}, not {shown(given)}"


def _as_pydantic(message: str) -> str:
    """Its own words, and those of protocol.py, in the middle of a sentence."""
    return message.removeprefix("Input should be ").replace("False", "false")


_ALONE = {
    "none_required": "is not served here; leave it out",
    "extra_forbidden": "is not known here; leave it out",
    "missing": "is missing, and must be given",
}
_MUST = {
    "string_type": "a string",
    "string_unicode": "a string without half a character",
    "bool_type": "true or false",
    "int_type": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
    "model_attributes_type": "an object",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "string_pattern_mismatch": 'a token\'s number, such as "42"',
    "too_short": "at least {min_length} item(s)",
    "too_long": "at most {max_length} items",
    "string_too_short": "at least {min_length} character(s)",
    "string_too_long": "at most {max_length} characters",
}


def shown(value: Any) -> str:
    """A value as JSON has it, the beginning of it where it is long."""
    text = _json(value, 2)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}.."


def _json(value: Any, depth: int) -> str:
    """At most a few items of each list and object, and no deeper than `depth` of them."""
    match value:
        case str():
            return json.dumps(value[: MOST_SHOWN + 1], ensure_ascii=False)
        case list() | dict() if depth == 0:
            return ".."
        case list():
            return f"[{_some([_json(item, depth - 1) for item in value[:MOST_ITEMS]], len(value))}]"
        case dict():
            items = list(value.items())[:MOST_ITEMS]
            return f"{{{_some([f'{_json(k, 0)}: {_json(v, depth - 1)}' for k, v in items], len(value))}}}"
        case _:
            return json.dumps(value)


def _some(items: list[str], n: int) -> str:
    return ", ".join([*items, ".."] if n > len(items) else items)
