"""The engine in a thread of its own, and the event loop's side of it.

The thread alone touches the engine. Orders go in through a queue and are obeyed between steps; the events of a step
come out in one call to the loop. A request that the loop has let go of is cancelled before the next step.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any, Protocol

from isoflop.engine.request import Event, Request


class Stepping(Protocol):
    """What is asked of isoflop.engine.engine.Engine."""

    @property
    def has_work(self) -> bool: ...
    @property
    def stats(self) -> Any: ...
    def submit(self, request: Request) -> None: ...
    def step(self) -> list[Event]: ...
    def cancel(self, id: str) -> object: ...
    def close(self) -> None: ...


class Broken(Exception):
    """The engine failed, and every request with it."""


class Stopped(Exception):
    """The server stops, and did not wait for the request."""


class Full(Exception):
    """As many requests as are allowed wait or run."""


Heard = Event | Broken | Stopped


class Runner:
    """Starts with `start` inside a running loop. `stats` are those after the latest step; `failure` says what broke."""

    def __init__(self, engine: Stepping, most_live: int) -> None:
        self._engine, self.most_live = engine, most_live
        self._orders: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._streams: dict[str, asyncio.Queue[Heard]] = {}
        self._asking: set[asyncio.Future[None]] = set()
        self._behind: dict[str, list[Request]] = {}  # the engine's thread alone touches it
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.stats = engine.stats
        self.failure: str | None = None

    @property
    def live(self) -> int:
        """Requests that wait or run."""
        return len(self._streams)

    def start(self) -> None:
        """Let the engine's thread run."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after the step that it is in; what is under way is dropped."""
        self._orders.put(None)
        await asyncio.to_thread(self._thread.join)

    async def submit(self, requests: list[Request]) -> AsyncIterator[Event]:
        """The events of the requests, all taken or none. Raises ValueError where one can never run, Full, Broken."""
        if self.failure is not None:
            raise Broken(self.failure)
        if self.live + len(requests) > self.most_live:
            raise Full(f"{self.live} requests wait or run, and at most {self.most_live} may")
        events: asyncio.Queue[Heard] = asyncio.Queue()
        for request in requests:
            self._streams[request.id] = events
        taken: asyncio.Future[None] = self._loop.create_future()
        self._asking.add(taken)
        self._orders.put(lambda: self._take(requests, taken))
        try:
            await taken
        except BaseException:
            self._let_go(requests)
            raise
        finally:
            self._asking.discard(taken)
        return self._events(requests, events)

    async def _events(self, requests: list[Request], events: asyncio.Queue[Heard]) -> AsyncIterator[Event]:
        left = len(requests)
        try:
            while left:
                event = await events.get()
                if isinstance(event, Broken | Stopped):
                    raise event
                left -= event.finish is not None
                yield event
        finally:
            self._let_go(requests)

    def cancel(self, id: str) -> None:
        """Let go of one request; nothing more is heard of it."""
        if self._streams.pop(id, None) is not None:
            self._orders.put(lambda: self._drop(id))

    def drop_all(self) -> int:
        """Let go of every request; whoever waits for one hears Stopped. Returns how many there were."""
        dropped = dict(self._streams)
        for id in dropped:
            self.cancel(id)
        for waiting in _once(dropped):
            waiting.put_nowait(Stopped())
        return len(dropped)

    def _let_go(self, requests: list[Request]) -> None:
        for request in requests:
            self.cancel(request.id)

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            waiting = self._streams.get(event.id)
            if waiting is None:
                continue
            if event.finish is not None:
                del self._streams[event.id]
            waiting.put_nowait(event)

    def _fail(self, failure: str) -> None:
        self.failure = failure
        for waiting in _once(self._streams):
            waiting.put_nowait(Broken(failure))
        self._streams.clear()
        for taken in self._asking:
            _resolve(taken, Broken(failure))

    # The engine's thread, from here on.

    def _run(self) -> None:
        try:
            while self._obey():
                if self._engine.has_work:
                    events = self._engine.step()
                    self._follow(events)
                    self.stats = self._engine.stats
                    self._tell(self._dispatch, events)
            self._engine.close()
        except Exception as error:  # whatever it is, the clients are told and the server says that it is not well
            self._tell(self._fail, f"{type(error).__name__}: {error}")
            raise

    def _obey(self) -> bool:
        """Obey the orders there are, waiting for one where there is no work. False: stop."""
        try:
            while True:
                order = self._orders.get(block=not self._engine.has_work)
                if order is None:
                    return False
                order()
                self.stats = self._engine.stats
        except queue.Empty:
            return True

    def _take(self, requests: list[Request], taken: "asyncio.Future[None]") -> None:
        """Of requests with the same prompt, the first goes ahead, and the others find in the cache what it computed."""
        leaders: dict[tuple[int, ...], Request] = {}
        try:
            for request in requests:
                leader = leaders.setdefault(request.prompt, request)
                if leader is request:
                    self._engine.submit(request)
                else:
                    self._behind.setdefault(leader.id, []).append(request)
            self._tell(_resolve, taken, None)
        except ValueError as refusal:
            for request in leaders.values():
                self._engine.cancel(request.id)
                self._behind.pop(request.id, None)
            self._tell(_resolve, taken, refusal)

    def _follow(self, events: list[Event]) -> None:
        for event in events if self._behind else ():
            for request in self._behind.pop(event.id, ()):
                self._engine.submit(request)

    def _drop(self, id: str) -> None:
        for waiting in self._behind.values():
            waiting[:] = [request for request in waiting if request.id != id]
        self._engine.cancel(id)

    def _tell(self, what: Callable[..., None], *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(what, *arguments)
        except RuntimeError:  # the loop is closed: nobody listens
            return


def _once(streams: dict[str, asyncio.Queue[Heard]]) -> list[asyncio.Queue[Heard]]:
    """The queues, of which several requests may share one."""
    return list({id(heard): heard for heard in streams.values()}.values())


def _resolve(taken: "asyncio.Future[None]", refusal: Exception | None) -> None:
    if taken.done():  # cancelled meanwhile
        return
    if refusal is None:
        taken.set_result(None)
    else:
        taken.set_exception(refusal)
