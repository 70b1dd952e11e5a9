"""The requests of benchmarks/batching.py, and how a side takes its orders. No torch."""

import json
import random
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

REQUESTS, CONTEXT, VOCAB = 64, 1024, 32_000
PROMPTS, OUTPUTS = (8, 128), (8, 128)  # the shortest and the longest, as common as any by their logarithms


class Ask(NamedTuple):
    prompt: tuple[int, ...]
    n_new: int


def requests(n: int = REQUESTS, seed: int = 0) -> list[Ask]:
    """Mixed lengths and random tokens, always the same."""
    chance = random.Random(seed)
    lengths = [(_length(chance, *PROMPTS), _length(chance, *OUTPUTS)) for _ in range(n)]
    return [Ask(tuple(chance.randrange(VOCAB) for _ in range(prompt)), output) for prompt, output in lengths]


def _length(chance: random.Random, least: int, most: int) -> int:
    return round(least * (most / least) ** chance.random())


def serve(run: Callable[[list[Ask], int], None]) -> None:
    """Answer orders from stdin: {"every": k, "at_once": n} runs every k-th request, n of them at a time. The answer is
    tokens of output a second, of the wall's time and of the processor's."""
    asks = requests()
    run(asks[:2], 2)  # to warm up
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        some = asks[:: order["every"]]
        wall, processor = time.perf_counter(), time.process_time()
        run(some, order["at_once"])
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
        n_new = sum(ask.n_new for ask in some)
        print(json.dumps({"tokens/s": n_new / wall, "tokens/cpu s": n_new / processor}), flush=True)
