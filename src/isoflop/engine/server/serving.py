"""uvicorn around the application: a line when it listens, patience that ends, and a stop that lets requests finish."""

import asyncio
import socket
import sys
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from isoflop.engine.server.app import Server

HEADERS_S = 30.0  # for the head of a request to come
STALL_S = 60.0  # for a client to take more of what is sent to it
KEEP_ALIVE_S = 30
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
    """SIGTERM or SIGINT: new requests get 503, those under way have `drain_s` to finish; again: out at once. Ends with
    exit code 0 either way."""

    def __init__(self, server: Server, config: uvicorn.Config, name: str, drain_s: float) -> None:
        super().__init__(config)
        self._server, self._name, self._drain_s = server, name, drain_s
        self._drain: asyncio.Task[None] | None = None

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
        if self._server.service.draining or not self.started:
            self.should_exit = True
            self.force_exit = self._server.service.draining
            return
        self._server.service.draining = True
        self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._drain = self._loop.create_task(self._finish())

    async def _finish(self) -> None:
        """Wait for the requests under way, then let uvicorn stop."""
        end = self._loop.time() + self._drain_s
        while self._server.runner.live and self._loop.time() < end:
            await asyncio.sleep(0.02)
        self.should_exit = True


def serve(
    server: Server, name: str, host: str, port: int, drain_s: float, most_connections: int, stall_s: float = STALL_S
) -> None:
    """Serve until a signal comes. Raises OSError where the address cannot be had."""
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
        timeout_graceful_shutdown=int(max(1, drain_s)),
    )
    with _listening(host, port) as listening:
        Draining(server, config, name, drain_s).run(sockets=[listening])


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
