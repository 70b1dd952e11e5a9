"""Ten thousand random requests at the limit of memory, over a model of every kind.

Lengths go from one token to more than the cache can hold; there are shared prefixes, drafts, forks, cancellations at
any time, refusals. Afterwards every page and slot is free, every request is accounted for, and a sample of what was
said is what the plain model says.

    python benchmarks/soak.py [--requests 10000]
"""

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "engine"))
from small_engines import KINDS, VOCABULARY, assert_plain, engine_of, greedy, model_of

from isoflop.engine.engine import Engine
from isoflop.engine.ngram import NgramDrafter
from isoflop.engine.request import Request

LIVE = 40  # requests under way at most


class Soak:
    """One engine and the requests that pass through it."""

    def __init__(self, kind: str, seed: int) -> None:
        self.draw, self.model = random.Random(seed), model_of(*KINDS[kind])
        roomy = engine_of(self.model)
        memory = sum(group.page_bytes * 36 for group in roomy.plan.groups) + roomy.plan.slot_bytes * 10
        options = {"memory": memory, "most_running": 8, "snapshots": 5, "tokens_per_step": 24, "typical": 100}
        dtype = self.draw.choice((None, None, "int8", "int4"))
        self.exact = dtype is None or kind in ("mamba-1", "mamba-2", "s4d", "hyena")
        self.engine: Engine = engine_of(self.model, NgramDrafter(2, 1), dtype=dtype, **options)
        self.beginnings = [self.tokens(n) for n in (5, 20, 41)]
        self.prompts: dict[str, tuple[int, ...]] = {}
        self.outputs: dict[str, list[int]] = {}
        self.finished: dict[str, str] = {}
        self.counts: Counter[str] = Counter()

    def tokens(self, n: int) -> tuple[int, ...]:
        return tuple(self.draw.randrange(VOCABULARY) for _ in range(n))

    def run(self, n_requests: int) -> None:
        for i in range(n_requests):
            self.ask(str(i))
            for _ in range(self.draw.randrange(4)):
                self.step()
            while len(self.prompts) - len(self.finished) > LIVE:
                self.step()
            if self.draw.random() < 0.2 and self.prompts:
                self.counts["cancelled"] += self.engine.cancel(self.draw.choice(list(self.prompts)[-LIVE:]))
        while self.engine.has_work:
            self.step()
        self.account()

    def ask(self, id: str) -> None:
        live = [key for key in list(self.prompts)[-LIVE:] if key not in self.finished]
        try:
            if live and self.draw.random() < 0.1:
                self.fork(self.draw.choice(live), id)
                return
            body = self.tokens(self.draw.choice((0, 1, 3, 10, 30, 60, 200)))
            prompt = (*self.draw.choice(self.beginnings), *body) if self.draw.random() < 0.6 else body
            self.engine.submit(Request(id, prompt, greedy(self.draw.choice((1, 5, 20, 40)))))
            self.prompts[id] = prompt
        except ValueError:
            self.counts["refused"] += 1

    def fork(self, old: str, new: str) -> None:
        self.engine.fork(old, new, greedy(40))
        self.prompts[new] = (*self.prompts[old], *self.outputs.get(old, []))
        self.counts["forked"] += 1

    def step(self) -> None:
        for event in self.engine.step():
            if event.token is not None:
                self.outputs.setdefault(event.id, []).append(event.token)
            if event.finish is not None:
                assert event.id not in self.finished
                self.finished[event.id] = event.finish

    def account(self) -> None:
        stats = self.engine.stats
        assert (stats.running, stats.waiting, stats.pages_held, stats.slots_held) == (0, 0, 0, 0), stats
        assert self.finished.keys() == self.prompts.keys()
        assert self.engine.memory.nbytes == self.engine.plan.nbytes
        whole = [id for id, finish in self.finished.items() if finish == "length"]
        if self.exact:
            for id in self.draw.sample(whole, min(40, len(whole))):
                assert_plain(self.model, {id: self.prompts[id]}, {id: self.outputs[id]})
        self.counts["finished"] = len(whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    each = asked.requests // len(KINDS)
    for seed, kind in enumerate(KINDS):
        soak, start = Soak(kind, seed), time.perf_counter()
        soak.run(each)
        s, c = soak.engine.stats, soak.counts
        print(
            f"{kind:10} {each} requests: {c['finished']} finished, {c['cancelled']} cancelled, {c['refused']} refused, "
            f"{c['forked']} forks; {s.preempted} preemptions, {s.copied} copies, {s.evicted} evictions, "
            f"{s.found} of {s.looked_up} tokens found, {s.accepted} of {s.drafted} drafts; "
            f"cache {soak.engine.plan.dtype}, {time.perf_counter() - start:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
