"""`isoflop check`."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isoflop.architecture.find import find_decoder
from isoflop.cli.main import main

TRILLION = """
vocab_size = 128256
d_model = 20480
max_context = 131072
[[layers]]
repeat = 160
mixer = { type = "attention", n_heads = 160, n_kv_heads = 16, d_head = 128 }
feed_forward = { type = "mlp", d_ff = 86016 }
"""


def test_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "llama-3.2-1b", "--json"]) == 0
    found, decoder = json.loads(capsys.readouterr().out), find_decoder("llama-3.2-1b")
    assert found["digest"] == decoder.digest and found["n_layers"] == 16 and found["kinds"] == 1
    assert found["holds"] and found["kernels"] == "eager-cpu-fp32"
    assert found["contexts"] == {
        "sequence": [1, 7, 64, 131072],
        "decode": [1, 7, 64, 131071],
        "packed": [1, 7, 64],
    }
    total = next(line for line in found["lines"] if line["check"] == "parameters, total")
    assert total == {
        "check": "parameters, total",
        "at": "",
        "part": "all",
        "unit": "",
        "closed_form": 1_235_814_400,
        "counted": 1_235_814_400,
        "relation": "equal",
        "verdict": "holds",
    }
    parts = {line["part"] for line in found["lines"] if line["check"] == "FLOPs exact, backward"}
    assert parts == {"mixer_matrices", "mixing", "feed_forward", "router", "head"}


def test_the_table_says_what_failed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from isoflop.cost import feed_forward

    monkeypatch.setattr(feed_forward, "n_matrices", lambda activation: 2)
    assert main(["check", "llama-3.2-1b"]) == 1
    out = capsys.readouterr().out
    assert "parameters, total" in out and "!=" in out
    assert "fails: parameters, total, all: 967,378,944 but counted 1,235,814,400" in out
    assert all(len(line) <= 80 for line in out.splitlines() if "fails:" not in line)


def test_a_mistake_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "llama-3.2-1bb"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "did you mean" in error


@pytest.mark.parametrize(
    "change, why",
    [
        (("d_ff = 86016", "d_ff = 9007199254740992"), "parameters are too many to prove; at most 1e+15"),
        (("max_context = 131072", "max_context = 9007199254740992"), "is too long to prove; at most 268435456"),
    ],
)
def test_what_no_machine_can_express(
    change: tuple[str, str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "absurd.toml"
    file.write_text(TRILLION.replace(*change))
    assert main(["check", str(file)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and why in error


@pytest.mark.parametrize("arch", ["gpt-3-175b", "deepseek-v3-671b", "a trillion, dense"])
def test_any_size_in_under_a_minute(arch: str, tmp_path: Path) -> None:
    if arch == "a trillion, dense":
        file = tmp_path / "trillion.toml"
        file.write_text(TRILLION)
        arch = str(file)
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-m", "isoflop", "check", arch], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - start < 60
    assert " hold, 0 fail" in done.stdout
