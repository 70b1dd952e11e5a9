"""What both kinds of completions share: jobs to the engine, pieces back, within a time, and nothing left behind."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import Request, Response

from isoflop.engine.server.errors import ApiError
from isoflop.engine.server.jobs import Desk, Job
from isoflop.engine.server.metrics import Clock, Metrics
from isoflop.engine.server.runner import Broken, Full, Runner, Stopped
from isoflop.engine.server.writing import Choice, Piece, start


class Service:
    """`request_s`: the longest that one request may take. While `draining`, no new one is taken."""

    def __init__(self, desk: Desk, runner: Runner, metrics: Metrics, request_s: float) -> None:
        self.desk, self.runner, self.metrics, self._request_s = desk, runner, metrics, request_s
        self.draining = False

    def check_open(self) -> None:
        """Raises ApiError 503 where no request is taken."""
        if self.draining:
            raise ApiError(503, "the server is about to stop and takes no new requests", code="draining")
        if self.runner.failure is not None:
            raise ApiError(503, "the engine has failed; the server needs a restart", code="engine_failed")

    async def begin(self, jobs: list[Job]) -> "Work":
        """Hand the jobs to the engine. Raises ApiError."""
        self.check_open()
        if len(jobs) > self.runner.most_live:  # trying again would never help
            raise ApiError(400, f"n: {len(jobs)} choices, and the server takes {self.runner.most_live} at once", "n")
        clock, choices = Clock(self.metrics), start(jobs, self.desk.vocabulary)
        deadline = asyncio.get_running_loop().time() + self._request_s
        try:
            events = await self.runner.submit([job.request for job in jobs])
        except ValueError as error:
            raise ApiError(400, str(error), "prompt", "context_length_exceeded") from None
        except Full as error:
            raise ApiError(429, f"{error}; try again", code="queue_full") from None
        except Broken:
            raise ApiError(503, "the engine has failed; the server needs a restart", code="engine_failed") from None
        return Work(self, choices, events, deadline, clock)


class Work:
    """Jobs under way. `pieces` is read to its end, or closed; either way nothing stays in the engine."""

    def __init__(
        self, service: Service, choices: dict[str, Choice], events: AsyncIterator[Any], deadline: float, clock: Clock
    ) -> None:
        self._service, self._by_id, self._events = service, choices, events
        self._deadline, self._clock = deadline, clock

    @property
    def choices(self) -> list[Choice]:
        """In order of their index."""
        return list(self._by_id.values())

    def release(self) -> None:
        """Leave nothing in the engine, whether `pieces` was read or not."""
        for id in self._by_id:
            self._service.runner.cancel(id)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Every piece of every choice as it comes. Raises ApiError 504 where it takes too long, 500 where the engine
        breaks, 503 where the server does not wait for it."""
        metrics, left = self._service.metrics, len(self._by_id)
        try:
            async with contextlib.aclosing(self._events) as events, asyncio.timeout_at(self._deadline):  # type: ignore[type-var]
                async for event in events:
                    choice = self._by_id[event.id]
                    if event.token is not None:
                        self._clock.token()
                    piece = choice.feed(event)
                    if piece is None:
                        continue
                    yield piece
                    if choice.finish is not None:
                        metrics.finished.labels(choice.finish).inc()
                        self._service.runner.cancel(event.id)  # a stop string: the engine does not know of it
                        left -= 1
                        if left == 0:
                            return
        except TimeoutError:
            raise ApiError(504, "the request took longer than the server allows", code="timeout") from None
        except Broken:
            raise ApiError(500, "the engine failed at this request", code="engine_failed") from None
        except Stopped:
            raise ApiError(503, "the server stops, and could not finish this request", code="draining") from None
        finally:
            self._clock.end()
            metrics.prompt_tokens.inc(sum(len(choice.job.request.prompt) for choice in self.choices))
            metrics.cached_tokens.inc(sum(choice.n_cached for choice in self.choices))


async def unless_gone(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """The answer; or, once the client has left, the work ended and an answer that nobody reads."""
    working, leaving = asyncio.create_task(work), asyncio.create_task(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return Response(status_code=499)
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def event(document: str) -> str:
    """A server-sent event."""
    return f"data: {document}\n\n"
