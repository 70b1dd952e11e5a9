"""`isoflop cost --hardware`: training, its bill, serving."""

import json
import subprocess
import sys
import time

import pytest

from isoflop.architecture.find import find_decoder
from isoflop.cli.main import main
from isoflop.cost.layout import Layout
from isoflop.cost.training import training_estimate
from isoflop.hardware import find_accelerator

ASKED = ["cost", "mpt-7b", "--hardware", "h100-SXM", "--devices", "64", "--context", "2048", "--micro-batch", "8"]


def _document(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:  # type: ignore[type-arg]
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)  # type: ignore[no-any-return]


def test_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    found = _document(capsys, *ASKED, "--precision", "bf16", "--recompute", "full")["training"]
    layout = Layout(data=64, micro_batch=8, recompute="full")
    told = training_estimate(find_decoder("mpt-7b"), find_accelerator("H100-SXM5-80GB"), layout, 2048)
    rate = told.tokens_per_s_per_device
    assert found["tokens_per_s_per_device"] == {
        "value": rate.value,
        "low": rate.low,
        "high": rate.high,
        "level": 0.8,
        "source": "fitted",
    }
    assert found["mfu"] == told.mfu and set(told.mfu) == {"6nd", "palm", "exact", "hardware", "llm-foundry"}
    assert found["memory_per_device"] == told.memory_per_device and found["fits"] is True
    kinds = ["weights", "gradients", "optimizer", "activations", "logits", "buffers"]
    assert list(found["memory_per_device"]) == kinds == list(found["memory_sources"])


def test_twice_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    assert _document(capsys, *ASKED) == _document(capsys, *ASKED)


def test_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*ASKED, "--tokens", "1e12", "--price", "2,2.5,3@2026-03"]) == 0
    text = capsys.readouterr().out
    assert "training on 64 x" in text and "tokens/s a device" in text and "fitted" in text and "memory a device" in text
    assert "device hours" in text and "2026-03" in text and "MFU llm-foundry" in text


def test_a_bill_and_a_search(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["cost", "llama-3.1-8b", "--context", "8192", "--hardware", "H100-SXM", "--devices", "16", "--search"]
    found = _document(capsys, *asked, "--batch", "64", "--tokens", "1e12")
    layout, bill = found["training"]["layout"], found["bill"]
    assert layout["data"] * layout["micro_batch"] * layout["accumulate"] == 64 and found["training"]["fits"]
    hours = 1e12 / found["training"]["tokens_per_s_per_device"]["value"] / 3600
    assert bill["device_hours"]["value"] == pytest.approx(hours / bill["goodput"]["share"]["value"])
    assert bill["usd"]["low"] < bill["usd"]["value"] < bill["usd"]["high"] and bill["price"]["date"] == "2026-05"


def test_serving(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["cost", "llama-3.1-70b", "--hardware", "H100-SXM", "--devices", "8", "--serve", "--weights", "fp8"]
    found = _document(capsys, *asked, "--latency", "30")["serving"]
    assert found["decode_s"]["value"] <= 0.030 and found["weights"] == "fp8" and found["usd_per_mtok"]["low"] > 0
    assert main([*asked, "--draft", "llama-3.2-1b"]) == 0
    assert "answered tokens/s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--hardware", "h100"], 2, "isoflop cost: hardware 'h100' may mean 'H100-SXM5-80GB', 'H100-PCIe-80GB'"),
        (["--hardware", "b100"], 2, "isoflop cost: hardware 'b100' is unknown; the nearest are "),
        (["--hardware", "h200", "--tokens", "1e9", "--price", "3"], 2, "isoflop cost: price '3' has no date"),
        (["--hardware", "h200", "--devices", "0"], 2, "isoflop cost: --devices 0 must be at least 1"),
        (["--hardware", "h200", "--devices", "6", "--tensor", "4"], 2, "isoflop cost: --devices 6 is not a multiple"),
        (["--hardware", "h200", "--precision", "fp7"], 2, "isoflop cost: --precision 'fp7' is unknown; valid: bf16"),
        (["--hardware", "a100-sxm4-40", "--precision", "fp8"], 2, "isoflop cost: A100-SXM4-40GB has no stated fp8"),
        (["--hardware", "rtx 4090"], 1, "isoflop cost: 6.65B parameters at context 2048 fit no layout on 1 x RTX"),
        (["--hardware", "h200", "--serve", "--latency", "0.01"], 1, "isoflop cost: --latency 0.01: a single sequence"),
        (
            ["--hardware", "h200", "--serve", "--latency", "9", "--serve-batch", "60"],
            1,
            "isoflop cost: --latency 9: 60",
        ),
        (["--devices", "8"], 2, "isoflop cost: --devices says something only with --hardware NAME"),
        (["--serve"], 2, "isoflop cost: --serve says something only with --hardware NAME"),
        (["--hardware", "h200", "--prompt", "99"], 2, "isoflop cost: --prompt says something only with --serve"),
        (["--hardware", "h200", "--serve", "--drafted", "2"], 2, "isoflop cost: --drafted says something only with"),
        (["--hardware", "h200", "--batch", "8"], 2, "isoflop cost: --batch says something only with --search"),
        (["--hardware", "h200", "--price", "2@2026-01"], 2, "isoflop cost: --price says something only with --tokens"),
        (["--hardware", "h200", "--tokens", "1", "--price", "2@2026-13"], 2, "isoflop cost: date '2026-13' must be"),
        (
            ["--hardware", "h200", "--search", "--tensor", "2"],
            2,
            "isoflop cost: --search chooses the layout, and --ten",
        ),
        (
            ["--hardware", "h200", "--serve", "--tokens", "9"],
            2,
            "isoflop cost: --serve is not about training, and --to",
        ),
        (["--hardware", "h200", "--serve", "--serve-batch", "9999"], 1, "isoflop cost: 9999 sequences of 1280 tokens"),
    ],
)
def test_mistakes(arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", "mpt-7b", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith(message) and captured.err.count("\n") == 1


def test_another_layout_would_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """The estimate is given, and says so."""
    asked = ["cost", "llama-3.1-8b", "--context", "8192", "--hardware", "H100-SXM", "--devices", "8"]
    found = _document(capsys, *asked, "--micro-batch", "8")["training"]
    assert found["fits"] is False and "it does not fit so; data 8" in found["notes"][-1]


def test_this_device_needs_a_calibration(
    tmp_path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],  # type: ignore[no-untyped-def]
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert main(["cost", "mpt-7b", "--hardware", "this"]) == 2
    assert "`isoflop calibrate` makes it in a minute" in capsys.readouterr().err


def test_at_once() -> None:
    """No torch, no numpy, half a second on a quiet machine."""
    asked = ["llama-3.1-8b", "--context", "8192", "--hardware", "b300", "--json"]
    code = (
        f"import sys; from isoflop.cli.main import main; assert main(['cost', *{asked}]) == 0;"
        "assert not {'torch', 'numpy', 'scipy'} & set(sys.modules)"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1.5
