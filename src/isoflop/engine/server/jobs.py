"""From a request's body to what the engine is asked, or a refusal that says which field is wrong."""

import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from isoflop.engine.request import Request
from isoflop.engine.sampling import SEEDS, Grammar, Guide, JsonSchema, Regex, Sampling
from isoflop.engine.server.errors import ApiError
from isoflop.engine.server.protocol import (
    ChatRequest,
    Choices,
    CompletionRequest,
    JsonObjectFormat,
    JsonSchemaFormat,
    TextFormat,
)
from isoflop.engine.template import Message, Template
from isoflop.engine.vocabulary import Vocabulary

COMPLETION_TOKENS = 16  # OpenAI's default
MOST_ECHOED = 1 << 19  # log probabilities of prompts in one answer, the alternatives among them


class Job(NamedTuple):
    """One choice: its request, and how its text ends. `start`: its text is a text of its own, not one that goes on;
    `echo`: its prompt is part of it."""

    request: Request
    stops: tuple[str, ...]
    include_stop: bool
    start: bool
    echo: bool = False

    @property
    def hidden(self) -> tuple[int, ...]:
        """Tokens that end the output and are no part of its text."""
        return self.request.sampling.stop_tokens


@dataclass
class Desk:
    """Knows the model's text side; used from any thread. `guide`: the engine's, quick for a grammar that it has seen;
    `context`: the most tokens of prompt and output."""

    name: str
    vocabulary: Vocabulary
    template: Template
    guide: Callable[[Grammar], Guide]
    context: int

    def completion(self, body: CompletionRequest) -> list[Job]:
        """Prompts in order, each as often as there are choices (or `best_of`)."""
        self._check_model(body.model)
        n = body.n or 1
        if body.max_tokens == 0 and not body.echo:
            raise ApiError(400, "max_tokens 0: must be 1 or more; 0 only with echo", "max_tokens")
        if body.best_of is not None and body.best_of < n:
            raise ApiError(400, f"best_of {body.best_of}: must be at least n, {n}", "best_of")
        if body.best_of is not None and body.best_of > n and body.stream:
            raise ApiError(400, "best_of: which is best is known at the end; it cannot be streamed", "best_of")
        prompts = self._prompts(body)
        if len(prompts) * max(n, body.best_of or n) > 256:
            raise ApiError(400, "prompt: more than 256 choices in one request", "prompt")
        told = body.logprobs if body.best_of is None or body.best_of == n else body.logprobs or 0
        most = COMPLETION_TOKENS if body.max_tokens is None else body.max_tokens
        jobs = [job for prompt in prompts for job in self._jobs(prompt, body, most, told, body.best_of or n, (), False)]
        return _echoing(jobs, body.logprobs) if body.echo else jobs

    def chat(self, body: ChatRequest) -> list[Job]:
        """The choices for one conversation."""
        self._check_model(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "top_logprobs: needs logprobs to be true", "top_logprobs")
        if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
            raise ApiError(400, "max_tokens: differs from max_completion_tokens, its newer name", "max_tokens")
        turns = [Message(message.role, message.text(), message.name) for message in body.messages]
        try:
            prompt = self.vocabulary.encode(self.template.render(turns))
        except ValueError as error:
            raise ApiError(400, f"messages: {error}", "messages") from None
        wanted = body.max_completion_tokens or body.max_tokens or max(1, self.context - len(prompt))
        told = (body.top_logprobs or 0) if body.logprobs else None
        return self._jobs(prompt, body, wanted, told, body.n or 1, self.template.stops, True)

    def encode(self, text: str, whole: bool, param: str = "prompt") -> list[int]:
        """Tokens of a text."""
        try:
            return self.vocabulary.encode(text, whole)
        except ValueError as error:
            raise ApiError(400, f"{param}: {error}", param) from None

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens."""
        try:
            return self.vocabulary.decode(tokens)
        except ValueError as error:
            raise ApiError(400, f"tokens: {error}", "tokens") from None

    def check_model(self, name: str | None) -> None:
        """Raises ApiError 404 where another model is meant."""
        self._check_model(name)

    def _check_model(self, name: str | None) -> None:
        if name is not None and name != self.name:
            raise ApiError(
                404, f"model: '{name[:100]}' is not served here; '{self.name}' is", "model", "model_not_found"
            )

    def _prompts(self, body: CompletionRequest) -> list[list[int]]:
        if isinstance(body.prompt, str):
            return [self.encode(body.prompt, whole=True)]
        tokens = [part for part in body.prompt if isinstance(part, int)]
        if tokens:
            return [self._known(tokens)]
        parts = [part for part in body.prompt if not isinstance(part, int)]
        return [self.encode(part, whole=True) if isinstance(part, str) else self._known(part) for part in parts]

    def _known(self, tokens: list[int]) -> list[int]:
        most = len(self.vocabulary.pieces) - 1
        if max(tokens) > most:
            raise ApiError(400, f"prompt: token {max(tokens)} is not among the model's 0 to {most}", "prompt")
        return tokens

    def _jobs(
        self,
        prompt: list[int],
        body: Choices,
        most: int,
        logprobs: int | None,
        n: int,
        stops: tuple[str, ...],
        start: bool,
    ) -> list[Job]:
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "stream_options: needs stream to be true", "stream_options")
        prompt = self._whole(prompt, most)
        said = [body.stop] if isinstance(body.stop, str) else body.stop or []
        seed = secrets.randbits(64) if body.seed is None else body.seed
        sampling = self._sampling(body, most, logprobs)
        if sampling.grammar is not None:
            self._check_grammar(sampling.grammar)
        jobs = []
        for i in range(n):
            own = msgspec.structs.replace(sampling, seed=(seed + i) % SEEDS)
            request = Request(uuid.uuid4().hex, tuple(prompt), own)
            jobs.append(Job(request, (*said, *stops), body.include_stop_str_in_output, start))
        return jobs

    def _whole(self, prompt: list[int], most: int) -> list[int]:
        """With a token to begin from, and short enough."""
        if not prompt:
            begin = self.vocabulary.begin_token
            if begin is None:
                raise ApiError(400, "prompt: is empty, and the model has no token that begins a text", "prompt")
            prompt = [begin]
        if len(prompt) + most > self.context:
            raise ApiError(
                400,
                f"prompt: {len(prompt)} tokens, and {most} of output, are more than the {self.context} "
                "that the model can hold",
                "prompt",
                "context_length_exceeded",
            )
        return prompt

    def _sampling(self, body: Choices, most: int, logprobs: int | None) -> Sampling:
        ends = () if body.ignore_eos else self.vocabulary.end_tokens
        return Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_k=body.top_k,
            top_p=1.0 if body.top_p is None else body.top_p,
            min_p=body.min_p,
            repetition_penalty=body.repetition_penalty,
            presence_penalty=body.presence_penalty or 0.0,
            frequency_penalty=body.frequency_penalty or 0.0,
            logit_bias=self._biases(body),
            logprobs=logprobs,
            prompt_logprobs=None if most else logprobs or 0,
            grammar=_grammar(body),
            max_tokens=most,
            stop_tokens=tuple(dict.fromkeys((*ends, *body.stop_token_ids))),
            ignore_eos=body.ignore_eos,
        )

    def _biases(self, body: Choices) -> tuple[tuple[int, float], ...]:
        biases = tuple((int(token), bias) for token, bias in (body.logit_bias or {}).items())
        unknown = next((token for token, _ in biases if token >= len(self.vocabulary.pieces)), None)
        if unknown is not None:
            raise ApiError(400, f"logit_bias: token {unknown} is not among the model's", "logit_bias")
        return biases

    def _check_grammar(self, grammar: Grammar) -> None:
        try:
            self.guide(grammar)
        except ValueError as error:
            param = "response_format" if isinstance(grammar, JsonSchema) else "regex"
            raise ApiError(400, f"{param}: {error}", param) from None


def _echoing(jobs: list[Job], logprobs: int | None) -> list[Job]:
    """The same, each with its prompt. Log probabilities of a prompt are asked for once, with the first job that has it
    (which the runner lets go ahead); where they are all there is to do, each asks for itself."""
    n_told = sum(len(job.request.prompt) for job in jobs) * (1 + (logprobs or 0))
    if logprobs is not None and n_told > MOST_ECHOED:
        raise ApiError(400, f"logprobs: {n_told} of prompts in one answer; at most {MOST_ECHOED} are told", "logprobs")
    seen: set[tuple[int, ...]] = set()
    echoing = []
    for job in jobs:
        request = job.request
        if logprobs is not None and request.prompt not in seen:
            seen.add(request.prompt)
            scored = msgspec.structs.replace(request.sampling, prompt_logprobs=logprobs)
            request = msgspec.structs.replace(request, sampling=scored)
        echoing.append(job._replace(request=request, start=True, echo=True))
    return echoing


def _document(schema: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(schema).decode()
    except (UnicodeEncodeError, RecursionError) as error:
        said = (
            "is nested too deeply" if isinstance(error, RecursionError) else "holds half a character (a lone surrogate)"
        )
        raise ApiError(400, f"response_format: the schema {said}", "response_format") from None


def _grammar(body: Choices) -> Grammar | None:
    if body.regex is not None:
        if body.response_format is not None and not isinstance(body.response_format, TextFormat):
            raise ApiError(400, "regex: the output can obey one of regex and response_format", "regex")
        return Regex(body.regex)
    match body.response_format:
        case JsonObjectFormat():
            return JsonSchema('{"type": "object"}')
        case JsonSchemaFormat(json_schema=named):
            return JsonSchema(_document(named.schema_))
        case _:
            return None
