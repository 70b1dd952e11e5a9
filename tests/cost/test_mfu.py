"""Utilisations as they were published, each under its stated convention."""

import pytest
from published_runs import gpt, training_runs

from isoflop.architecture.find import find_decoder
from isoflop.cost.mfu import mfu

POINTS = 0.003


def test_palm() -> None:
    row = training_runs()["PaLM 540B"]
    found = mfu(find_decoder("palm-540b"), row["seq_len"], row["tokens_per_s"] / 6144, 275e12)
    assert found["palm"] == pytest.approx(row["mfu_published"], abs=POINTS)


@pytest.mark.parametrize("size", ["22B", "175B", "530B", "1T"])
def test_megatron(size: str) -> None:
    row = training_runs()[f"Megatron (Korthikanti) {size}"]
    rate = row["global_batch"] * row["seq_len"] / row["iter_s_selective_sp"] / row["gpus"]
    found = mfu(gpt(row["d_model"], row["layers"], row["n_heads"]), row["seq_len"], rate, 312e12)
    assert found["palm"] == pytest.approx(row["mfu_published"], abs=POINTS)


def test_megatron_with_recompute_counted() -> None:
    """Narayanan et al. 2021 count the second forward and the whole matrix: 96 B s l h^2 (1 + s/6h + V/16lh)."""
    row = training_runs()["Megatron (Narayanan 2021) 145.6B"]
    h, n, s, v = row["d_model"], row["layers"], row["seq_len"], row["vocab"]
    theirs = 96 * n * h**2 * (1 + s / (6 * h) + v / (16 * n * h))
    found = mfu(gpt(h, n, row["n_heads"]), s, 1.0, 1.0, recompute=True)
    # Ours leaves out the half of the matrix that no token sees, and the bias-free head's second forward.
    assert found["hardware"] == pytest.approx(theirs - 4 * 2 * n * h * s, rel=1e-3)


def test_deepseek() -> None:
    row = training_runs()["DeepSeek-V3 pre-training"]
    rate = 1e12 / (row["gpu_hours_per_T_tokens"] * 3600)
    found = mfu(find_decoder("deepseek-v3-671b"), row["seq_len"], rate, 989e12)
    assert found["palm"] == pytest.approx(row["mfu_published_noncausal"], abs=POINTS)
    assert found["exact"] == pytest.approx(row["mfu_published_causal"], abs=POINTS)
