"""`isoflop compare`."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.architecture import Decoder
from isoflop.architecture.find import find_decoder
from isoflop.architecture.resize import width_step, with_depth, with_width
from isoflop.cli.main import main
from isoflop.cost import cache, flops, parameters
from isoflop.cost.match import QUANTITIES, Dial, Quantity, Setting, quantity, solve
from strategies import decoders


def document(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["compare", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_side_by_side(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["llama-3.1-8b", "mamba-2.8b"]
    found = document(capsys, *names, "--context", "8192", "--cache-dtype", "fp8", "--weight-dtype", "fp32")
    assert (found["context"], found["cache_dtype"], found["weight_dtype"]) == (8192, "fp8", "fp32")
    for name, side in zip(names, found["sides"], strict=True):
        decoder = find_decoder(name)
        counts, kept = parameters(decoder), cache(decoder, 8192, "fp8")
        assert side["params"]["total"] == counts.total and side["cache"]["bytes_at_context"] == kept.bytes_at_context
        assert side["flops"]["exact"]["train_per_token"] == flops(decoder, 8192, "exact").train_per_token
        assert side["decode_bytes"] == 4 * counts.active_no_input_embedding + kept.bytes_at_context
        assert side["resized"] is None and side["digest"] == decoder.digest
    first, second = found["sides"]
    assert set(first["ratios"].values()) == {1.0}
    assert second["ratios"]["total"] == second["params"]["total"] / first["params"]["total"]


@pytest.mark.parametrize("wanted", QUANTITIES)
@pytest.mark.parametrize("dial", ["width", "layers"])
def test_matching(wanted: Quantity, dial: Dial, capsys: pytest.CaptureFixture[str]) -> None:
    """Within what one step of the dial changes; kv bytes in steps of whole key heads, or of layers that attend."""
    others = ["qwen3-4b", "jamba", "gpt-oss-20b"]
    found = document(capsys, "llama-3.2-3b", *others, "--match", wanted, "--dial", dial, "--context", "4096")
    target = quantity(find_decoder("llama-3.2-3b"), wanted, Setting(4096))
    assert found["sides"][0]["resized"] is None
    for name, side in zip(others, found["sides"][1:], strict=True):
        resized, original = side["resized"], find_decoder(name)
        assert resized["target"] == target and resized["quantity"] == wanted and resized["dial"] == dial
        resize = with_width if dial == "width" else with_depth
        solved = resize(original, resized["after"])
        assert solved.digest == side["digest"]
        assert resized["achieved"] == quantity(solved, wanted, Setting(4096))
        assert resized["error"] == pytest.approx(resized["achieved"] / target - 1)
        assert side["ratios"][wanted] == pytest.approx(1 + resized["error"])
        assert abs(resized["error"]) < (0.02 if dial == "width" and wanted != "kv-bytes" else 0.2)


@settings(max_examples=40)
@given(decoders(), st.sampled_from(("width", "layers")), st.sampled_from(QUANTITIES), st.floats(1.1, 300))
def test_no_other_setting_is_nearer(decoder: Decoder, dial: Dial, wanted: Quantity, factor: float) -> None:
    """Against every setting up to twice the answer."""
    at = Setting(8)
    resize, step = (with_width, width_step(decoder)) if dial == "width" else (with_depth, 1)
    least, larger = (quantity(resize(decoder, n * step), wanted, at) for n in (1, 40))
    if least == larger:
        return
    target = least * factor
    match = solve(decoder, dial, wanted, target, at)
    assert match.achieved == quantity(match.decoder, wanted, at) and match.after % step == 0
    # A decoder keeps what is not rounded at its own width, where the quantity may step back a little: not looked at.
    tried = [n * step for n in range(1, 2 * match.after // step + 1) if dial == "layers" or n * step != decoder.d_model]
    nearest = min(abs(quantity(resize(decoder, n), wanted, at) - target) for n in tried)
    if match.after != decoder.d_model:
        assert abs(match.achieved - target) <= nearest * (1 + 1e-12)


def test_equal_already(capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "llama-3.1-8b", "Llama-3.1-8B", "--match", "train-flops")
    resized = found["sides"][1]["resized"]
    assert resized["before"] == resized["after"] == 4096 and resized["error"] == 0
    assert found["context"] == 131072


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "llama-2-7b", "mistral-7b", "--match", "active"]) == 0
    text = capsys.readouterr().out
    assert "context 4096;" in text and "6.738 B" in text and "2 GiB" in text and "x0.25" in text
    assert "mistral-7b: d_model 4096 -> 3936 for equal active: " in text and "window 4096" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["llama-2-7b", "--match", "size"], "--match size is unknown; valid: total, active, train-flops, kv-bytes"),
        (["llama-2-7b", "--match", "total", "--dial", "heads"], "--dial heads is unknown; valid: width, layers"),
        (["llama-2-7b", "--dial", "width"], "--dial width goes with --match QUANTITY"),
        (["llama-2-7b", "--context", "9999"], "--context 9999 must lie between 1 and the 4096 tokens that llama-2-7b"),
        (["llama-2-7b", "--cache-dtype", "int3"], "--cache-dtype int3 is unknown; valid: fp32, bf16, fp16, fp8, int8"),
        (["llama-2-7b", "--weight-dtype", "int3"], "--weight-dtype int3 is unknown; valid: fp32"),
        (
            ["llama-2-7b", "falcon-7b", "--match", "kv-bytes"],
            "falcon-7b: kv-bytes does not follow its width; --dial la",
        ),
        (["llama-2-7b", "gopher"], "'gopher-280b' cannot be expressed"),
        ([], "the following arguments are required: ARCH"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main(["compare", *arguments])
    except SystemExit as stop:
        code = stop.code
    captured = capsys.readouterr()
    assert code == 2 and captured.out == "" and captured.err.count("\n") == 1
    assert captured.err.startswith(f"isoflop compare: {message}")
