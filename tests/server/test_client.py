"""What the real `openai` client gets."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from serving import CONTEXT, Served, serving

import isoflop


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base + "/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def greedy(checkpoint: Path, prompt: bytes, n: int) -> list[int]:
    model, tokens = isoflop.load(checkpoint), list(prompt)
    with torch.no_grad():
        for _ in range(n):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens[len(prompt) :]


def test_a_completion_is_the_models(client: openai.OpenAI, checkpoint: Path) -> None:
    expected = bytes(greedy(checkpoint, b"def f(", 12))
    got = client.completions.create(model="tiny", prompt="def f(", temperature=0, max_tokens=12, logprobs=2)
    choice = got.choices[0]
    assert choice.text == expected.decode(errors="replace") and choice.finish_reason == "length"
    assert got.usage is not None and (got.usage.prompt_tokens, got.usage.completion_tokens) == (6, 12)
    told = choice.logprobs
    assert told is not None and told.token_logprobs is not None and told.top_logprobs is not None
    assert told.tokens is not None and len(told.tokens) == len(told.token_logprobs) == 12
    assert all(0 < len(top) <= 2 for top in told.top_logprobs)
    with torch.no_grad():
        first = isoflop.load(checkpoint)(torch.tensor([list(b"def f(")]))[0, -1].log_softmax(-1)
    assert told.token_logprobs[0] == pytest.approx(float(first.max()), abs=1e-4)


def test_streams_say_the_same(client: openai.OpenAI) -> None:
    same: dict[str, Any] = {"model": "tiny", "prompt": "x = ", "seed": 5, "max_tokens": 40, "n": 2, "stop": ["\n", "é"]}
    whole = client.completions.create(**same)
    texts, reasons = ["", ""], [None, None]
    usage = None
    for event in client.completions.create(**same, stream=True, stream_options={"include_usage": True}):
        usage = event.usage or usage
        for choice in event.choices:
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
    assert texts == [choice.text for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert usage is not None and whole.usage is not None and usage.total_tokens == whole.usage.total_tokens
    assert not any("\n" in text for text in texts)


def test_seeds(client: openai.OpenAI) -> None:
    def said(seed: int | None) -> str:
        return client.completions.create(model="tiny", prompt="a", seed=seed, max_tokens=20).choices[0].text

    assert said(1) == said(1) != said(2)
    assert said(-1) == said(-1)
    assert len({said(None) for _ in range(3)}) == 3


def test_biases(client: openai.OpenAI) -> None:
    """As far up as they go, a token is always taken; as far down, never."""
    got = client.completions.create(model="tiny", prompt="a", max_tokens=5, logit_bias={"120": 100})
    assert got.choices[0].text == "xxxxx"
    without = {str(byte): -100 for byte in range(256) if byte not in (121, 122)}
    got = client.completions.create(model="tiny", prompt="a", max_tokens=20, logit_bias=without)
    assert set(got.choices[0].text) <= {"y", "z"}


def test_chat(client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    got = client.chat.completions.create(
        model="tiny", messages=messages, seed=3, max_completion_tokens=15, logprobs=True, top_logprobs=3
    )
    choice = got.choices[0]
    assert choice.message.role == "assistant" and choice.finish_reason in ("length", "stop")
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert all(len(entry.top_logprobs) == 3 for entry in choice.logprobs.content)
    streamed, role = "", None
    for chunk in client.chat.completions.create(
        model="tiny", messages=messages, seed=3, max_completion_tokens=15, stream=True
    ):
        role = role or chunk.choices[0].delta.role
        streamed += chunk.choices[0].delta.content or ""
    assert (role, streamed) == ("assistant", choice.message.content)


def test_what_changes_nothing_is_taken(client: openai.OpenAI) -> None:
    """And so is a null in the place of whatever is not served."""
    harmless: dict[str, Any] = {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    harmless |= {"parallel_tool_calls": True, "tool_choice": "none", "modalities": ["text"], "prompt_cache_key": "x"}
    harmless |= {"safety_identifier": "x", "tools": None, "reasoning_effort": None, "stream_options": None}
    messages: Any = [{"role": "user", "content": "x", "name": None}]
    asked: dict[str, Any] = {"model": "tiny", "messages": messages, "seed": 1, "max_tokens": 4}
    got = [client.chat.completions.create(**asked, extra_body=more) for more in (harmless, {})]
    assert got[0].choices[0].message == got[1].choices[0].message


def test_schemas_are_obeyed(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"age": {"type": "integer", "maximum": 99, "minimum": 0}, "ok": {"type": "boolean"}},
        "required": ["age", "ok"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    got = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "?"}], response_format=form, max_tokens=64, n=3
    )
    for choice in got.choices:
        value = json.loads(choice.message.content or "")
        assert set(value) == {"age", "ok"} and 0 <= value["age"] <= 99 and choice.finish_reason == "stop"
    matched = client.completions.create(model="tiny", prompt="a", extra_body={"regex": "[a-f]{4}-[0-9]{2}"})
    assert re.fullmatch("[a-f]{4}-[0-9]{2}", matched.choices[0].text)


def test_best_of(client: openai.OpenAI) -> None:
    got = client.completions.create(model="tiny", prompt="ab", n=2, best_of=6, seed=0, max_tokens=8, logprobs=0)
    all_of = client.completions.create(model="tiny", prompt="ab", n=6, seed=0, max_tokens=8, logprobs=0)
    assert got.usage is not None and got.usage.completion_tokens == 48 and len(got.choices) == 2

    def mean(choice: Any) -> float:
        values: list[float] = choice.logprobs.token_logprobs
        return sum(values) / len(values)

    ranked = sorted(all_of.choices, key=mean, reverse=True)
    assert [choice.text for choice in got.choices] == [choice.text for choice in ranked[:2]]


def test_many_prompts_and_prefixes(client: openai.OpenAI) -> None:
    long = "The quick brown fox jumps over the lazy dog. " * 5
    got = client.completions.create(model="tiny", prompt=[long + "a", long + "b", "c"], max_tokens=4, temperature=0)
    assert [choice.index for choice in got.choices] == [0, 1, 2]
    again = client.completions.create(model="tiny", prompt=long + "a", max_tokens=4, temperature=0)
    assert again.choices[0].text == got.choices[0].text
    assert again.usage is not None and again.usage.prompt_tokens_details is not None
    assert (again.usage.prompt_tokens_details.cached_tokens or 0) >= 200
    ids = client.completions.create(model="tiny", prompt=list(b"abc"), max_tokens=4, temperature=0)
    assert (
        ids.choices[0].text
        == client.completions.create(model="tiny", prompt="abc", max_tokens=4, temperature=0).choices[0].text
    )


def test_models_and_errors(client: openai.OpenAI) -> None:
    models = client.models.list().data
    assert [model.id for model in models] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served here; 'tiny' is"):
        client.completions.create(model="gpt", prompt="a")
    with pytest.raises(openai.BadRequestError, match=rf"are more than the {CONTEXT}"):
        client.completions.create(model="tiny", prompt="a" * 600)
    with pytest.raises(openai.BadRequestError, match="json schema: Invalid type: no"):
        form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "no"}}}
        client.completions.create(model="tiny", prompt="a", extra_body={"response_format": form})


def test_text_and_tokens(server: Served) -> None:
    status, got = server.ask("POST", "/tokenize", {"prompt": "hé"})
    assert status == 200 and got == {"tokens": list("hé".encode()), "count": 3, "max_model_len": CONTEXT}
    assert server.ask("POST", "/detokenize", {"tokens": got["tokens"]}) == (200, {"prompt": "hé"})
    assert server.ask("GET", "/health")[1]["status"] == "ok"
    text = server.ask("GET", "/metrics")[1]
    assert "isoflop_output_tokens_total" in text and 'isoflop_engine{name="pages"}' in text


def test_drafts(checkpoint: Path, server: Served) -> None:
    """The same text with guesses, and counters of them."""
    asked = {"model": "tiny", "prompt": "abababab", "temperature": 0, "max_tokens": 40}
    wanted = server.ask("POST", "/v1/completions", asked)[1]["choices"][0]["text"]
    with serving(checkpoint, "--draft", "ngram") as drafting:
        assert drafting.ask("POST", "/v1/completions", asked)[1]["choices"][0]["text"] == wanted
        drafted, accepted = (drafting.metric(f"isoflop_{name}_tokens_total") for name in ("drafted", "accepted"))
        assert 0 < accepted <= drafted
