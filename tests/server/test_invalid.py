"""What a client is told of a body that is not valid: the field, what it may be, and what was given. Of a field that can
be several things, what is wrong is said of the one that was meant."""

import json
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import Served

from isoflop.engine.server.invalid import MOST_SHOWN, shown

TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "x"}]
PROMPT = "prompt: must be a string, or a list of one or more strings, tokens (integers) or lists of tokens, not "
FORMAT = 'response_format: must be an object whose type is "text", "json_object" or "json_schema", not '
STOP, CONTENT = (
    "stop: must be a string or a list of strings, not ",
    "messages.0.content: must be a string or a list of ",
)
ANY = [3, 1.5, True, {}]
TOOL = {"type": "function", "function": {"name": "f"}}


def schema(value: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": value}


OF_TEXT: list[tuple[dict[str, Any], str]] = [
    *(({"prompt": value}, PROMPT + shown(value)) for value in (*ANY, None, [], [None], [1.5], [True], [{}])),
    ({"prompt": ["a", 1]}, "prompt.1: must be a string, not 1"),
    ({"prompt": [1, "a"]}, 'prompt.1: must be an integer, not "a"'),
    ({"prompt": [1, [1]]}, "prompt.1: must be an integer, not [1]"),
    ({"prompt": [[1], "a"]}, 'prompt.1: must be a list, not "a"'),
    ({"prompt": [[1], []]}, "prompt.1: must have at least 1 item(s), and has 0"),
    ({"prompt": [[1, 1.5]]}, "prompt.0.1: must be an integer, not 1.5"),
    ({"prompt": [-1]}, "prompt.0: must be at least 0, not -1"),
    ({"prompt": ["a"] * 65}, "prompt: must have at most 64 items, and has 65"),
    *(({"stop": value}, STOP + shown(value)) for value in ANY),
    ({"stop": ["a", 3]}, "stop.1: must be a string, not 3"),
    ({"stop": [None]}, "stop.0: must be a string, not null"),
    ({"stop": ""}, "stop: must have at least 1 character(s), and has 0"),
    ({"stop": ["a", ""]}, "stop.1: must have at least 1 character(s), and has 0"),
    ({"stop": "a" * 1025}, "stop: must have at most 1024 characters, and has 1025"),
    ({"stop": ["a"] * 17}, "stop: must have at most 16 items, and has 17"),
    *(({"response_format": value}, FORMAT + shown(value)) for value in (*ANY, "json_object", {"type": "yaml"})),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema: is missing, and must be given"),
    ({"response_format": schema(3)}, "response_format.json_schema: must be an object, not 3"),
    ({"response_format": schema({})}, "response_format.json_schema.schema: is missing, and must be given"),
    ({"response_format": schema({"schema": "a"})}, 'response_format.json_schema.schema: must be an object, not "a"'),
    ({"response_format": {"type": "text", "a": 1}}, "response_format.a: is not known here; leave it out"),
    ({"stream_options": [], "stream": True}, "stream_options: must be an object, not []"),
    ({"stream_options": {"include_usage": 1}}, "stream_options.include_usage: must be true or false, not 1"),
    ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation: must be false, not true"),
    ({"temperature": 3}, "temperature: must be at most 2, not 3"),
    ({"logit_bias": {"a": 1}}, 'logit_bias.a: must be a token\'s number, such as "42", not "a"'),
    ({"logit_bias": {"1": 200}}, "logit_bias.1: must be at most 100, not 200"),
    ({"logprobs": True}, "logprobs: must be an integer, not true"),
    ({"n": "2"}, 'n: must be an integer, not "2"'),
]
OF_CHAT: list[tuple[dict[str, Any], str]] = [
    *(
        (
            {"messages": [{"role": "user", "content": value}]},
            CONTENT + f'parts {{"type": "text", "text": ".."}}, not {t}',
        )
        for value, t in ((None, "null"), (3, "3"), ({}, "{}"))
    ),
    *(
        ({"messages": [{"role": "user", "content": [part]}]}, f"messages.0.content.0{said}")
        for part, said in (
            ("a", ': must be an object, not "a"'),
            ({"type": "text"}, ".text: is missing, and must be given"),
            ({"type": "text", "text": 3}, ".text: must be a string, not 3"),
            ({"type": "image_url", "image_url": {"url": "x"}}, ".type: must be 'text', not \"image_url\""),
            ({"type": "text", "text": "a", "detail": 1}, ".detail: is not known here; leave it out"),
        )
    ),
    ({"messages": "hi"}, 'messages: must be a list, not "hi"'),
    ({"messages": ["hi"]}, 'messages.0: must be an object, not "hi"'),
    ({"messages": USER, "tool_choice": "auto"}, "tool_choice: must be 'none', not \"auto\""),
    ({"messages": USER, "tool_choice": TOOL}, f"tool_choice: must be 'none', not {json.dumps(TOOL)}"),
    ({"messages": USER, "logprobs": 1}, "logprobs: must be true or false, not 1"),
]


@pytest.mark.parametrize(("wrong", "said"), OF_TEXT, ids=[said[:40] for _, said in OF_TEXT])
def test_completions(server: Served, wrong: dict[str, Any], said: str) -> None:
    status, answer = server.ask("POST", TEXT, {"prompt": "a", "max_tokens": 1} | wrong)
    assert status == 400 and answer["error"]["message"] == said
    assert answer["error"]["param"] == said.split(": ")[0]


@pytest.mark.parametrize(("wrong", "said"), OF_CHAT, ids=[said[:40] for _, said in OF_CHAT])
def test_conversations(server: Served, wrong: dict[str, Any], said: str) -> None:
    status, answer = server.ask("POST", CHAT, {"max_tokens": 1} | wrong)
    assert status == 400 and answer["error"]["message"] == said
    assert answer["error"]["param"] == said.split(": ")[0]


def test_with_openais_client(server: Served) -> None:
    with openai.OpenAI(base_url=f"{server.base}/v1", api_key="none", max_retries=0) as client:
        wrong: Any = [1, "a"]
        with pytest.raises(openai.BadRequestError) as refused:
            client.completions.create(model="tiny", prompt=wrong)
    assert refused.value.param == "prompt.1" and 'must be an integer, not "a"' in refused.value.message


@pytest.mark.parametrize("body", [b"{", b'{"prompt": }', b"", b"3", b'"a"', b"null"])
def test_no_object(server: Served, body: bytes) -> None:
    status, answer = server.ask("POST", TEXT, body)
    assert status == 400 and answer["error"]["message"].startswith("body: ") and answer["error"]["param"] is None


SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20)


@given(VALUES)
def test_values_are_shown_as_json(value: Any) -> None:
    text = shown(value)
    assert len(text) <= MOST_SHOWN + 2
    if ".." not in text:
        assert json.loads(text) == value


def test_large_values_are_shown_in_part() -> None:
    deep: Any = 1
    for _ in range(10**5):
        deep = [deep]
    assert shown(deep) == "[[..]]"
    assert shown(list(range(10**6))) == "[0, 1, 2, ..]"
    assert shown({"a": {"b": {"c": 1}}, "d": "x" * 10**6}).startswith('{"a": {"b": ..}, "d": "xxx')
