"""What the server costs over the engine, and what clients feel under load: requests arrive at random, in this process.

python benchmarks/serve_load.py [--requests 64] [--rate 40] [--d-model 256]

A model of random weights and bytes for tokens; requests with prompts of 8 to 200 tokens and outputs of 8 to 48, which
arrive as a Poisson process (rate in requests a second). The same requests are run by the bare engine, by the ASGI
application without a socket, streamed and whole. Printed: tokens a second, time to first token and time a token
(median and 95th percentile), and the microseconds a token that the layers above the engine add.
"""

import argparse
import asyncio
import itertools
import json
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from isoflop.architecture import Dense
from isoflop.engine.draw import Row, sample
from isoflop.engine.engine import Engine, Options
from isoflop.engine.grammar import LazyGrammars
from isoflop.engine.request import Request
from isoflop.engine.sampling import Sampling
from isoflop.engine.server.app import Limits, build
from isoflop.engine.server.jobs import Desk
from isoflop.engine.template import Template
from isoflop.engine.text import TextStream
from isoflop.engine.vocabulary import Vocabulary, open_vocabulary
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

CONTEXT = 512


def bodies(n: int, seed: int) -> list[dict[str, Any]]:
    """Requests of mixed lengths."""
    pick = random.Random(seed)
    return [
        {
            "prompt": "".join(pick.choices("abcdefgh ", k=pick.randint(8, 200))),
            "max_tokens": pick.randint(8, 48),
            "ignore_eos": True,
            "seed": i,
            "stream": True,
        }
        for i in range(n)
    ]


def n_tokens(asked: list[dict[str, Any]]) -> int:
    """Of output."""
    return sum(body["max_tokens"] for body in asked)


def bare(engine: Engine, asked: list[dict[str, Any]]) -> float:
    """Seconds of the engine alone, all requests at once."""
    start = time.perf_counter()
    for i, body in enumerate(asked):
        sampling = Sampling(max_tokens=body["max_tokens"], seed=body["seed"], ignore_eos=True)
        engine.submit(Request(f"bare-{i}", tuple(body["prompt"].encode()), sampling))
    while engine.has_work:
        engine.step()
    return time.perf_counter() - start


async def one(app: Any, body: dict[str, Any], times: list[list[float]]) -> None:
    """One request to the application, as a server would hand it over; the times of its events."""
    start, stamps = time.perf_counter(), list[float]()
    data, given = json.dumps(body).encode(), False

    async def receive() -> dict[str, Any]:
        nonlocal given
        if given:
            await asyncio.Event().wait()
        given = True
        return {"type": "http.request", "body": data, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == 200, message
        elif message.get("body"):
            stamps.append(time.perf_counter() - start)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "query_string": b"", "http_version": "1.1"}
    headers = [(b"content-type", b"application/json"), (b"host", b"x")]
    await app(scope | {"headers": headers, "scheme": "http", "raw_path": b"/v1/completions"}, receive, send)
    times.append(stamps)


async def load(server: Any, asked: list[dict[str, Any]], rate: float) -> tuple[float, list[list[float]]]:
    """Seconds for all, and each one's event times; `rate` 0: all at once."""
    pick, times = random.Random(1), list[list[float]]()
    start, running = time.perf_counter(), []
    for body in asked:
        running.append(asyncio.create_task(one(server.app, body, times)))
        if rate:
            await asyncio.sleep(pick.expovariate(rate))
    await asyncio.gather(*running)
    return time.perf_counter() - start, times


def sampling_cost(vocab_size: int, **choice: Any) -> float:
    """Microseconds to choose one token at batch 1; the best of several runs."""
    logits, row = torch.randn(1, vocab_size), [Row(Sampling(**choice), 1, 3, list(range(100)))]
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(100):
            sample(logits, row)
        best = min(best, (time.perf_counter() - start) / 100)
    return best * 1e6


def text_cost(vocabulary: Vocabulary) -> float:
    """Microseconds a token of detokenization with two stop strings."""
    best = float("inf")
    for _ in range(7):
        stream, start = TextStream(vocabulary, ["\n\n", "</end>"]), time.perf_counter()
        for i in range(1000):
            stream.feed(97 + i % 20)
        best = min(best, (time.perf_counter() - start) / 1000)
    return best * 1e6


def told(name: str, values: list[float]) -> str:
    """Median and 95th percentile in milliseconds."""
    ranked = sorted(values)
    return (
        f"{name} {statistics.median(ranked) * 1e3:7.1f} ms, p95 {ranked[int(0.95 * (len(ranked) - 1))] * 1e3:7.1f} ms"
    )


async def main(args: argparse.Namespace, vocabulary: Vocabulary, engine: Engine) -> None:
    """Print the table."""
    asked = bodies(args.requests, 0)
    guide = LazyGrammars(vocabulary).guide
    server = build(engine, Desk("load", vocabulary, Template(None, {}), guide, CONTEXT), [], Limits(live=10_000), None)
    bare(engine, bodies(8, 9))  # warm
    sets = [bodies(args.requests, seed) for seed in range(2, 8)]  # new ones each time: none is in the cache
    alone = min(bare(engine, few) / n_tokens(few) for few in sets[:3])
    server.runner.start()
    whole = min([(await load(server, few, 0))[0] / n_tokens(few) for few in sets[3:]])
    seconds, times = await load(server, asked, args.rate)
    await server.runner.stop()
    print(f"engine alone     {1 / alone:9.0f} tokens/s")
    more = (whole - alone) * 1e6
    print(f"through the API  {1 / whole:9.0f} tokens/s, streamed; {more:.0f} us a token more")
    print(f"at {args.rate:g} requests/s: {args.requests} in {seconds:.2f} s")
    print("  " + told("first token", [stamps[0] for stamps in times]))
    print("  " + told("a token    ", [b - a for stamps in times for a, b in itertools.pairwise(stamps)]))


if __name__ == "__main__":
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--rate", type=float, default=40.0)
    parser.add_argument("--d-model", type=int, default=256)
    asked_for = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text("{}")
        letters = open_vocabulary(Path(scratch), 256)
    for label, choice in (
        ("greedy", {"temperature": 0.0}),
        ("temperature", {}),
        ("top-k 50", {"top_k": 50}),
        ("top-p 0.9", {"top_p": 0.9}),
        ("all three, min-p, penalties", {"top_k": 50, "top_p": 0.9, "min_p": 0.05, "presence_penalty": 0.5}),
        ("greedy, 5 log probabilities", {"temperature": 0.0, "logprobs": 5}),
    ):
        print(f"choice at 32k tokens, {label:28} {sampling_cost(32_000, **choice):7.0f} us")
    print(f"detokenization and stop strings {text_cost(letters):27.1f} us a token")
    network = DecoderModel(Dense().build(asked_for.d_model, 256, CONTEXT))
    initialize(network, 0, Recipe(lr=1e-3, batch=1))
    asyncio.run(main(asked_for, letters, Engine(network, Options(memory=1 << 27))))
