"""The model of benchmarks/inference.py: 100 million weights a token. And how a side takes its orders. No torch."""

import json
import sys
import time
from collections.abc import Callable

LAYERS, D_MODEL, HEADS, KV_HEADS, D_HEAD, D_FF, VOCAB, CONTEXT = 12, 768, 12, 4, 64, 2048, 32_000, 1024
PROMPT, TOKENS = 32, 32
WEIGHTS = LAYERS * D_MODEL * ((2 * HEADS + 2 * KV_HEADS) * D_HEAD + 3 * D_FF) + VOCAB * D_MODEL


def serve(nbytes: float, decode: Callable[[int], float], prefill: Callable[[int], float]) -> None:
    """Answer orders from stdin with tokens a second; `nbytes` is what all matrices take. Each warms up once."""
    decode(1), prefill(PROMPT)
    print(json.dumps({"bytes": nbytes}), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "decode" in order:
            rate = max(order["decode"] * TOKENS / decode(order["decode"]) for _ in range(2))
        else:
            rate = order["prefill"] / prefill(order["prefill"])
        print(json.dumps({"tokens/s": rate}), flush=True)


class Watch:
    """with Watch() as watch: ...; watch.seconds"""

    def __enter__(self) -> "Watch":
        self.begun = time.perf_counter()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.begun
