"""`isoflop cost`."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isoflop.architecture.find import find_decoder
from isoflop.cli.main import main
from isoflop.cli.tables import scaled
from isoflop.cost import CONVENTIONS, cache, flops, flops_by_part, parameters


def test_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "Mixtral-8x7B", "--context", "4096", "--cache-dtype", "fp8", "--json"]) == 0
    found, decoder = json.loads(capsys.readouterr().out), find_decoder("mixtral-8x7b")
    assert found["context"] == 4096 and found["cache_dtype"] == "fp8" and found["digest"] == decoder.digest
    count = parameters(decoder)
    assert found["params"] == {
        "total": count.total,
        "active": count.active,
        "active_no_input_embedding": count.active_no_input_embedding,
        "non_embedding": count.non_embedding,
        "matmul": count.matmul,
    }
    assert list(found["flops"]) == list(CONVENTIONS)
    for convention, numbers in found["flops"].items():
        cost = flops(decoder, 4096, convention)
        assert numbers == {
            "train_per_token": cost.train_per_token,
            "prefill_per_token": cost.prefill_per_token,
            "decode_per_token": cost.decode_per_token,
        }
        parts = flops_by_part(decoder, 4096, convention)
        assert found["flops_by_part"][convention] == {
            name: {
                "forward_per_token": part.forward_per_token,
                "backward_per_token": part.backward_per_token,
                "decode_per_token": part.decode_per_token,
            }
            for name, part in parts.items()
        }
        assert list(parts) == ["mixer_matrices", "mixing", "feed_forward", "router", "head"]
    bytes_per_token = cache(decoder, 4096, "fp8").bytes_per_token
    assert found["cache"] == {
        "bytes_per_token": bytes_per_token,
        "state_bytes_per_sequence": 0,
        "bytes_at_context": 4096 * bytes_per_token,
    }


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """By default at the longest context; every convention with its number."""
    assert main(["cost", "llama-2-7b"]) == 0
    text = capsys.readouterr().out
    assert "context 4096 of 4096" in text and "6,738,415,616" in text and "512 KiB" in text and "2 GiB" in text
    assert all(convention in text for convention in CONVENTIONS)
    # 6 x 6.607 B = 39.64 G; half of 12 x 32 x 4096 x 4097 more in the exact convention, all of it in palm.
    assert "39.64 G" in text and "42.86 G" in text and "46.08 G" in text


def test_windows_latents_and_states(capsys: pytest.CaptureFixture[str]) -> None:
    """What is kept of 8192 tokens: one token's bytes times those that a window leaves; latents; states alone."""
    kept = {}
    for name in ("gemma-2-2b", "deepseek-v2-lite", "mamba-130m"):
        assert main(["cost", name, "--context", "8192", "--json"]) == 0
        kept[name] = json.loads(capsys.readouterr().out)["cache"]
    assert kept["gemma-2-2b"]["bytes_at_context"] == 106496 // 2 * (4096 + 8192)
    assert kept["deepseek-v2-lite"]["bytes_per_token"] == 27 * (512 + 64) * 2
    assert kept["mamba-130m"]["bytes_at_context"] == kept["mamba-130m"]["state_bytes_per_sequence"] == 2654208


def test_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "vocab_size = 10\nd_model = 8\nmax_context = 16\n[[layers]]\nrepeat = 2\n"
        "mixer = {type = 'attention', n_heads = 2, n_kv_heads = 1, d_head = 4}\n"
        "feed_forward = {type = 'mlp', d_ff = 8}\n"
    )
    assert main(["cost", str(path), "--json"]) == 0
    # Two tables 160; per layer 8 * 4 * 6 + 3 * 64 + 16; a last norm 8.
    assert json.loads(capsys.readouterr().out)["params"]["total"] == 160 + 2 * (192 + 192 + 16) + 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nonsense"], "isoflop cost: 'nonsense' is neither a file nor a published model (isoflop zoo lists them)"),
        (
            ["Qwen3-Next-80B-A3B"],
            "isoflop cost: 'qwen3-next-80b-a3b' cannot be expressed: three layers of four mix by ",
        ),
        (["gpt-4"], "isoflop cost: 'gpt-4' is closed: its size is a rumour"),
        (
            ["llama-3.1-9b"],
            "isoflop cost: 'llama-3.1-9b' is neither a file nor a published model; did you mean 'llama-",
        ),
        (["llama-2-7b", "--context", "0"], "isoflop cost: --context 0 must lie between 1 and the architecture's 4096"),
        (["llama-2-7b", "--context", "4097"], "isoflop cost: --context 4097 must lie between 1 and"),
        (["llama-2-7b", "--context", "x"], "isoflop cost: argument --context: invalid int value: 'x'"),
        (["llama-2-7b", "--cache-dtype", "int3"], "isoflop cost: cache dtype 'int3' is unknown; valid: fp32, bf16"),
        (["nowhere.toml"], "isoflop cost: nowhere.toml: there is no such file"),
        ([], "isoflop cost: the following arguments are required: ARCH"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["cost", *arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "" and captured.err.startswith(message) and captured.err.count("\n") == 1


def test_four_digits() -> None:
    assert scaled(999, (1000, ("", "K"))) == "999"
    assert scaled(8_030_261_248, (1000, ("", "K", "M", "B"))) == "8.03 B"
    assert scaled(5e9, (1000, ("", "K"))) == "5e+06 K"


HEAVY = ["torch", "numpy", "scipy", "pyarrow", "rich", "transformers", "plotly", "tokenizers"]


def loaded_by(code: str) -> set[str]:
    code += "\nimport sys; print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split())


def test_planning_rooms_import_no_torch() -> None:
    code = "import isoflop.architecture.find, isoflop.cost, isoflop.laws, isoflop.cli.main\n"
    code += "import isoflop.train.rules, isoflop.train.schedule, isoflop.train.optimizer, isoflop.train.spec"
    assert "torch" not in loaded_by(code)


def test_a_cost_loads_nothing_heavy() -> None:
    modules = loaded_by("from isoflop.cli.main import main; main(['cost', 'llama-3.1-8b', '--json'])")
    assert modules.isdisjoint(HEAVY)
    for verb in ("['zoo', '--json']", "['compare', 'llama-3.1-8b', 'jamba', '--match', 'total', '--json']"):
        assert loaded_by(f"from isoflop.cli.main import main; main({verb})").isdisjoint(HEAVY)
    with_table = loaded_by("from isoflop.cli.main import main; main(['cost', 'llama-3.1-8b'])")
    assert with_table.isdisjoint(set(HEAVY) - {"rich"}) and "rich" in with_table


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["cost", "llama-3.1-8b"],
        ["cost", "llama-3.1-8b", "--json"],
        ["zoo"],
        ["zoo", "nemotron-3-nano"],
        ["compare", "llama-3.1-8b", "jamba", "--match", "total"],
    ],
)
def test_cold_start(arguments: list[str]) -> None:
    """Half a second on two free cores; the processor's time is asked for, so that others' work does not count."""
    import resource

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "isoflop.cli.main", *arguments], check=True, capture_output=True)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert used < 0.5, f"{used:.2f} s of processor time, {wall:.2f} s by the clock"
