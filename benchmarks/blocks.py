"""Every mixer and feed-forward beside transformers' module of the same shape, with the same weights and inputs.

    python benchmarks/blocks.py [--only llama,mamba] [--sizes tiny,small,medium,long] [--rounds 20] [--json FILE]

fp32; outputs and the inputs' gradients are held equal before anything is timed. Both are timed in turn, the best slice
of each counts: processor time where there is one thread. `train` is forward and backward, `prefill` a forward that
leaves a cache, `decode` the one token after 512 others, for 1 and for 8 sequences. Feed-forwards keep nothing: theirs
are forwards of as many rows. transformers has no S4D and no Hyena: theirs are plain torch (block_plain.py). `scan` is
the recurrence of Mamba-2 alone, beside their function for it. Experts: their loop ("eager") and grouped products.

The floor of a row is max(FLOPs / peak, bytes / bandwidth): exact FLOPs; the weights that are used, the cache, and what
goes in and out, each moved once (training: three times); peak of a 1024 x 1024 fp32 product, bandwidth of a large copy.
"""

import argparse
import json
import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from block_pairs import Block, build
from block_specs import SPECS, Spec
from timing import bandwidth, clock_of, interleave, matmul_peak

PAST = 512
SIZES = {
    "tiny": (64, 8, 128),
    "small": (256, 4, 256),
    "medium": (512, 4, 512),
    "long": (256, 1, 2048),
}  # d_model, sequences, tokens


class Row(NamedTuple):
    """Seconds a call; `ratio` is theirs over ours, `share` of the floor over ours."""

    block: str
    peer: str
    size: str
    mode: str
    ours_s: float
    theirs_s: float
    floor_s: float

    @property
    def ratio(self) -> float:
        return self.theirs_s / self.ours_s

    @property
    def share(self) -> float:
        return self.floor_s / self.ours_s


class Machine(NamedTuple):
    """Peak FLOP/s and bytes/s of so many threads, and how to time on it."""

    threads: int
    peak: float
    bandwidth: float
    rounds: int

    def floor(self, block: Block, mode: str, x_BTM: Tensor, n_tokens: int) -> float:
        """Seconds that a call takes at least."""
        flops, moved = block.flops(mode, len(x_BTM), n_tokens), block.bytes(mode, x_BTM, n_tokens)
        return max(flops / self.peak, moved / self.bandwidth)


def main() -> None:
    args = arguments()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    clock = clock_of(args.threads)
    machine = Machine(args.threads, matmul_peak(clock), bandwidth(clock), args.rounds)
    print(
        f"torch {torch.__version__}, {args.threads} thread(s), peak {machine.peak / 1e9:.0f} GFLOP/s, "
        f"{machine.bandwidth / 1e9:.1f} GB/s; ms a call"
    )
    print(f"{'block':<16}{'peer':<34}{'size':<8}{'mode':<10}{'ours':>10}{'theirs':>10}{'ratio':>8}{'of floor':>10}")
    rows = []
    for size in args.sizes.split(","):
        for spec in SPECS:
            if matches(spec.name, args.only) and runs_at(spec, size):
                modes = [m for m in args.modes.split(",") if spec.decodes or not m.startswith("decode")]
                rows += measure(build(spec, SIZES[size][0]), size, modes, machine)
    slower = [row for row in rows if row.ratio < 1]
    print(f"{len(rows)} rows, {len(slower)} slower than the peer")
    if args.json:
        found = [row._asdict() | {"ratio": row.ratio, "share": row.share} for row in rows]
        settings = {"torch": torch.__version__, **machine._asdict()}
        Path(args.json).write_text(json.dumps({"machine": settings, "rows": found}, indent=1) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of blocks, or how they begin, with commas")
    parser.add_argument("--sizes", default="tiny,small,medium,long")
    parser.add_argument("--modes", default="train,prefill,decode 1,decode 8")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", help="file to write the rows to")
    return parser.parse_args()


def runs_at(spec: Spec, size: str) -> bool:
    """Long sequences tell mixers apart, and of the tiny shapes those of feed-forwards, where calls cost most."""
    return spec.attends if size == "long" else not spec.mixes if size == "tiny" else True


def matches(name: str, only: str) -> bool:
    return any(name.startswith(part) for part in only.split(","))


def measure(block: Block, size: str, modes: list[str], machine: Machine) -> list[Row]:
    """Check, time and print one block in every mode it has."""
    d_model, batch, tokens = SIZES[size]
    rows = []
    for mode in modes:
        decodes = mode.startswith("decode")
        x_BTM = torch.randn(int(mode.split()[1]), 1, d_model) if decodes else torch.randn(batch, tokens, d_model)
        n_tokens = PAST if decodes else tokens
        runs = block.runs(mode, x_BTM, n_tokens)
        check(block.name, mode, runs)
        best = interleave(runs, machine.rounds, 0.03, clock_of(machine.threads), at_most_s=8)
        floor = machine.floor(block, mode, x_BTM, n_tokens)
        rows.append(Row(block.name, block.peer, size, mode, best["ours"], best["theirs"], floor))
        show(rows[-1])
    return rows


def check(name: str, mode: str, runs: dict[str, Any]) -> None:
    """Both return the same tensors."""
    for ours, theirs in zip(runs["ours"](), runs["theirs"](), strict=True):
        error = float((ours - theirs).abs().max() / theirs.abs().max())
        assert error < 1e-3, f"{name}, {mode}: outputs differ by {error:.1e}"


def show(row: Row) -> None:
    print(
        f"{row.block:<16}{row.peer:<34}{row.size:<8}{row.mode:<10}{row.ours_s * 1e3:>10.3f}{row.theirs_s * 1e3:>10.3f}"
        f"{row.ratio:>8.2f}{row.share:>10.0%}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
