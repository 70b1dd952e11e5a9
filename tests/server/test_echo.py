"""Texts scored by the real `openai` client: a prompt is echoed with the log probabilities of the plain model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
from serving import CONTEXT, Served

import isoflop


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=server.base + "/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Any:
    return isoflop.load(checkpoint)


@torch.no_grad()
def plain(model: Any, tokens: list[int]) -> torch.Tensor:
    """Log probabilities of what follows each token, [T, V]."""
    logprobs_TV: torch.Tensor = model(torch.tensor([tokens]))[0].log_softmax(-1)
    return logprobs_TV


def assert_scored(model: Any, choice: Any, prompt: bytes, n_output: int, k: int) -> None:
    """Prompt and output, token for token."""
    told = choice.logprobs
    lists = (told.tokens, told.token_logprobs, told.top_logprobs, told.text_offset)
    assert {len(entries) for entries in lists} == {len(prompt) + n_output}
    tokens = list(prompt) + [ord(name) for name in told.tokens[len(prompt) :]]
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    for i, row_V in enumerate(plain(model, tokens)[:-1]):
        value, top = told.token_logprobs[i + 1], told.top_logprobs[i + 1]
        assert value == pytest.approx(float(row_V[tokens[i + 1]]), abs=1e-3)
        assert top[told.tokens[i + 1]] == value and k <= len(top) <= k + 1
        assert sorted(top.values())[-k:] == pytest.approx(sorted(row_V.topk(k).values.tolist()), abs=1e-3)
    for name, offset in zip(told.tokens, told.text_offset, strict=True):
        assert name.startswith("bytes:") or choice.text[offset : offset + len(name)] == name


@pytest.mark.parametrize("n", [0, 1, 7])
def test_prompts_are_scored(client: openai.OpenAI, model: Any, n: int) -> None:
    """Several at once, two of them the same, texts or tokens."""
    texts = ["def f(x):\n    return x", "a", "The same again, and again", "The same again, and again"]
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": n, "logprobs": 2, "echo": True}
    asked["logit_bias"] = {str(byte): -100 for byte in (0, *range(128, 256))}  # text comes out, one byte a character
    for prompts in (texts, [list(text.encode()) for text in texts]):
        got = client.completions.create(model="tiny", prompt=prompts, **asked)
        assert [choice.index for choice in got.choices] == [0, 1, 2, 3]
        assert got.usage is not None and got.usage.completion_tokens == 4 * n
        for text, choice in zip(texts, got.choices, strict=True):
            assert choice.text.startswith(text) and choice.finish_reason == "length"
            assert len(choice.text) == len(text) + n
            assert_scored(model, choice, text.encode(), n, 2)


def test_what_was_in_the_cache_is_scored_too(client: openai.OpenAI, model: Any) -> None:
    prompt = "Again and again the same long words at the beginning of it. " * 6
    for _ in range(2):
        client.completions.create(model="tiny", prompt=prompt, max_tokens=2)
        got = client.completions.create(model="tiny", prompt=prompt, max_tokens=0, logprobs=1, echo=True)
        assert_scored(model, got.choices[0], prompt.encode(), 0, 1)


def test_several_choices_share_their_prompts_scores(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": ["ab ab ab", "cd"], "max_tokens": 6, "n": 3, "seed": 4, "logprobs": 0}
    got = client.completions.create(model="tiny", echo=True, **asked)
    without = client.completions.create(model="tiny", **asked)
    for i, (choice, other) in enumerate(zip(got.choices, without.choices, strict=True)):
        prompt = str(asked["prompt"][i // 3])
        assert choice.text == prompt + other.text
        assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
        first = got.choices[i // 3 * 3].logprobs
        assert first is not None and first.token_logprobs is not None
        assert choice.logprobs.token_logprobs[: len(prompt)] == first.token_logprobs[: len(prompt)]
    best = client.completions.create(model="tiny", echo=True, best_of=3, **(asked | {"n": 1, "logprobs": None}))
    assert all(choice.text.startswith(prompt) for choice, prompt in zip(best.choices, asked["prompt"], strict=True))
    assert best.choices[0].logprobs is None


def test_streams_echo(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"prompt": "echo!", "max_tokens": 9, "n": 2, "seed": 1, "logprobs": 1, "echo": True}
    whole = client.completions.create(model="tiny", **asked)
    texts, values = ["", ""], [[], []]  # type: tuple[list[str], list[list[float | None]]]
    for event in client.completions.create(model="tiny", stream=True, **asked):
        for choice in event.choices:
            texts[choice.index] += choice.text
            assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
            values[choice.index] += choice.logprobs.token_logprobs
    assert texts == [choice.text for choice in whole.choices]
    assert values == [choice.logprobs and choice.logprobs.token_logprobs for choice in whole.choices]


def test_as_an_evaluation_harness_asks(client: openai.OpenAI, model: Any) -> None:
    """Context and continuation in tokens, one token of output that is passed over: the continuation's log likelihood,
    and whether it is what the model itself would say."""
    pairs = [(b"The sky is", b" blue"), (b"x = ", b"1"), ("é".encode(), "é".encode())]
    with torch.no_grad():
        said = bytes([int(model(torch.tensor([list(b"abcabc")]))[0, -1].argmax())])
    pairs.append((b"abcabc", said))
    prompts = [list(context + more) for context, more in pairs]
    asked: dict[str, Any] = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    got = client.completions.create(model="tiny", prompt=prompts, **asked)
    for (context, more), choice in zip(pairs, got.choices, strict=True):
        told: Any = choice.logprobs
        values, tops = told.token_logprobs[len(context) : -1], told.top_logprobs[len(context) : -1]
        rows_NV = plain(model, list(context + more))[len(context) - 1 : -1]
        assert sum(values) == pytest.approx(sum(float(r[t]) for r, t in zip(rows_NV, more, strict=True)), abs=1e-3)
        names = told.tokens[len(context) : -1]
        likeliest = [max(top, key=top.__getitem__) == name for name, top in zip(names, tops, strict=True)]
        assert likeliest == [int(row.argmax()) == token for row, token in zip(rows_NV, more, strict=True)]
    assert likeliest == [True]


def test_stop_strings_are_looked_for_in_the_output_alone(client: openai.OpenAI) -> None:
    got = client.completions.create(model="tiny", prompt="stop", max_tokens=3, echo=True, stop="stop")
    assert got.choices[0].text.startswith("stop") and got.choices[0].finish_reason == "length"
    half = client.completions.create(model="tiny", prompt=[0xC3], max_tokens=1, logit_bias={"169": 100}, echo=True)
    assert half.choices[0].text == "é"


def test_limits(client: openai.OpenAI, model: Any) -> None:
    text = "a line of text, as long as the model can take, is scored to its end\n" * 20
    got = client.completions.create(model="tiny", prompt=text[:CONTEXT], max_tokens=0, logprobs=5, echo=True)
    assert_scored(model, got.choices[0], text[:CONTEXT].encode(), 0, 5)
    with pytest.raises(openai.BadRequestError, match=rf"are more than the {CONTEXT}"):
        client.completions.create(model="tiny", prompt=text[:CONTEXT], max_tokens=1, logprobs=5, echo=True)
    with pytest.raises(openai.BadRequestError, match="max_tokens 0: must be 1 or more; 0 only with echo"):
        client.completions.create(model="tiny", prompt="a", max_tokens=0)
