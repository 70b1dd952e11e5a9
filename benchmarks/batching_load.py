"""The requests of benchmarks/batching.py, and how a side takes its orders. No torch."""

import json
import random
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

REQUESTS, CONTEXT, VOCAB = 64, 1024, 32_000
STEP = 512  # tokens that fill a step
TYPICAL = 3  # of each eight requests: those together are about as long, prompts and outputs, as an eighth of all


class Mix(NamedTuple):
    """The shortest and the longest, in tokens; any between are as common by their logarithms."""

    prompts: tuple[int, int]
    outputs: tuple[int, int]


MIXES = {"mixed": Mix((8, 128), (8, 128)), "chat": Mix((8, 128), (64, 256))}


class Ask(NamedTuple):
    prompt: tuple[int, ...]
    n_new: int


def requests(mix: str = "mixed", seed: int = 0) -> list[Ask]:
    """Random tokens, always the same."""
    chance, m = random.Random(seed), MIXES[mix]
    lengths = [(_length(chance, *m.prompts), _length(chance, *m.outputs)) for _ in range(REQUESTS)]
    return [Ask(_tokens(chance, prompt), output) for prompt, output in lengths]


def _asked(what: str) -> list[Ask]:
    """A mix, "typical MIX": an eighth of it, or "prompts": three that fill a step each, and no more."""
    if what == "prompts":
        return [Ask(_tokens(random.Random(i), STEP), 1) for i in range(3)]
    mix = what.removeprefix("typical ")
    return requests(mix) if mix == what else requests(mix)[TYPICAL::8]


def _length(chance: random.Random, least: int, most: int) -> int:
    return round(least * (most / least) ** chance.random())


def _tokens(chance: random.Random, n: int) -> tuple[int, ...]:
    return tuple(chance.randrange(VOCAB) for _ in range(n))


def serve(run: Callable[[list[Ask], int], dict[str, float]]) -> None:
    """Answer orders from stdin: {"asks": what, "at_once": n} runs those requests, n of them at a time. The answer is
    tokens of prompts and outputs, seconds of the wall and of the processor, and what the run itself tells."""
    run(requests()[:2], 2)  # to warm up
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        asks = _asked(order["asks"])
        wall, processor = time.perf_counter(), time.process_time()
        told = run(asks, order["at_once"])
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        n_prompt, n_new = sum(len(ask.prompt) for ask in asks), sum(ask.n_new for ask in asks)
        answer = {"prompts": n_prompt, "outputs": n_new, "wall": wall, "processor": processor, **told}
        print(json.dumps(answer), flush=True)
