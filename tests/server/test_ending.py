"""How a server ends that is told to twice, or whose time to finish is over: at once, and without a word too many."""

import signal
import socket
import time
from pathlib import Path

import pytest
from serving import Served, serving, until

MANY = {"prompt": "a", "max_tokens": 480, "ignore_eos": True, "n": 32}
HALF = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"
QUICKLY_S = 5.0  # on a machine with other work; a second and a half where nobody is in the way


def all_of(connection: socket.socket) -> bytes:
    answer = b""
    while part := connection.recv(1 << 16):
        answer += part
    return answer


def ended(ending: Served) -> str:
    """What it said at last, which is no traceback; without a request left behind its port is free."""
    _, said = ending.process.communicate(timeout=QUICKLY_S)
    assert said.count("\n") <= 1 and "Traceback" not in said, said
    with pytest.raises(ConnectionRefusedError):
        ending.connected()
    return str(said)


@pytest.mark.parametrize(
    ("signals", "stream"), [((signal.SIGTERM, signal.SIGINT), False), ((signal.SIGINT, signal.SIGINT), True)]
)
def test_a_second_signal(checkpoint: Path, signals: tuple[signal.Signals, ...], stream: bool) -> None:
    """Whoever waits is told so; who still writes is not waited for."""
    with serving(checkpoint, "--memory", "8M") as ending, ending.send(MANY | {"stream": stream}) as asking:
        with ending.connected() as slow:
            slow.sendall(HALF)
            until(lambda: ending.metric("isoflop_live_requests") == 32)
            for number in signals:
                ending.process.send_signal(number)
                time.sleep(0.1)
            answer = all_of(asking)
            assert answer.startswith(b"HTTP/1.1 200" if stream else b"HTTP/1.1 503")
            assert b'"message":"the server stops, and could not finish this request"' in answer
            assert "requests were not finished" in ended(ending)
        assert ending.process.returncode == 1


def test_a_third_signal(checkpoint: Path) -> None:
    with serving(checkpoint, "--memory", "8M") as ending, ending.send(MANY):
        until(lambda: ending.metric("isoflop_live_requests") == 32)
        for _ in range(8):
            ending.process.send_signal(signal.SIGTERM)
            time.sleep(0.002)
        ended(ending)
        assert ending.process.returncode == 1


def test_the_time_to_finish_is_over(checkpoint: Path) -> None:
    """It is one time for all: a client that takes nothing of its answer gets none on top."""
    with serving(checkpoint, "--memory", "8M", "--drain-s", "0.3") as ending, ending.send(MANY) as asking:
        with ending.send(MANY | {"stream": True, "logprobs": 8}):
            until(lambda: ending.metric("isoflop_live_requests") == 64)
            ending.process.send_signal(signal.SIGTERM)
            assert all_of(asking).startswith(b"HTTP/1.1 503")
            assert "requests were not finished" in ended(ending)
        assert ending.process.returncode == 1


def test_two_signals_and_nothing_to_do(checkpoint: Path) -> None:
    with serving(checkpoint, "--memory", "8M") as ending:
        for _ in range(2):
            ending.process.send_signal(signal.SIGTERM)
        assert ended(ending) == "" and ending.process.returncode == 0
