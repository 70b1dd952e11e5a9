"""Cold starts: `isoflop generate` of small checkpoints of every family as a process, from its first instruction to its
last, beside a process that imports torch and ends.

    python benchmarks/batching_start.py [TIMES]
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from isoflop.architecture import (
    S4D,
    Attention,
    Decoder,
    Hyena,
    LatentAttention,
    Layer,
    Mamba1,
    Mamba2,
    MixtureOfExperts,
    Mlp,
    Rope,
)
from isoflop.data.tokenizer import train_byte_pair
from isoflop.model import DecoderModel
from isoflop.model.quantized import Integer
from isoflop.quantize.run import quantize_model
from isoflop.quantize.sites import sites_of, untie
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.checkpoint import Codes, save_model, write_checkpoint
from isoflop.weights.quantized import described

VOCAB, D_MODEL = 512, 128
ATTENTION, MLP = Attention(n_heads=4, n_kv_heads=2, d_head=32), Mlp(d_ff=384)
EXPERTS = MixtureOfExperts(n_experts=4, top_k=2, d_ff=192)
MAMBA_1, MAMBA_2 = Mamba1(d_inner=256, d_state=16, dt_rank=8), Mamba2(n_heads=8, d_head=32, d_state=32)
LATENT = LatentAttention(n_heads=4, kv_rank=64, d_nope=32, d_rope=16, d_value=32)
FAMILIES: dict[str, tuple[Layer, ...]] = {
    "dense": (Layer(ATTENTION, MLP),) * 4,
    "experts": (Layer(ATTENTION, EXPERTS),) * 4,
    "latent": (Layer(LATENT, MLP),) * 4,
    "mamba-1": (Layer(MAMBA_1, None),) * 4,
    "mamba-2": (Layer(MAMBA_2, None),) * 4,
    "hyena": (Layer(Hyena(), MLP),) * 4,
    "s4d": (Layer(S4D(d_inner=128, d_state=32), MLP),) * 4,
    "hybrid": (Layer(MAMBA_2, None), Layer(ATTENTION, EXPERTS), Layer(MAMBA_1, None), Layer(LATENT, MLP)),
}
INT4 = Integer(bits=4, group=32, symmetric=True)


def checkpoints(home: Path) -> Iterator[tuple[str, Path]]:
    """Name and folder of each; the last two families' also in codes of 4 bits."""
    tokenizer = home / "tokenizer"
    tokenizer.mkdir(parents=True)
    text = Path(argparse.__file__).read_bytes()
    (tokenizer / "tokenizer.json").write_text(train_byte_pair([text], VOCAB).json, encoding="utf-8")
    for name, layers in FAMILIES.items():
        model = DecoderModel(Decoder(VOCAB, D_MODEL, layers, position=Rope(), max_context=512)).eval()
        initialize(model, 0, Recipe(lr=1e-3, batch=1))
        save_model(home / name, model, "a benchmark", tokenizer)
        yield name, home / name
        if name in ("dense", "hybrid"):
            yield f"{name}, int4", _in_codes(model, home / f"{name} in codes", tokenizer)


def _in_codes(model: DecoderModel, folder: Path, tokenizer: Path) -> Path:
    untie(model)
    weights = quantize_model(model, {site.name: INT4 for site in sites_of(model)}, "rtn")
    state, codes = model.state_dict(), Codes(described("a benchmark", weights), weights.__getitem__)
    write_checkpoint(
        folder,
        model.decoder,
        lambda name, form: state[name].to(form.dtype),
        torch.float32,
        "a benchmark",
        tokenizer,
        codes=codes,
    )
    return folder


def cold_start(home: Path, times: int) -> None:
    """Seconds of the wall, the median and the best, and the best of the processor; the imports that take most."""
    commands = {"import torch": ["-c", "import torch"]}
    for name, folder in checkpoints(home):
        line = ["generate", str(folder), "import ", "--max-tokens", "8"]
        commands[name] = ["-m", "isoflop.cli.main", *line]
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(times):
        for name, command in commands.items():
            took[name].append(_seconds(command))
    print("\ncold start of generate, s    median    best    processor")
    for name, pairs in took.items():
        walls, processors = zip(*pairs, strict=True)
        print(f"  {name:24}{statistics.median(walls):9.2f}{min(walls):8.2f}{min(processors):13.2f}")
    command = [sys.executable, "-X", "importtime", *commands["hybrid"]]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    print("  imports of the hybrid: " + ", ".join(f"{name} {us / 1e6:.2f} s" for us, name in _outermost(run.stderr)))


def _seconds(command: Sequence[str]) -> tuple[float, float]:
    wall, processor = time.perf_counter(), _processor()
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - wall, _processor() - processor


def _processor() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _outermost(told: str) -> list[tuple[int, str]]:
    lines = [line.split("|") for line in told.splitlines() if line.count("|") == 2 and "[us]" not in line]
    took = sorted(((int(cumulative), name[1:]) for _, cumulative, name in lines), reverse=True)
    return [(us, name) for us, name in took if not name.startswith(" ")][:8]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        cold_start(Path(folder), int(sys.argv[1]) if len(sys.argv) > 1 else 3)
