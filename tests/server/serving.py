"""A real server in a process of its own, on a small model of bytes, and plain sockets to trouble it with."""

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from isoflop.architecture import Dense
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.checkpoint import save_model

CONTEXT = 512
START_S = 120.0


def write_checkpoint(folder: Path) -> Path:
    """A model of bytes that knows nothing."""
    model = DecoderModel(Dense().build(32, 256, CONTEXT))
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    save_model(folder, model, "a test", special_tokens={"bos_token_id": 0, "eos_token_id": 0})
    return folder


class Served:
    """A running `isoflop serve`."""

    def __init__(self, checkpoint: Path, *more: str, environment: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "isoflop.cli.main", "serve", str(checkpoint), "--port", "0", *more],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=dict(os.environ) | {"OMP_NUM_THREADS": "1"} | (environment or {}),
            start_new_session=True,
        )
        assert self.process.stderr is not None
        self.line = self.process.stderr.readline()
        assert " at http://" in self.line, self.line + self.process.stderr.read()
        self.base = self.line.split(" at ")[1].strip().removesuffix("/v1")
        self.port = int(self.base.rsplit(":", 1)[1])

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        """Status and document (or text) of one request; a body of bytes is sent as it is."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, path, data, {"Content-Type": "application/json"} | (headers or {}))
            answer = connection.getresponse()
            text = answer.read().decode()
        finally:
            connection.close()
        return answer.status, json.loads(text) if "json" in answer.headers["content-type"] else text

    def metric(self, name: str) -> float:
        """A number of /metrics."""
        lines = self.ask("GET", "/metrics")[1].splitlines()
        return float(next(line.rsplit(" ", 1)[1] for line in lines if line.startswith(name + " ")))

    def held(self) -> float:
        """Requests that wait or run, in the API's count and the engine's."""
        engine = sum(self.metric(f'isoflop_engine{{name="{name}"}}') for name in ("running", "waiting"))
        return self.metric("isoflop_live_requests") + engine

    def connected(self) -> socket.socket:
        """A connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)

    def send(self, body: dict[str, Any], path: str = "/v1/completions") -> socket.socket:
        """A request sent, nothing read."""
        connection, data = self.connected(), json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        connection.sendall(head.encode() + data)
        return connection

    def end(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        self.process.communicate(timeout=60)
        return self.process.returncode


@contextlib.contextmanager
def serving(checkpoint: Path, *more: str, environment: dict[str, str] | None = None) -> Iterator[Served]:
    """A server that does not outlive the test."""
    served = Served(checkpoint, *more, environment=environment)
    try:
        yield served
    finally:
        if served.process.poll() is None:
            os.killpg(served.process.pid, signal.SIGKILL)
        if served.process.stderr and not served.process.stderr.closed:
            served.process.communicate()


def until(true: Callable[[], bool], patience_s: float = 20.0) -> None:
    """Wait for it."""
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)
