"""`isoflop calibrate`, shortened: what it writes, and whether a step that it did not time is predicted."""

import json
from pathlib import Path

import msgspec
import pytest
import torch

from isoflop.calibrate import micro, steps
from isoflop.calibrate.refine import fitted_to, shared
from isoflop.cli.main import main
from isoflop.cost.belief import belief_about
from isoflop.cost.this_device import read_calibration
from isoflop.hardware import find_accelerator


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration folder with a calibration made in seconds."""
    home = tmp_path_factory.mktemp("config")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(home))
        patch.setattr(micro, "BEST_OF_S", 0.02)
        patch.setattr(micro, "LARGEST_ON_CPU", 512)
        patch.setattr(micro, "OPTIMIZED", 400_000)
        patch.setattr(steps, "steps_side_by_side", _alone)
        patch.setattr(steps, "ON_CPU", steps.ON_CPU[:4])
        assert main(["calibrate", "--device", "cpu", "--json"]) == 0
    return home


def _alone(shapes, device, precision, threads, n):  # type: ignore[no-untyped-def]
    """Without worker processes, whose start takes longer than what they measure here."""
    return {shape: steps.step_seconds(shape, device, precision, 0.2) for shape in shapes}


def test_what_is_written(calibrated: Path) -> None:
    found = read_calibration(calibrated / "isoflop" / "device.json")
    assert found.threads == 1 and found.torch == torch.__version__ and found.hardware.name.startswith("this (")
    assert set(found.hardware.tflops) == {"fp32"} and 1e9 < found.hardware.peak("fp32") < 1e15
    efficiency = found.belief.efficiency
    assert 0 < efficiency.products < 2 and 1e-5 < efficiency.overhead_s < 1 and found.belief.source == "measured"
    assert any(name.startswith("step d_model") for name in found.measurements)


def test_a_step_that_was_not_timed(calibrated: Path) -> None:
    """By the processor's clock, so that other work on the machine does not decide."""
    found = read_calibration(calibrated / "isoflop" / "device.json")
    new = steps.Shape(80, 3, 16, 128, 4)
    torch.set_num_threads(1)
    measured = steps.step_seconds(new, "cpu", "fp32", 0.5).processor
    predicted = found.alone.seconds(steps.ideal_of(new, found.hardware, "fp32"))
    assert predicted.source == "measured" and measured / 1.5 < predicted.value < 1.5 * measured


def test_this_hardware(calibrated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(calibrated))
    asked = ["cost", "gpt2-124m", "--hardware", "this", "--context", "128", "--precision", "fp32", "--json"]
    assert main(asked) == 0
    told = json.loads(capsys.readouterr().out)["training"]
    assert told["tokens_per_s_per_device"]["source"] == "measured" and "isoflop calibrate" in told["notes"][0]
    assert told["tokens_per_s_per_device"]["low"] > 0.1


def test_a_damaged_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "isoflop").mkdir()
    (tmp_path / "isoflop" / "device.json").write_text('{"hardware": 3}')
    assert main(["cost", "gpt2-124m", "--hardware", "this"]) == 2
    told = capsys.readouterr().err
    assert "`isoflop calibrate` makes it anew" in told and told.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_such_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--device", "cuda"]) == 2
    assert "device 'cuda' is not on this machine; valid here: cpu" in capsys.readouterr().err


def test_threads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "--threads", "0"]) == 2
    assert "--threads 0 must be at least 1" in capsys.readouterr().err


def test_efficiencies_are_found_again() -> None:
    """Steps made from known efficiencies: the fit goes back to them from a belief that is far off."""
    hardware = find_accelerator("A100-SXM4-80GB")
    truth = belief_about(hardware)
    ideals = [steps.ideal_of(shape, hardware, "bf16") for shape in steps.ON_GPU]
    wide = tuple(tuple(4.0 * (i == j) for j in range(7)) for i in range(7))
    far = msgspec.structs.replace(truth, mean=tuple(m + 0.7 for m in truth.mean), covariance=wide, noise=0.01)
    found = fitted_to(far, [(ideal, truth.seconds(ideal).value) for ideal in ideals])
    for ideal in ideals:
        assert found.seconds(ideal).value == pytest.approx(truth.seconds(ideal).value, rel=0.02)


def test_a_busy_device() -> None:
    """Alone or as busy as it was: the interval reaches past both; a quiet device's stays as it is."""
    hardware = find_accelerator("A100-SXM4-80GB")
    belief, ideal = belief_about(hardware), steps.ideal_of(steps.ON_GPU[-1], hardware, "bf16")
    alone = belief.seconds(ideal).value
    busy = msgspec.structs.replace(shared(belief, [4.0, 4.0]), stretch=1.2816)
    told = busy.seconds(ideal)
    assert told.low < alone and 4 * alone < told.high and told.value == pytest.approx(2 * alone, rel=1e-6)
    assert "busy: steps took 4.0 times" in busy.note
    assert shared(belief, [1.0, 1.0]) == belief
    assert shared(belief, [1.0, 1.2]).noise > belief.noise
