"""The engine as a side of benchmarks/batching.py: THREADS KIND."""

import sys
from collections.abc import Iterator

import torch

from batching_load import Ask, serve
from inference_ours import build
from isoflop.engine.engine import Engine, Options
from isoflop.engine.request import Request
from isoflop.engine.sampling import Sampling


def run(engine: Engine, asks: list[Ask], at_once: int) -> None:
    """All requests to their ends, `at_once` of them under way."""
    waiting, under_way = enumerate(asks), 0
    while True:
        under_way += sum(1 for _ in _submit(engine, waiting, at_once - under_way))
        if not under_way:
            return
        under_way -= sum(event.finish is not None for event in engine.step())


def _submit(engine: Engine, waiting: Iterator[tuple[int, Ask]], n: int) -> Iterator[int]:
    for _, (i, ask) in zip(range(n), waiting, strict=False):
        engine.submit(Request(str(i), ask.prompt, Sampling(temperature=0.0, max_tokens=ask.n_new, ignore_eos=True)))
        yield i


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    model, _ = build(sys.argv[2])
    engine = Engine(model, Options(reuse=False, dtype="fp32", memory=2**29))
    serve(lambda asks, at_once: run(engine, asks, at_once))


if __name__ == "__main__":
    main()
