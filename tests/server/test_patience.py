"""A client that sends its requests a byte at a time, on uvicorn as it is served."""

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from isoflop.engine.server.serving import Patient

WHOLE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


LONG = 16 << 20  # bytes, more than sockets hold


class Hurried(Patient):
    headers_s, stall_s = 0.5, 0.5


async def answer(scope: Any, receive: Any, send: Any) -> None:
    body = b"ok" if scope["path"] == "/" else b"a" * LONG
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """The address of a server."""
    config = uvicorn.Config(
        answer, loop="asyncio", http=Hurried, ws="none", lifespan="off", log_level="error", timeout_keep_alive=30
    )
    server, ready = uvicorn.Server(config), socket.socket()
    ready.bind(("127.0.0.1", 0))
    ready.listen()
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([ready])))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield ready
    server.should_exit = True
    thread.join()


def ask(client: socket.socket) -> None:
    """One whole request, and its answer."""
    client.sendall(WHOLE)
    answered = b""
    while not answered.endswith(b"ok"):
        part = client.recv(1000)
        assert part
        answered += part


def dribbled(client: socket.socket) -> float:
    """Seconds until the server closes on somebody who sends a byte each tenth of a second, and never ends."""
    started = time.monotonic()
    client.settimeout(0.1)
    for byte in b"GET / HTTP/1.1\r\n" + b"x-a: b\r\n" * 20:
        try:
            client.sendall(bytes([byte]))
            if client.recv(1) == b"":
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.monotonic() - started


@pytest.mark.parametrize("n_before", [0, 1, 3])
def test_a_request_that_dribbles(listening: socket.socket, n_before: int) -> None:
    """The first of a connection, or one after others; each earlier one is answered."""
    with socket.create_connection(listening.getsockname()) as client:
        client.settimeout(5)
        for _ in range(n_before):
            ask(client)
        assert 0.3 < dribbled(client) < 5


def test_a_pause_between_requests_is_no_dribble(listening: socket.socket) -> None:
    with socket.create_connection(listening.getsockname()) as client:
        client.settimeout(5)
        for _ in range(2):
            ask(client)
            time.sleep(0.8)


def asking_for_much(listening: socket.socket) -> socket.socket:
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
    client.connect(listening.getsockname())
    client.settimeout(5)
    client.sendall(WHOLE.replace(b"/ ", b"/long ", 1))
    return client


def read(client: socket.socket, most: int = 1 << 30) -> int:
    """How many bytes come before the end, a reset, or `most` of them."""
    n = 0
    try:
        while n < most and (part := client.recv(min(1 << 16, most - n))):
            n += len(part)
    except ConnectionResetError:
        pass
    return n


def test_a_client_that_takes_nothing_is_cut_off(listening: socket.socket) -> None:
    with asking_for_much(listening) as client:
        time.sleep(2)
        assert 0 < read(client) < LONG


def test_a_client_that_takes_little_is_not(listening: socket.socket) -> None:
    with asking_for_much(listening) as client:
        n = 0
        for _ in range(20):
            n += read(client, 1 << 18)
            time.sleep(0.1)
        assert n == 20 << 18 and read(client, LONG - n) == LONG - n
