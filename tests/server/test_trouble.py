"""Clients that are wrong, leave, stall or shout; after each, nothing is held and the next one is served."""

import asyncio
import errno
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import CONTEXT, Served, serving, until

from isoflop.engine.request import Event, Request
from isoflop.engine.server.runner import Broken, Runner

TEXT = "/v1/completions"
CHAT = "/v1/chat/completions"
USER = [{"role": "user", "content": "x"}]
LONG = {"prompt": "a", "max_tokens": 480, "ignore_eos": True}


@pytest.fixture(autouse=True)
def harmed_nobody(server: Served) -> Iterator[None]:
    yield
    until(lambda: server.held() == 0)
    status, got = server.ask("POST", TEXT, {"prompt": "abc", "max_tokens": 3, "temperature": 0})
    assert status == 200 and got["usage"]["completion_tokens"] == 3


NOT_SERVED: list[tuple[str, Any]] = [
    ("tools", []),
    ("tools", [{"type": "function", "function": {"name": "f", "parameters": {}}}]),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("audio", {"voice": "ash", "format": "wav"}),
    ("prediction", {"type": "content", "content": "a"}),
    ("reasoning_effort", "high"),
    ("verbosity", "low"),
    ("web_search_options", {}),
]
WRONG: list[tuple[str, Any, int, str]] = [
    (TEXT, b"", 400, "body"),
    (TEXT, b"{", 400, ""),
    (TEXT, b"\xff\xfe\x00", 400, ""),
    (TEXT, b"[" * 100_000, 400, ""),
    (TEXT, b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", 400, ""),
    (TEXT, b'{"prompt": "a", "temperature": NaN}', 400, "temperature"),
    (TEXT, b'{"prompt": "a", "temperature": 1e999}', 400, "temperature"),
    (TEXT, b'{"prompt": "\\ud800", "max_tokens": 1}', 400, "prompt"),
    (TEXT, {"prompt": "a\0b"}, 400, "NUL"),
    (TEXT, {}, 400, "prompt"),
    (TEXT, [1], 400, "body: must be a JSON object"),
    (TEXT, {"prompt": ["a", 1] * 20_000}, 400, "prompt.1: "),
    (TEXT, {"prompt": [[1] * 300] * 60, "echo": True, "logprobs": 64, "max_tokens": 0}, 400, "logprobs: 1170000 of"),
    (
        TEXT,
        b'{"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": {"a": "\\ud800"}}}}',
        400,
        "half a character",
    ),
    (TEXT, {"prompt": "a", "regex": "[^\\x00-\\U0010ffff]"}, 400, "regular expression: matches nothing"),
    (TEXT, {"prompt": []}, 400, "prompt"),
    (TEXT, {"prompt": [[]]}, 400, "prompt"),
    (TEXT, {"prompt": [1, 256]}, 400, "token 256 is not among"),
    (TEXT, {"prompt": "a", "max_tokens": 0}, 400, "max_tokens"),
    (TEXT, {"prompt": "a", "max_tokens": CONTEXT}, 400, f"are more than the {CONTEXT}"),
    (TEXT, {"prompt": "a", "max_tokens": 10**40}, 400, "max_tokens"),
    (TEXT, {"prompt": "a", "temperature": "1"}, 400, "temperature"),
    (TEXT, {"prompt": "a", "n": 65}, 400, "n"),
    (TEXT, {"prompt": ["a"] * 64, "n": 64}, 400, "more than 256"),
    (TEXT, {"prompt": "a", "n": 40, "max_tokens": 1}, 400, "takes 32 at once"),
    (TEXT, {"prompt": "a", "n": 3, "best_of": 2}, 400, "best_of"),
    (TEXT, {"prompt": "a", "best_of": 2, "stream": True}, 400, "best_of"),
    (TEXT, {"prompt": "a", "stop": ""}, 400, "stop: must have at least 1 character"),
    (TEXT, {"prompt": "a", "stream": "yes"}, 400, "stream: "),
    (TEXT, {"prompt": "a", "stream_options": {"include_usage": True}}, 400, "stream_options: needs stream"),
    (TEXT, {"prompt": "a", "suffix": "b"}, 400, "suffix: is not served here"),
    (TEXT, {"prompt": "a", "promtp": "b"}, 400, "promtp: is not known here"),
    (TEXT, {"prompt": "a", "messages": USER}, 400, "messages: is not known here"),
    (TEXT, {"prompt": "a", "stop": ["a"] * 17}, 400, "stop"),
    (TEXT, {"prompt": "a", "regex": "("}, 400, "unclosed group"),
    (TEXT, {"prompt": "a", "regex": "a", "response_format": {"type": "json_object"}}, 400, "one of"),
    (TEXT, {"prompt": "a", "response_format": {"type": "yaml"}}, 400, "response_format"),
    (TEXT, {"prompt": "a", "model": "\x00other"}, 404, "is not served here"),
    (CHAT, {"messages": []}, 400, "messages"),
    (CHAT, {"messages": [{"role": "robot", "content": "x"}]}, 400, "role"),
    (CHAT, {"messages": [{"role": "user", "content": None}]}, 400, "content"),
    (CHAT, {"messages": USER, "top_logprobs": 2}, 400, "needs logprobs"),
    *((CHAT, {"messages": USER, name: value}, 400, f"{name}: is not served here") for name, value in NOT_SERVED),
    (CHAT, {"messages": USER, "tool_choice": "auto"}, 400, "tool_choice: "),
    (CHAT, {"messages": USER, "modalities": ["text", "audio"]}, 400, "modalities: "),
    (CHAT, {"messages": USER, "service_tier": "flex"}, 400, "service_tier: "),
    (CHAT, {"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, 400, "no chat template of its own"),
    (
        CHAT,
        {"messages": [{"role": "tool", "content": "3", "tool_call_id": "a"}]},
        400,
        "messages.0.tool_call_id: is not",
    ),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        400,
        "messages.0.content.0.type: ",
    ),
    (CHAT, {"messages": USER, "max_tokens": 3, "max_completion_tokens": 4}, 400, "newer name"),
    ("/detokenize", {"tokens": [256]}, 400, "token 256"),
    ("/detokenize", {"tokens": [-1]}, 400, "tokens"),
    (TEXT, {"prompt": "a", "logit_bias": {"256": 1}}, 400, "logit_bias: token 256"),
    (TEXT, {"prompt": "a", "logit_bias": {"a": 1}}, 400, "logit_bias"),
    ("/tokenize", {"prompt": 3}, 400, "prompt"),
    ("/nowhere", {}, 404, ""),
    ("/v1/models", {}, 405, ""),
    (TEXT, {"prompt": "a" * 300_000}, 413, "262144 bytes"),
]


@pytest.mark.parametrize(("path", "body", "status", "said"), WRONG, ids=[str(i) for i in range(len(WRONG))])
def test_wrong_questions(server: Served, path: str, body: Any, status: int, said: str) -> None:
    got, answer = server.ask("POST", path, body)
    assert got == status, answer
    assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
    assert said in answer["error"]["message"] and "Traceback" not in answer["error"]["message"]


def test_as_many_stop_strings_as_may_be(server: Served) -> None:
    """Those of the model's own conversations come on top."""
    body = {"messages": USER, "max_tokens": 3, "stop": [f"stop {i}" for i in range(16)]}
    assert server.ask("POST", CHAT, body)[0] == 200


def test_answers_on_a_kept_connection_do_not_wait(server: Served) -> None:
    """For acknowledgements, that is, 40 ms each: the quickest of some."""
    with server.connected() as connection:
        took = []
        for _ in range(10):
            started = time.perf_counter()
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            while not connection.recv(1 << 16).endswith(b"}"):
                pass
            took.append(time.perf_counter() - started)
    assert min(took[1:]) < 0.03


def test_a_client_that_leaves(server: Served) -> None:
    for body in (LONG, LONG | {"stream": True}, LONG | {"n": 8}):
        before = server.metric("isoflop_output_tokens_total")
        connection = server.send(body)
        until(lambda: server.metric("isoflop_output_tokens_total") > before)  # noqa: B023
        connection.close()
        until(lambda: server.held() == 0, 2.0)
        after = server.metric("isoflop_output_tokens_total") - before
        assert after < 480 * int(body.get("n", 1)), "it ran to its end"  # type: ignore[call-overload]


def test_a_client_that_leaves_while_it_asks(server: Served) -> None:
    for part in (b"POST /v1/comp", b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"):
        connection = server.connected()
        connection.sendall(part)
        connection.close()
        assert server.ask("POST", "/v1/completions", {"prompt": "a", "max_tokens": 2})[0] == 200
    until(lambda: server.held() == 0, 2.0)


def test_garbage(server: Served) -> None:
    for data in (b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 70_000, b"A" * 200_000):
        with server.connected() as connection:
            try:
                connection.sendall(data)
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(1 << 16)[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 404")
            except OSError as error:  # the server has hung up already: in what is sent, read or closed
                assert error.errno in (errno.EPIPE, errno.ECONNRESET, errno.ENOTCONN)


def test_a_body_that_does_not_come(server: Served) -> None:
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    with server.connected() as connection:
        connection.sendall(head)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 408")
    with server.connected() as connection:  # one that is too large is not waited for, told or not
        connection.sendall(head.replace(b"99", b"999999999"))
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")


def test_a_body_that_is_too_large(checkpoint: Path) -> None:
    """Whoever sends it gets to the end of it and reads why, the very first among them; one that has no end is
    cut off; and to a client that waits for leave to send none is given."""
    with serving(checkpoint, "--memory", "8M", "--body", "4K") as strict:
        for size in (1 << 20, 10 << 20, 5000, *[300_000] * 20):
            status, answer = strict.ask("POST", TEXT, b" " * size)
            assert status == 413 and "4096 bytes" in answer["error"]["message"]
        head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
        with strict.connected() as connection:
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(40):
                connection.sendall(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 413")
            with pytest.raises((BrokenPipeError, ConnectionResetError)):
                for _ in range(1 << 14):
                    connection.sendall(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
        with strict.connected() as connection:
            connection.sendall(head + b"Content-Length: 99999\r\nExpect: 100-continue\r\n\r\n")
            answered = b""
            while part := connection.recv(1 << 16):
                answered += part
            assert answered.startswith(b"HTTP/1.1 413") and answered.endswith(b"}")
        assert strict.end() == 0


def test_without_the_token_a_body_is_read_and_dropped(checkpoint: Path) -> None:
    with serving(checkpoint, "--memory", "8M", "--token", "abc") as guarded:
        for size in (10, 3 << 20, 20 << 20):
            assert guarded.ask("POST", TEXT, b" " * size)[0] == 401
        assert guarded.end() == 0


def test_a_client_that_does_not_read(server: Served) -> None:
    """Its answer is made, and waits in the sockets' buffers; others go on."""
    with server.send(LONG | {"stream": True, "logprobs": 5}):
        until(lambda: server.held() == 0)
        status, _ = server.ask("POST", TEXT, {"prompt": "a", "max_tokens": 4})
        assert status == 200


def test_more_than_may_wait(server: Served) -> None:
    with server.send(LONG | {"n": 30}):
        until(lambda: server.metric("isoflop_live_requests") == 30)
        status, answer = server.ask("POST", TEXT, {"prompt": "a", "n": 3})
        assert status == 429 and answer["error"]["code"] == "queue_full"
        assert server.ask("POST", TEXT, {"prompt": "a", "n": 2, "max_tokens": 1})[0] == 200


def test_many_at_once(server: Served) -> None:
    """Under load, each gets what it would get alone."""
    bodies = [{"prompt": f"number {i}", "max_tokens": 3 + i % 5, "seed": i} for i in range(24)]
    alone = [server.ask("POST", TEXT, body)[1]["choices"][0]["text"] for body in bodies]
    got: dict[int, Any] = {}
    threads = [
        threading.Thread(target=lambda i=i: got.update({i: server.ask("POST", TEXT, bodies[i])[1]})) for i in range(24)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i]["choices"][0]["text"] for i in range(24)] == alone


def test_tokens_and_time(checkpoint: Path) -> None:
    more = ("--memory", "8M", "--request-s", "0.3", "--context", "400")
    with serving(checkpoint, *more, environment={"ISOFLOP_TOKEN": "s3cret"}) as guarded:
        right = {"Authorization": "Bearer s3cret"}
        assert guarded.ask("GET", "/health")[0] == 200
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
            assert guarded.ask("GET", path)[0] == 401
        for said in ("Bearer wrong", "Basic s3cret", "Bearer", "Bearers3cret", "s3cret", "Bearer s3cret s3cret", ""):
            assert guarded.ask("GET", "/v1/models", headers={"Authorization": said})[0] == 401
        for said in ("bearer s3cret", "BEARER   s3cret"):
            assert guarded.ask("GET", "/v1/models", headers={"Authorization": said})[0] == 200
        assert guarded.ask("GET", "/v1/models", headers=right)[0] == 200
        body = {"prompt": "a", "max_tokens": 380, "ignore_eos": True, "n": 32}
        status, answer = guarded.ask("POST", TEXT, body, right)
        assert status == 504 and answer["error"]["code"] == "timeout"
        status, text = guarded.ask("POST", TEXT, body | {"stream": True}, right)
        events = [line.removeprefix("data: ") for line in text.splitlines() if line]
        assert status == 200 and json.loads(events[-1])["error"]["type"] == "timeout_error"
        assert guarded.ask("POST", TEXT, {"prompt": "a", "max_tokens": 400}, right)[0] == 400


def test_sigterm_lets_requests_finish(checkpoint: Path) -> None:
    with serving(checkpoint, "--memory", "8M") as ending:
        with ending.send(LONG | {"n": 4}) as connection, ending.connected() as other:
            until(lambda: ending.metric("isoflop_live_requests") == 4)
            ending.process.terminate()
            time.sleep(0.1)
            other.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            refused = other.recv(1 << 16)
            answer = b""
            while part := connection.recv(1 << 16):
                answer += part
        assert refused.startswith(b"HTTP/1.1 503") or b'"completion_tokens":1920' in answer
        assert answer.startswith(b"HTTP/1.1 200") and b'"completion_tokens":1920' in answer
        ending.process.communicate(timeout=60)
        assert ending.process.returncode == 0


def test_killed_in_the_middle(checkpoint: Path) -> None:
    with serving(checkpoint, "--memory", "8M") as first:
        with first.send(LONG | {"n": 8}):
            until(lambda: first.metric("isoflop_live_requests") == 8)
            first.process.kill()
            first.process.communicate()
        again = ("--memory", "8M", "--port", str(first.port))
    with serving(checkpoint, *again) as second:
        assert second.port == first.port
        assert second.ask("POST", TEXT, {"prompt": "a", "max_tokens": 3})[0] == 200
        assert second.end() == 0


class Breaking:
    """An engine that breaks at its first step."""

    has_work = False
    stats: dict[str, int] = {}

    def submit(self, request: Request) -> None:
        self.has_work = True

    def step(self) -> list[Event]:
        raise RuntimeError("broke")

    def cancel(self, id: str) -> None: ...
    def close(self) -> None: ...


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is to be seen in the log
def test_an_engine_that_breaks() -> None:
    """Whoever waits is told, and whoever comes later."""

    async def ask() -> None:
        runner = Runner(Breaking(), 10)
        runner.start()
        with pytest.raises(Broken, match="RuntimeError: broke"):
            async for _ in await runner.submit([Request("a", (1,))]):
                pass
        with pytest.raises(Broken):
            await runner.submit([Request("b", (1,))])
        assert runner.live == 0 and runner.failure is not None

    asyncio.run(ask())
