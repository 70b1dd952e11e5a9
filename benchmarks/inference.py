"""Tokens a second of the engine on a CPU beside llama.cpp and transformers: the same shape, random weights, the same
threads, in turn.

    python benchmarks/inference.py --rounds 3                                 the engine and transformers
    python benchmarks/inference.py --rounds 3 --peers PEERS/bin/python        and llama.cpp

PEERS is an environment of its own: python -m venv PEERS && PEERS/bin/pip install llama-cpp-python gguf. Each side is a
process that waits while others run; of its slices the best counts. Decoding: a batch of sequences after 32 tokens
each, 32 tokens more, greedily; prefill: 512 tokens of one sequence and the last one's logits. What is shown beside the
figures: their ratio to llama.cpp's at the same bits, and the share of the tokens that memory could deliver at most
(bytes of all matrices a step, at the best speed at which the same threads, once a round, read numbers far beyond the
caches: add them up, or multiply a row by them).
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
BATCHES, PREFILL = (1, 8), 512
OURS = ("isoflop int4", "isoflop int4 g128", "isoflop int8", "isoflop bf16", "isoflop fp32")
THEIRS = ("llama.cpp q4_0", "llama.cpp q8_0", "llama.cpp bf16", "llama.cpp f32")
TRANSFORMERS = ("transformers fp32", "transformers bf16")
PEER_OF = dict(zip(OURS, (THEIRS[0], THEIRS[0], THEIRS[1], THEIRS[2], THEIRS[3]), strict=True))
# Measured on one AMD EPYC (Zen 4, 2 cores, 16 and 29 GB/s) in 2026: tokens/s at batch 1, at batch 8, of prefill.
PUBLISHED = {
    1: {
        "llama.cpp q4_0": (83, 179, 599),
        "llama.cpp q8_0": (61, 150, None),
        "llama.cpp bf16": (46, 130, None),
        "transformers's best": (33, 148, 741),
        "torch int4 groupwise, compiled": (109, 247, None),
        "torch dynamic int8, compiled": (86, 313, 1244),
    },
    2: {
        "llama.cpp q4_0": (195, 353, 1140),
        "llama.cpp q8_0": (120, 287, None),
        "llama.cpp bf16": (90, 244, None),
        "transformers's best": (55, 255, 1384),
        "torch int4 groupwise, compiled": (192, 433, None),
        "torch dynamic int8, compiled": (158, 544, 2359),
        "vLLM's CPU build bf16": (74, 343, 864),
        "vLLM's CPU build W8A8": (97, 417, 2579),
    },
}


class Side:
    """A process that runs what it is told, a line of JSON each: {"decode": batch} or {"prefill": tokens}."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.best: dict[str, float] = {}
        ready = self._answer()
        self.bytes = ready["bytes"]

    def run(self, what: dict[str, int]) -> None:
        """Tokens a second, kept if they are the most so far."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        key, rate = json.dumps(what), self._answer()["tokens/s"]
        self.best[key] = max(self.best.get(key, 0.0), rate)

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return dict(json.loads(line))
        raise RuntimeError(f"{self.name} stopped")


def sides(threads: int, peers: str | None, files: Path, only: str, compile_: bool) -> list[Side]:
    commands = {name: [sys.executable, str(HERE / "inference_ours.py"), name.split(" ", 1)[1]] for name in OURS}
    if peers:
        commands |= {name: [peers, str(HERE / "inference_llama.py"), name.split()[1], str(files)] for name in THEIRS}
    for name in TRANSFORMERS:
        commands[name] = [sys.executable, str(HERE / "inference_transformers.py"), name.split()[1]]
        commands[name] += ["compile"] if compile_ else []
    wanted = {name: command for name, command in commands.items() if any(word in name for word in only.split(","))}
    if not wanted:
        raise SystemExit(f"--only {only}: no side is named so; there are {', '.join(commands)}")
    return [Side(name, [*command[:2], str(threads), *command[2:]]) for name, command in wanted.items()]


def measure(found: list[Side], rounds: int, threads: int) -> float:
    """The bytes a second that were read at best, once a round."""
    bandwidth = 0.0
    tasks = [{"decode": batch} for batch in BATCHES] + [{"prefill": PREFILL}]
    for turn in range(rounds):
        bandwidth = max(bandwidth, bandwidth_of(threads))
        for task in tasks:
            for side in found:
                side.run(task)
        print(f"  round {turn + 1} of {rounds}", file=sys.stderr, flush=True)
    return bandwidth


def show(found: list[Side], threads: int, bandwidth: float) -> None:
    print(f"\n{threads} thread{'s' if threads > 1 else ''}, reading {bandwidth / 1e9:.1f} GB/s; tokens/s")
    columns = "batch 1", "of bound", "over llama.cpp", "batch 8", "over llama.cpp", "prefill", "over llama.cpp's best"
    print(f"{'':32}" + "".join(f"{column:>22}" for column in columns))
    by_name = {side.name: list(side.best.values()) for side in found}
    prefills = [rates[2] for name, rates in by_name.items() if name in THEIRS]
    for side in found:
        one, eight, prefill = by_name[side.name]
        peer = by_name.get(PEER_OF.get(side.name, ""))
        ratios = (f"{one / peer[0]:.2f}", f"{eight / peer[1]:.2f}") if peer else ("", "")
        last = f"{prefill / max(prefills):.2f}" if prefills else ""
        cells = f"{one:.1f}", f"{one * side.bytes / bandwidth:.0%}", ratios[0], f"{eight:.1f}", ratios[1]
        print(f"{side.name:32}" + "".join(f"{cell:>22}" for cell in (*cells, f"{prefill:.0f}", last)))
    for name, figures in PUBLISHED[threads].items():
        print(f"  published: {name:40}" + " / ".join("-" if x is None else str(x) for x in figures))


def bandwidth_of(threads: int) -> float:
    """Bytes/s that `threads` can read of 256 MiB: the best of 10 sums and of 10 products with a row."""
    code = (
        "import time, torch; from isoflop.model.kernels import rows\n"
        "torch.set_num_threads(%d); a = torch.ones(2**14, 2**12); x = torch.ones(1, 2**12); best = 1e9\n"
        "for read in [a.sum, lambda: rows.linear(x, a, None)] * 10:\n"
        "  t = time.perf_counter(); read(); best = min(best, time.perf_counter() - t)\n"
        "print(a.nbytes / best)"
    )
    run = subprocess.run([sys.executable, "-c", code % threads], check=True, capture_output=True, text=True)
    return float(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", help="a Python with llama-cpp-python and gguf")
    parser.add_argument("--threads", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument("--only", default="", help="parts of sides' names, with commas between")
    parser.add_argument("--compile", action="store_true", help="transformers compiled (minutes more)")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for threads in a.threads:
            found = sides(threads, a.peers, Path(folder), a.only, a.compile)
            bandwidth = measure(found, a.rounds, threads)
            for side in found:
                side.close()
            show(found, threads, bandwidth)


if __name__ == "__main__":
    main()
