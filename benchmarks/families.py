"""Tokens a second of the engine on a CPU for every family of layers, beside transformers: the same shapes, random
weights, the same threads, in turn.

    python benchmarks/families.py --rounds 3
    python benchmarks/families.py --only latent,hybrid --threads 1

Each side is a process that waits while others run; of its slices the best counts. Decoding: a batch of sequences after
32 tokens each, 32 tokens more, greedily; prefill: 512 tokens of one sequence and the last one's logits. Beside them
stands the share of the bound: of the tokens that memory could deliver at most, if a step moved no more than the cost
model's bytes (weights that its tokens need, of experts those that get a token; keys, values, latents; states both ways)
at the best speed at which the same threads, once a round, read numbers far beyond the caches.
"""

import argparse
import json
import sys
from pathlib import Path

from families_shape import FAMILIES, bytes_moved
from inference import BATCHES, PREFILL, Side, measure
from inference_shape import PROMPT, TOKENS

HERE = Path(__file__).resolve().parent
KINDS = ("isoflop fp32", "isoflop int8", "transformers fp32")


def sides(family: str, threads: int, kinds: str, experts: str | None) -> list[Side]:
    found = []
    for name in (name for name in KINDS if any(word in name for word in kinds.split(","))):
        who, kind = name.split()
        ours = who == "isoflop"
        last = [kind] if ours else [experts] if experts else []
        script = HERE / ("families_ours.py" if ours else "families_transformers.py")
        found.append(Side(name, [sys.executable, str(script), str(threads), family, *last]))
    return found


def show(family: str, found: list[Side], bandwidth: float) -> None:
    theirs = next((side for side in found if side.name == KINDS[-1]), None)
    for side in found:
        cells = []
        for batch in BATCHES:
            what = json.dumps({"decode": batch})
            rate = side.best[what]
            bound = batch * bandwidth / bytes_moved(FAMILIES[family], batch, PROMPT + TOKENS // 2, side.bytes)
            cells += [f"{rate:.1f}", f"{rate / bound:.0%}", _ratio(rate, theirs, what)]
        what = json.dumps({"prefill": PREFILL})
        cells += [f"{side.best[what]:.0f}", _ratio(side.best[what], theirs, what)]
        print(f"{family:12}{side.name:20}" + "".join(f"{cell:>12}" for cell in cells), flush=True)


def _ratio(rate: float, theirs: Side | None, what: str) -> str:
    return "" if theirs is None else f"{rate / theirs.best[what]:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, nargs="+", choices=(1, 2), default=(1, 2))
    parser.add_argument("--only", default=",".join(FAMILIES), help=f"of {', '.join(FAMILIES)}, with commas between")
    parser.add_argument("--sides", default="", help=f"parts of sides' names, with commas between: {', '.join(KINDS)}")
    parser.add_argument("--experts", help="transformers' implementation of experts, if not what comes unasked")
    a = parser.parse_args()
    if unknown := set(a.only.split(",")) - set(FAMILIES):
        raise SystemExit(f"--only {', '.join(unknown)}: no family; there are {', '.join(FAMILIES)}")
    columns = "batch 1", "of bound", "over theirs", "batch 8", "of bound", "over theirs", "prefill", "over theirs"
    for threads in a.threads:
        print(
            f"\n{threads} thread{'s' if threads > 1 else ''}; tokens/s\n{'':32}" + "".join(f"{c:>12}" for c in columns)
        )
        for family in a.only.split(","):
            found = sides(family, threads, a.sides, a.experts)
            bandwidth = measure(found, a.rounds, threads)
            for side in found:
                side.close()
            show(family, found, bandwidth)


if __name__ == "__main__":
    main()
