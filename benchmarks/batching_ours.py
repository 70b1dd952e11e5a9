"""The engine as a side of benchmarks/batching.py: THREADS KIND. bf16 is a checkpoint of bf16 as `isoflop serve` runs
it: matrices, products and caches."""

import sys
from collections.abc import Iterator

import torch

from batching_load import Ask, serve
from inference_ours import build
from isoflop.engine.engine import Engine, Options
from isoflop.engine.request import Request
from isoflop.engine.sampling import Sampling


def run(engine: Engine, asks: list[Ask], at_once: int) -> dict[str, float]:
    """All requests to their ends, `at_once` of them under way; tells the steps that took."""
    waiting, under_way, before = enumerate(asks), 0, engine.stats.steps
    while True:
        under_way += sum(1 for _ in _submit(engine, waiting, at_once - under_way))
        if not under_way:
            return {"steps": engine.stats.steps - before}
        under_way -= sum(event.finish is not None for event in engine.step())


def _submit(engine: Engine, waiting: Iterator[tuple[int, Ask]], n: int) -> Iterator[int]:
    for _, (i, ask) in zip(range(n), waiting, strict=False):
        engine.submit(Request(str(i), ask.prompt, Sampling(temperature=0.0, max_tokens=ask.n_new, ignore_eos=True)))
        yield i


def main() -> None:
    torch.set_num_threads(int(sys.argv[1]))
    model, _ = build(sys.argv[2])
    if sys.argv[2] == "bf16":
        model.dtype = torch.bfloat16
        model.embedding.data = model.embedding.data.bfloat16()
    engine = Engine(model, Options(reuse=False, memory=2**29))
    serve(lambda asks, at_once: run(engine, asks, at_once))


if __name__ == "__main__":
    main()
