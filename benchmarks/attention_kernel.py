"""Our CPU attention kernel beside torch's scaled_dot_product_attention: causal, fp32, one thread, interleaved.

    python benchmarks/attention_kernel.py [--rounds 9] [--slice 0.05]

Queries, keys and values are views of one fused projection [B, T, 3H, D]. FLOPs are exact for the causal mask:
2 products forward, 5 more backward (the scores are computed again), 2 D FLOPs for each of the T (T + 1) / 2 pairs. The
share is of a 1024 x 1024 fp32 matrix product on the same thread. The best slice of each counts.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from isoflop.model.kernels.attention import attention

SHAPES = (
    (8, 128, 2, 16),
    (8, 128, 4, 16),
    (8, 256, 4, 16),
    (8, 128, 6, 16),
    (8, 256, 4, 32),
    (4, 512, 8, 64),
    (1, 4096, 8, 64),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--slice", type=float, default=0.05, help="seconds of a measurement")
    parser.add_argument("--shape", type=lambda text: tuple(int(n) for n in text.split(",")), help="B,T,H,D alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    a = torch.randn(1024, 1024)
    peak = 2 * 1024**3 / interleave({"": lambda: a @ a}, args.rounds, args.slice)[""]
    print(f"torch {torch.__version__}, one thread, peak {peak / 1e9:.0f} GFLOP/s; microseconds, share of peak")
    columns = ("fwd sdpa", "ours", "peak", "gain", "fwd+bwd sdpa", "ours", "peak", "gain", "bwd peak")
    print(f"{'B, T, H, D':<16}" + "".join(f"{name:>13}" for name in columns))
    for shape in [args.shape] if args.shape else SHAPES:
        row(shape, args.rounds, args.slice, peak)


def row(shape: tuple[int, int, int, int], rounds: int, slice_s: float, peak: float) -> None:
    batch, context, heads, width = shape
    qkv = torch.randn(batch, context, 3 * heads, width, requires_grad=True)
    seed = torch.randn(batch, context, heads, width)
    kernels: dict[str, Callable[[], Tensor]] = {
        "sdpa": lambda: sdpa(qkv, heads),
        "ours": lambda: attention(*qkv.split(heads, dim=2), scale=width**-0.5),
    }
    runs: dict[str, Callable[[], object]] = {}
    for name, kernel in kernels.items():
        runs[name] = lambda kernel=kernel: without_gradient(kernel)
        runs[f"{name} both"] = lambda kernel=kernel: torch.autograd.grad(kernel(), qkv, seed)
    best = interleave(runs, rounds, slice_s)
    product = batch * heads * context * (context + 1) / 2 * 2 * width
    cells = [
        *(f"{best[name] * 1e6:,.0f}" for name in ("sdpa", "ours")),
        f"{2 * product / best['ours'] / peak:.0%}",
        f"{best['sdpa'] / best['ours']:.2f}x",
        *(f"{best[name] * 1e6:,.0f}" for name in ("sdpa both", "ours both")),
        f"{7 * product / best['ours both'] / peak:.0%}",
        f"{best['sdpa both'] / best['ours both']:.2f}x",
        f"{5 * product / (best['ours both'] - best['ours']) / peak:.0%}",
    ]
    print(f"{', '.join(map(str, shape)):<16}" + "".join(f"{cell:>13}" for cell in cells), flush=True)


def sdpa(qkv: Tensor, heads: int) -> Tensor:
    q, k, v = (x.transpose(1, 2) for x in qkv.split(heads, dim=2))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)


@torch.no_grad()
def without_gradient(kernel: Callable[[], Tensor]) -> Tensor:
    return kernel()


def interleave(runs: dict[str, Callable[[], object]], rounds: int, slice_s: float) -> dict[str, float]:
    """Seconds a call, the best of `rounds` slices of about `slice_s` each, in turn."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            run()
            count = 2 if best[name] == float("inf") else max(1, int(slice_s / best[name]))
            started = time.perf_counter()
            for _ in range(count):
                run()
            best[name] = min(best[name], (time.perf_counter() - started) / count)
    return best


if __name__ == "__main__":
    main()
