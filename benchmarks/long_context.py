"""Peak memory and time of training and prefill against context, at a small width, and memory's exponent in context.

    python benchmarks/long_context.py [--longest 65536] [--d-model 32] [--threads 1]

Each point is a process of its own. Memory is the most that was ever resident (VmHWM) less what was resident before the
pass, after a pass over 64 tokens had loaded and built everything once. Training is one forward and backward of the loss
over one sequence of bytes; prefill is one forward that fills a cache, all logits returned. The exponent is the slope of
log memory over log context from 8k on: 1 is linear.
"""

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import torch

from isoflop.architecture import Attention, Decoder, LatentAttention, Layer, Mamba2, Mixer, Mlp
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

D_HEAD = 16
SHORTEST, FITTED_FROM = 1024, 8192
MIB = 2**20


def mixers(d_model: int) -> dict[str, Mixer]:
    heads = d_model // D_HEAD
    latent = {"kv_rank": d_model // 2, "d_nope": D_HEAD, "d_rope": D_HEAD // 2, "d_value": D_HEAD}
    return {
        "attention": Attention(n_heads=heads, n_kv_heads=heads, d_head=D_HEAD),
        "window 256": Attention(n_heads=heads, n_kv_heads=heads, d_head=D_HEAD, window=256, sinks=True),
        "latent": LatentAttention(n_heads=heads, **latent),
        "mamba-2": Mamba2(n_heads=2 * heads, d_head=D_HEAD, d_state=32),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longest", type=int, default=2**16)
    parser.add_argument("--d-model", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--mixer", action="append", help="only these")
    parser.add_argument("--point", nargs=3, metavar=("MIXER", "PASS", "CONTEXT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        torch.set_num_threads(args.threads)
        print(json.dumps(measure(args.point[0], args.point[1], int(args.point[2]), args.d_model)))
        return
    contexts = [2**i for i in range(int(math.log2(SHORTEST)), int(math.log2(args.longest)) + 1)]
    print(f"torch {torch.__version__}, {args.threads} thread(s), d_model {args.d_model}, 2 layers; MiB, then seconds")
    print(f"{'':22}" + "".join(f"{context // 1024:>8}k" for context in contexts) + "  exponent")
    for mixer in args.mixer or mixers(args.d_model):
        for what in ("train", "prefill"):
            row(mixer, what, contexts, args)


def row(mixer: str, what: str, contexts: list[int], args: argparse.Namespace) -> None:
    points = [point(mixer, what, context, args) for context in contexts]
    fitted = [(c, p["bytes"]) for c, p in zip(contexts, points, strict=True) if c >= FITTED_FROM]
    exponent = f"{slope(fitted):>10.2f}" if len(fitted) > 1 else ""
    print(f"{mixer + ', ' + what:22}" + "".join(f"{p['bytes'] / MIB:>9.1f}" for p in points) + exponent)
    print(f"{'':22}" + "".join(f"{p['seconds']:>9.2f}" for p in points), flush=True)


def point(mixer: str, what: str, context: int, args: argparse.Namespace) -> dict[str, float]:
    options = ["--d-model", str(args.d_model), "--threads", str(args.threads)]
    line = [sys.executable, __file__, "--point", mixer, what, str(context), *options]
    return dict(json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout))


def slope(points: Iterable[tuple[int, float]]) -> float:
    """Least squares of log memory on log context."""
    logs = [(math.log(context), math.log(max(size, 1))) for context, size in points]
    mean_x, mean_y = (sum(column) / len(logs) for column in zip(*logs, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def measure(mixer: str, what: str, context: int, d_model: int) -> dict[str, float]:
    layer = Layer(mixer=mixers(d_model)[mixer], feed_forward=Mlp(d_ff=2 * d_model))
    model = DecoderModel(Decoder(vocab_size=256, d_model=d_model, layers=(layer, layer), max_context=context))
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    tokens = torch.randint(256, (1, context + 1), generator=torch.Generator().manual_seed(0))
    run_pass(model, what, tokens[:, :65])
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident now
    started = time.perf_counter()
    run_pass(model, what, tokens)
    return {"seconds": time.perf_counter() - started, "bytes": memory("VmHWM") - before}


def run_pass(model: DecoderModel, what: str, tokens: torch.Tensor) -> None:
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    if what == "train":
        model.loss(inputs, targets).total.backward()
        return
    with torch.no_grad():
        model(inputs, model.new_state(1, inputs.shape[1]))


def memory(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


if __name__ == "__main__":
    main()
