"""Output constrained by a schema or an expression, and grammars that mean harm."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.data.tokenizer import train_byte_pair
from isoflop.engine.draw import Row, sample
from isoflop.engine.grammar import Grammars
from isoflop.engine.sampling import Grammar, JsonSchema, Regex, Sampling
from isoflop.engine.vocabulary import Vocabulary, open_vocabulary

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["x", "y"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


def vocabulary(folder: Path, ends: list[int], pairs: bool) -> Vocabulary:
    (folder / "config.json").write_text(json.dumps({"eos_token_id": ends}))
    if pairs:
        (folder / "tokenizer.json").write_text(train_byte_pair([json.dumps(SCHEMA).encode() * 9], 290).json)
    return open_vocabulary(folder, 300 if pairs else 256)


@pytest.fixture(scope="module", params=[([0], True), ([0, 3], False), ([], True)], ids=["pairs", "bytes", "endless"])
def words(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Vocabulary:
    ends, pairs = request.param
    return vocabulary(tmp_path_factory.mktemp("words"), ends, pairs)


def generated(words: Vocabulary, grammar: Grammar, seed: int, most: int = 400) -> tuple[str, bool]:
    """Random tokens under a grammar, and whether the text ended."""
    guide, history = Grammars(words).guide(grammar), [5]
    row = Row(Sampling(grammar=grammar), seed, 1, history, guide)
    generator = torch.Generator().manual_seed(seed)
    while len(history) < most:
        token = sample(torch.randn(1, len(words.pieces), generator=generator), [row])[0].token
        if token in words.end_tokens:
            return words.decode(history[1:]), True
        guide.accept(token)
        history.append(token)
        if guide.finished:
            return words.decode(history[1:]), True
    return words.decode(history[1:]), False


@settings(max_examples=5)
@given(st.integers(0, 999))
def test_a_schema_is_obeyed(words: Vocabulary, seed: int) -> None:
    text, ended = generated(words, JsonSchema(json.dumps(SCHEMA)), seed)
    assert ended, text
    value = json.loads(text)
    assert set(value) == {"name", "age", "tags"} and 0 <= value["age"] <= 150 and len(value["name"]) <= 8
    assert all(tag in ("x", "y") for tag in value["tags"])
    assert text == json.dumps(value, separators=(",", ":"), ensure_ascii=False) or "\\" in text


@settings(max_examples=5)
@given(st.integers(0, 999), st.sampled_from([r"[0-9]{3}-[a-z]{2,5}", r"(yes|no|maybe)!", r"é{2}ü?x"]))
def test_an_expression_is_matched(words: Vocabulary, seed: int, pattern: str) -> None:
    text, ended = generated(words, Regex(pattern), seed)
    assert ended and re.fullmatch(pattern, text)


def test_drafts_are_taken_back(words: Vocabulary) -> None:
    guide = Grammars(words).guide(Regex("[ab]{3}"))
    first = guide.allowed()
    for text in ("a", "b", "a", "b"):
        guide.accept(words.encode(text)[0])  # the last is one too many
    guide.rollback(3)
    guide.accept(words.encode("b")[0])
    assert not guide.finished
    guide.rollback(2)
    assert torch.equal(guide.allowed(), first)


HOSTILE = {
    "bomb": Regex("((a{1,1000}){1,1000}){1,1000}b"),
    "backtracking": Regex("(a|aa)+(b|[a-z]{1,30}){1,300}x"),
    "states": Regex("(.*a.{20}){20}"),
    "empty schema of itself": JsonSchema('{"$ref": "#"}'),
    "wide": JsonSchema(json.dumps({"anyOf": [{"properties": {f"a{i}_{j}": {} for j in range(9)}} for i in range(99)]})),
    "patterns": JsonSchema(
        json.dumps({"type": "object", "properties": {f"k{i}": {"pattern": "(a|b)*c.{30}"} for i in range(900)}})
    ),
    "long": JsonSchema('{"type": "array", "minItems": 1000000, "items": {"type": "string", "minLength": 1000000}}'),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_grammars_end_soon(words: Vocabulary, name: str) -> None:
    """Refused at once, or obeyed; or, beyond the bounds on work, the text ends. Never long in one step."""
    grammars, started = Grammars(words), time.perf_counter()
    try:
        guide = grammars.guide(HOSTILE[name])
    except ValueError as told:
        assert "\n" not in str(told)
        return
    for _ in range(40):
        allowed = guide.allowed()
        guide.accept(int(allowed.nonzero()[len(allowed.nonzero()) // 2]))
    assert time.perf_counter() - started < 10


@pytest.mark.parametrize(
    ("grammar", "said"),
    [
        (Regex("(a"), "regular expression: unclosed group"),
        (Regex("a(?=b)"), "regular expression: look-around"),
        (Regex(r"(a)\1"), "regular expression: backreferences are not supported"),
        (Regex("a" * 70_000), "regular expression: over 65536 bytes"),
        (JsonSchema("{"), "json schema: "),
        (JsonSchema("[1]"), "json schema: "),
        (JsonSchema('{"type": "blah"}'), "json schema: Invalid type: blah"),
        (JsonSchema('{"$ref": "http://127.0.0.1:9/x"}'), "json schema: Resource"),
        (JsonSchema('{"type": "array", "items": ' * 900 + "{}" + "}" * 900), "json schema: "),
    ],
)
def test_refusals(words: Vocabulary, grammar: Grammar, said: str) -> None:
    with pytest.raises(ValueError) as told:
        Grammars(words).guide(grammar)
    assert str(told.value).startswith(said) and "\n" not in str(told.value)
