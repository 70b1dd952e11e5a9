"""uvicorn around the application: a line when it listens, patience that ends, and a stop that lets requests finish."""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from isoflop.engine.server.app import Server

HEADERS_S = 30.0  # for the head of a request to come
STALL_S = 60.0  # for a client to take more of what is sent to it
KEEP_ALIVE_S = 30
FAREWELL_S = 0.5  # for answers to get out, once nobody waits any more
LAST_S = 1.5  # for threads to come to their end, once nobody listens
DROPPED = 1  # exit code where requests could not be finished
BACKLOG = 512


class Patient(H11Protocol):
    """Closes a connection that has not said what it wants in time: its first request, and each later one from its first
    byte on (until then uvicorn's own patience with an idle connection counts). One that takes nothing of what is sent
    to it for `stall_s` is cut off: to close it politely would wait for it forever."""

    headers_s, stall_s = HEADERS_S, STALL_S
    _impatience: asyncio.TimerHandle | None = None
    _stall: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # pause_writing says that anything waits, resume_writing that nothing does
        self._impatience = self.loop.call_later(self.headers_s, self._give_up)

    def data_received(self, data: bytes) -> None:
        """Some bytes more, which do not make the wait longer."""
        super().data_received(data)
        if not self._waits():
            self._calm()
        elif self._impatience is None:
            self._impatience = self.loop.call_later(self.headers_s, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """It has gone."""
        self._calm()
        self._flowing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not take all at once."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """It has taken all."""
        self._flowing()
        super().resume_writing()

    def _watch(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._stall = self.loop.call_later(self.stall_s, self._cut_off, left)

    def _cut_off(self, before: int) -> None:
        if self.transport.get_write_buffer_size() < before:
            self._watch()
        else:
            self.transport.abort()

    def _flowing(self) -> None:
        if self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _waits(self) -> bool:
        """Whether no request is under way, nor known."""
        cycle: Any = self.cycle
        return cycle is None or (cycle.response_complete and self.conn.their_state is h11.IDLE)

    def _calm(self) -> None:
        if self._impatience is not None:
            self._impatience.cancel()
            self._impatience = None

    def _give_up(self) -> None:
        self._impatience = None
        if self._waits() and not self.transport.is_closing():
            self.transport.close()


class Draining(uvicorn.Server):
    """SIGTERM or SIGINT: new requests get 503, those under way have `drain_s` to finish. Another signal, or the end of
    that time: they get 503 too, and whoever does not hear it is cut off. A third: the process ends where it stands.

    uvicorn would cancel what is under way, and log a traceback for each; here all of it comes to an end of its own."""

    def __init__(self, server: Server, config: uvicorn.Config, name: str, drain_s: float) -> None:
        super().__init__(config)
        self._server, self._name, self._drain_s = server, name, drain_s
        self._hurry = asyncio.Event()
        self._n_signals = 0
        self._drain: asyncio.Task[None] | None = None
        self.n_dropped = 0

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            print(f"isoflop serve: {self._name} at http://{shown}:{port}/v1", file=sys.stderr, flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came; not kept, so that uvicorn does not raise it again at the end."""
        self._n_signals += 1
        if not self.started:
            self.should_exit = True
        elif self._n_signals == 1:
            self._server.service.draining = True
            self._loop.call_soon_threadsafe(self._begin)
        elif self._n_signals == 2:
            _end_within(FAREWELL_S + LAST_S)  # should the loop itself hang
            self._loop.call_soon_threadsafe(self._hurry.set)
        else:
            os._exit(DROPPED)

    def _begin(self) -> None:
        self._drain = self._loop.create_task(self._finish())

    async def _finish(self) -> None:
        """Wait for the requests under way, drop the others, let uvicorn stop, and cut off who holds it up."""
        runner, end = self._server.runner, self._loop.time() + self._drain_s
        await self._wait(lambda: runner.live == 0, end)
        self.n_dropped = runner.drop_all()
        self.should_exit = True
        await self._wait(lambda: self.n_dropped > 0, end)  # for answers that are being written
        await asyncio.sleep(FAREWELL_S)
        left: list[Any] = list(self.server_state.connections)
        self.n_dropped += sum(bool(c.cycle and not c.cycle.response_complete) for c in left)
        for connection in left:
            connection.transport.abort()
        _end_within(LAST_S)

    async def _wait(self, done: Callable[[], bool], end: float) -> None:
        """Until it is, until the time `end`, or until someone is in a hurry."""
        while not (done() or self._hurry.is_set() or self._loop.time() >= end):
            await asyncio.sleep(0.02)


def _end_within(seconds: float) -> None:
    """The end of the process by then, whatever its threads are at: a step of a large model, a schema being read."""
    timer = threading.Timer(seconds, os._exit, (DROPPED,))
    timer.daemon = True
    timer.start()


def serve(
    server: Server, name: str, host: str, port: int, drain_s: float, most_connections: int, stall_s: float = STALL_S
) -> int:
    """Serve until a signal comes. Returns how many requests were dropped then. Raises OSError where the address cannot
    be had."""
    config = uvicorn.Config(
        server.app,
        host=host,
        port=port,
        loop="asyncio",
        http=type("Patient", (Patient,), {"stall_s": stall_s}),
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=most_connections,
        backlog=BACKLOG,
        timeout_keep_alive=KEEP_ALIVE_S,
    )
    with _listening(host, port) as listening:
        draining = Draining(server, config, name, drain_s)
        for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn puts these back at its end: a late one changes nothing
            signal.signal(number, signal.SIG_IGN)
        draining.run(sockets=[listening])
    return draining.n_dropped


def _listening(host: str, port: int) -> socket.socket:
    """Bound before the model is worth waiting for; OSError is one line."""
    try:
        family: Any = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        # asyncio sends at once (TCP_NODELAY) on what says that it is TCP; else each answer on a kept connection would
        # wait for the acknowledgement of its head, 40 ms.
        listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((host, port))
        listening.set_inheritable(True)
    except OSError as error:
        raise OSError(f"{host}:{port}: {error.strerror or error}") from None
    return listening
