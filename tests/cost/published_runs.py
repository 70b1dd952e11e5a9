"""Throughputs and runs that others published, kept beside the project."""

import importlib.util
import json
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from isoflop.architecture import Attention, Decoder, Layer, LayerNorm, Learned, Mlp

ROOT = Path(__file__).resolve().parents[2]
TRUTH = ROOT.parent / "shared" / "data" / "truth"


def truth(name: str) -> Path:
    """A table kept beside the project; skips where it is absent."""
    path = TRUTH / name
    if not path.exists():
        pytest.skip(f"{path} is absent: published tables are kept beside the project")
    return path


def throughputs() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(truth("training_throughput.json").read_text())["rows"]
    return rows


def training_runs() -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in json.loads(truth("training_runs.json").read_text())["training_runs"]}


@cache
def benchmark() -> ModuleType:
    """benchmarks/throughput.py."""
    spec = importlib.util.spec_from_file_location("throughput", ROOT / "benchmarks" / "throughput.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def gpt(d_model: int, n_layers: int, n_heads: int, vocab_size: int = 51200) -> Decoder:
    """A model of the Megatron papers."""
    d_head = d_model // n_heads
    attention = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, qkv_bias=True, out_bias=True)
    return Decoder(
        vocab_size=vocab_size,
        d_model=d_model,
        layers=(Layer(mixer=attention, feed_forward=Mlp(d_ff=4 * d_model, activation="gelu", bias=True)),) * n_layers,
        max_context=2048,
        norm=LayerNorm(),
        position=Learned(),
        tie_embeddings=True,
    )
