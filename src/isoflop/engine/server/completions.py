"""POST /v1/completions and POST /v1/chat/completions."""

import asyncio
import contextlib
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.types import Receive, Scope, Send

from isoflop.engine.server.errors import ApiError
from isoflop.engine.server.protocol import (
    Answer,
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatDelta,
    ChatRequest,
    Choices,
    Completion,
    CompletionChoice,
    CompletionRequest,
)
from isoflop.engine.server.service import Service, Work, event, unless_gone
from isoflop.engine.server.writing import Choice, Piece, chat_logprobs, completion_logprobs, usage

DONE = "data: [DONE]\n\n"
_STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"description": "whole, or events where `stream` is true", "content": {"text/event-stream": {}}}
}


def routes(service: Service) -> APIRouter:
    """The two paths."""
    router = APIRouter()

    @router.post("/v1/completions", response_model=Completion, responses=_STREAMED)
    async def completions(body: CompletionRequest, request: Request) -> Response:
        """Text that goes on from each prompt."""
        jobs = await asyncio.to_thread(service.desk.completion, body)
        n_prompts = len(jobs) // (body.best_of or body.n or 1)
        return await _answer(_Text(service, await service.begin(jobs), n_prompts, body), body, request)

    @router.post("/v1/chat/completions", response_model=ChatCompletion, responses=_STREAMED)
    async def chat(body: ChatRequest, request: Request) -> Response:
        """The assistant's next turn."""
        jobs = await asyncio.to_thread(service.desk.chat, body)
        return await _answer(_Chat(service, await service.begin(jobs)), body, request)

    return router


class _Form(ABC):
    """How an answer is written: whole, and as events."""

    def __init__(self, service: Service, work: Work, n_prompts: int, prefix: str) -> None:
        self.work, self._n_prompts = work, n_prompts
        self._vocabulary = service.desk.vocabulary
        self._head: dict[str, Any] = {
            "id": f"{prefix}-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": service.desk.name,
        }

    def opening(self) -> list[BaseModel]:
        """Events before the first piece."""
        return []

    @abstractmethod
    def chunk(self, pieces: list[Piece], with_usage: bool) -> BaseModel:
        """An event; without pieces, the one that tells the usage."""

    @abstractmethod
    def whole(self, written: dict[int, list[Piece]]) -> Completion | ChatCompletion:
        """The answer."""


class _Text(_Form):
    def __init__(self, service: Service, work: Work, n_prompts: int, body: CompletionRequest) -> None:
        super().__init__(service, work, n_prompts, "cmpl")
        self._body = body

    def chunk(self, pieces: list[Piece], with_usage: bool) -> Completion:
        told = usage(self.work.choices, self._n_prompts) if with_usage else None
        return Completion(**self._head, choices=[self._choice(p.choice, [p]) for p in pieces], usage=told)

    def whole(self, written: dict[int, list[Piece]]) -> Completion:
        kept = [c.index for c in best(self.work.choices, self._n_prompts, self._body.n or 1)]
        choices = [self._choice(place, written[index]) for place, index in enumerate(kept)]
        return Completion(**self._head, choices=choices, usage=usage(self.work.choices, self._n_prompts))

    def _choice(self, index: int, pieces: list[Piece]) -> CompletionChoice:
        told = tuple(entry for piece in pieces for entry in piece.told)
        return CompletionChoice(
            index=index,
            text="".join(piece.text for piece in pieces),
            logprobs=None if self._body.logprobs is None else completion_logprobs(told, self._vocabulary),
            finish_reason=pieces[-1].finish,
            stop_reason=pieces[-1].stop,
        )


class _Chat(_Form):
    def __init__(self, service: Service, work: Work) -> None:
        super().__init__(service, work, 1, "chatcmpl")

    def opening(self) -> list[BaseModel]:
        return [
            ChatChunk(**self._head, choices=[ChatDelta(index=c.index, delta=Answer(role="assistant", content=""))])
            for c in self.work.choices
        ]

    def chunk(self, pieces: list[Piece], with_usage: bool) -> ChatChunk:
        told = usage(self.work.choices, 1) if with_usage else None
        deltas = [
            ChatDelta(
                index=piece.choice,
                delta=Answer(content=piece.text),
                logprobs=chat_logprobs(piece.told, self._vocabulary) if piece.told else None,
                finish_reason=piece.finish,
                stop_reason=piece.stop,
            )
            for piece in pieces
        ]
        return ChatChunk(**self._head, choices=deltas, usage=told)

    def whole(self, written: dict[int, list[Piece]]) -> ChatCompletion:
        choices = [self._choice(choice, written[choice.index]) for choice in self.work.choices]
        return ChatCompletion(**self._head, choices=choices, usage=usage(self.work.choices, 1))

    def _choice(self, choice: Choice, pieces: list[Piece]) -> ChatChoice:
        told = tuple(entry for piece in pieces for entry in piece.told)
        return ChatChoice(
            index=choice.index,
            message=Answer(role="assistant", content="".join(piece.text for piece in pieces)),
            logprobs=chat_logprobs(told, self._vocabulary) if told else None,
            finish_reason=pieces[-1].finish,
            stop_reason=pieces[-1].stop,
        )


def best(choices: list[Choice], n_prompts: int, n: int) -> list[Choice]:
    """Of each prompt's choices the n of the highest mean log probability; all of them where there are no more."""
    each = len(choices) // n_prompts
    groups = [choices[i : i + each] for i in range(0, len(choices), each)]
    if each == n:
        return choices
    return [c for group in groups for c in sorted(group, key=lambda c: c.mean_logprob, reverse=True)[:n]]


async def _answer(form: _Form, body: Choices, request: Request) -> Response:
    if body.stream:
        counted = body.stream_options is not None and bool(body.stream_options.include_usage)
        return _Streamed(form, counted)
    try:
        return await unless_gone(request, _collected(form))
    finally:
        form.work.release()


class _Streamed(StreamingResponse):
    """Events; a client that has left before the first is let go of too."""

    def __init__(self, form: _Form, counted: bool) -> None:
        super().__init__(_events(form, counted), media_type="text/event-stream", headers=_STREAM_HEADERS)
        self._work = form.work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._work.release()


_STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def _collected(form: _Form) -> Response:
    written: dict[int, list[Piece]] = {}
    async with contextlib.aclosing(form.work.pieces()) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            written.setdefault(piece.choice, []).append(piece)
    # A million log probabilities take seconds to write, and meanwhile others are served.
    return Response(await asyncio.to_thread(lambda: _document(form.whole(written))), media_type="application/json")


def _document(answer: Completion | ChatCompletion) -> str:
    """As JSON, a choice at a time: one long call would let nobody else in."""
    head = answer.model_copy(update={"choices": []}).model_dump_json()
    choices = ",".join(choice.model_dump_json() for choice in answer.choices)
    return head.replace('"choices":[]', f'"choices":[{choices}]', 1)  # inside a string its quotes have backslashes


async def _events(form: _Form, counted: bool) -> AsyncIterator[str]:
    dump: Callable[[BaseModel], str] = lambda model: event(model.model_dump_json(exclude_none=True))  # noqa: E731
    try:
        async with contextlib.aclosing(form.work.pieces()) as pieces:  # type: ignore[type-var]
            for opening in form.opening():
                yield dump(opening)
            async for piece in pieces:
                yield dump(form.chunk([piece], False))
        if counted:
            yield dump(form.chunk([], True))
        yield DONE
    except ApiError as error:  # the status has been sent: an event must say it
        yield event(msgspec.json.encode(error.body()).decode())
