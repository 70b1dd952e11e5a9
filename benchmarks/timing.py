"""Timing by turns, on a machine that others use too: the best of many short slices counts."""

import time
from collections.abc import Callable

import torch

from isoflop.model.linear import linear

Run = Callable[[], object]


def interleave(
    runs: dict[str, Run],
    rounds: int,
    slice_s: float,
    clock: Callable[[], float] = time.perf_counter,
    at_most_s: float = float("inf"),
) -> dict[str, float]:
    """Seconds a call, the best of `rounds` slices of about `slice_s` each, in turn; at least three rounds, and no more
    once `at_most_s` have passed."""
    best = dict.fromkeys(runs, float("inf"))
    begun = time.perf_counter()
    for i in range(rounds):
        if i >= 3 and time.perf_counter() - begun > at_most_s:
            break
        for name, run in runs.items():
            if best[name] == float("inf"):
                best[name] = _time(run, 1, clock)
            best[name] = min(best[name], _time(run, max(1, int(slice_s / best[name])), clock))
    return best


def _time(run: Run, count: int, clock: Callable[[], float]) -> float:
    started = clock()
    for _ in range(count):
        run()
    return (clock() - started) / count


def clock_of(threads: int) -> Callable[[], float]:
    """The time a single thread had the processor, which others cannot lengthen much; of several threads, the wall's."""
    return time.process_time if threads == 1 else time.perf_counter


def matmul_peak(clock: Callable[[], float] = time.perf_counter, size: int = 1024, rounds: int = 15) -> float:
    """FLOP/s of a fp32 matrix product on the threads torch has, by the faster of its two libraries."""
    a = torch.randn(size, size)
    products = {"default": lambda: a @ a, "oneDNN": lambda: linear(a, a)}
    return 2 * size**3 / min(interleave(products, rounds, 0.05, clock).values())


def bandwidth(clock: Callable[[], float] = time.perf_counter, numbers: int = 2**26, rounds: int = 15) -> float:
    """Bytes/s, read and written, of copying fp32 numbers far beyond the caches."""
    a, b = torch.ones(numbers), torch.empty(numbers)
    return 2 * a.nbytes / interleave({"": lambda: b.copy_(a)}, rounds, 0.05, clock)[""]
