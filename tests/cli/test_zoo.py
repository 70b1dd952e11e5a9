"""`isoflop zoo`."""

import json
from typing import Any

import pytest

from isoflop.architecture.find import find_decoder, published_names
from isoflop.architecture.zoo import entries
from isoflop.cli.main import main
from isoflop.cost import cache, parameters


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["zoo", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_list_holds_every_model_with_its_exact_counts(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in document(capsys)}
    assert list(rows) == list(entries())
    for name in published_names():
        row, decoder = rows[name], find_decoder(name)
        assert (row["total"], row["active"]) == (parameters(decoder).total, parameters(decoder).active)
        kept = cache(decoder, 1)
        assert row["kv_bytes_per_token"] == kept.bytes_per_token
        assert row["state_bytes_per_sequence"] == kept.state_bytes_per_sequence
        assert row["status"] == "exact"


def test_what_is_refused_or_rumoured_has_no_count(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row for row in document(capsys)}
    for name, status in (("gpt-4", "rumour"), ("chinchilla-70b", "not expressible")):
        assert rows[name]["status"] == status and rows[name]["note"].startswith(status)
        assert rows[name]["total"] is rows[name]["active"] is rows[name]["kv_bytes_per_token"] is None
    assert rows["gpt-4"]["published_total"] == "1.8T" and rows["gpt-4"]["published_agrees"] is None
    assert rows["llama-2-70b"]["published_agrees"] is False and "68.98B" in rows["llama-2-70b"]["note"]
    assert rows["llama-3.1-8b"]["published_agrees"] is True


def test_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["name"]: row["kind"] for row in document(capsys)}
    wanted = {
        "gpt2-124m": "dense",
        "deepseek-v3-671b": "experts",
        "mamba-130m": "state-space",
        "nemotron-h-8b": "hybrid",
        "jamba-v0.1": "hybrid experts",
        "kimi-linear-48b-a3b": "hybrid experts",
    }
    assert {name: rows[name] for name in wanted} == wanted


def test_one_model_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "DeepSeek-V3")
    assert found["name"] == "deepseek-v3-671b" and found["n_layers"] == 61 and found["aliases"] == ["deepseek-v3"]
    assert found["params"]["total"] == 671_026_404_352 and found["cache"]["bytes_per_token"] == 70_272
    dense, sparse = found["layers"]
    assert (dense["count"], dense["places"]) == (3, "0-2") and (sparse["count"], sparse["places"]) == (58, "3-60")
    assert dense["layer"]["feed_forward"] == {"type": "mlp", "d_ff": 18432}
    assert sparse["layer"]["feed_forward"]["shared"] == {"d_ff": 2048}
    active = found["published_active"]
    assert active["published"] == "36.7B" and active["convention"] == "active_no_input_embedding" and active["agrees"]
    assert active["exact"] == found["params"]["active_no_input_embedding"]
    assert active["difference"] == pytest.approx(36.7e9 / 36_625_603_584 - 1)


def test_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n {name} " in text or f"\n{name} " in text for name in entries())
    assert "1.8T / 280B?" in text and "!= 70B" in text
    assert main(["zoo", "llama-2-70b"]) == 0
    text = capsys.readouterr().out
    assert "68,976,648,192" in text and "published total: 70B (model card) differs by +1.48% from total" in text
    assert "why: the name" in text and "80 layers (0-79)" in text and "attention (n_heads 64, n_kv_heads 8" in text
    assert main(["zoo", "nemotron-3-nano"]) == 0
    assert "mixer: none" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("qwen3-next-80b-a3b", "'qwen3-next-80b-a3b' cannot be expressed: three layers of four mix by gated DeltaNet"),
        ("Gopher", "'gopher-280b' cannot be expressed: relative positions of Transformer-XL"),
        ("gpt-4", "'gpt-4' is closed: its size is a rumour (leaks reported by SemiAnalysis, 2023)"),
        ("llama-9", "'llama-9' is not in the zoo; did you mean 'llama-"),
        ("zzzz", "'zzzz' is not in the zoo (isoflop zoo lists them)"),
    ],
)
def test_mistakes(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo", name]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"isoflop zoo: {message}")
