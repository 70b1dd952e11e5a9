"""A cold start: `isoflop generate` of a small checkpoint as a process, from its first instruction to its last."""

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from isoflop.architecture import Attention, Decoder, Layer, Mlp
from isoflop.model import DecoderModel
from isoflop.weights.checkpoint import save_model


def cold_start(folder: Path, times: int) -> None:
    """Seconds of the wall and of the processor, and which imports take most."""
    layer = Layer(mixer=Attention(n_heads=4, n_kv_heads=2, d_head=32), feed_forward=Mlp(d_ff=384))
    model = DecoderModel(Decoder(vocab_size=256, d_model=128, layers=(layer,) * 4, max_context=512))
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    save_model(folder, model, "a benchmark")
    command = ["-m", "isoflop.cli.main", "generate", str(folder), "import ", "--temperature", "0", "--max-tokens", "16"]
    walls, processors = [], []
    for _ in range(times):
        wall, processor = time.perf_counter(), _processor()
        subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
        walls.append(time.perf_counter() - wall)
        processors.append(_processor() - processor)
    print(f"\ncold start of generate: {statistics.median(walls):.2f} s, at best {min(walls):.2f} s, ", end="")
    print(f"of the processor {min(processors):.2f} s")
    run = subprocess.run([sys.executable, "-X", "importtime", *command], check=True, capture_output=True, text=True)
    lines = [line.split("|") for line in run.stderr.splitlines() if line.count("|") == 2 and "[us]" not in line]
    took = sorted(((int(cumulative), name) for _, cumulative, name in lines), reverse=True)
    outermost = [(us, name) for us, name in took if not name.startswith("   ")][:8]
    print("  imports: " + ", ".join(f"{name.strip()} {us / 1e6:.2f} s" for us, name in outermost))


def _processor() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
