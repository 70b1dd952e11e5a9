"""Memory of a quarter of a gigabyte of weights, and what a killed import leaves."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from isoflop.architecture import Attention, Decoder, Layer, Mlp
from isoflop.cli.main import main
from isoflop.model import DecoderModel
from isoflop.weights.checkpoint import save_model
from isoflop.weights.hugging_face import export_folder

SLACK = 24 << 20  # what the allocator keeps, code that is first used

MEASURE = """
import ctypes, gc, json, sys
from pathlib import Path
import isoflop
import torch
from isoflop.weights.hugging_face import HuggingFaceFolder, export_folder, import_folder

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key + ":"))

def growth(work):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
    before = status("VmRSS")
    kept = work()
    return status("VmHWM") - before

home = Path(sys.argv[1])
isoflop.load(home / "small")
print(json.dumps({
    "import": growth(lambda: import_folder(home / "theirs", home / "out1") and None),
    "export": growth(lambda: export_folder(home / "ours", home / "out2") and None),
    "ours": growth(lambda: isoflop.load(home / "ours")),
    "theirs": growth(lambda: isoflop.load(home / "theirs")),
    "half": growth(lambda: isoflop.load(home / "theirs", torch.bfloat16)),
}))
"""


def llama(n_layers: int, d_model: int, vocab_size: int) -> DecoderModel:
    layer = Layer(mixer=Attention(n_heads=8, n_kv_heads=8, d_head=d_model // 8), feed_forward=Mlp(d_ff=3 * d_model))
    described = Decoder(vocab_size=vocab_size, d_model=d_model, layers=(layer,) * n_layers, max_context=64)
    model = DecoderModel(described)
    for parameter in model.parameters():
        parameter.data.fill_(0.01)
    return model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    save_model(folder / "small", llama(1, 16, 10), "a test")
    save_model(folder / "ours", llama(10, 512, 20_000), "a test")
    export_folder(folder / "ours", folder / "theirs", most_shard=100_000_000)
    return folder


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the high-water mark cannot be reset")
def test_peak_memory(home: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MEASURE, str(home)], capture_output=True, text=True, check=True)
    peaks = json.loads(done.stdout)
    weights = sum(file.stat().st_size for file in (home / "ours").glob("*.safetensors"))
    largest = 4 * 20_000 * 512
    assert weights > 200e6
    for name, allowed in (
        ("ours", weights + largest),
        ("theirs", weights + largest),
        ("half", weights / 2 + largest),
        ("import", 2 * largest),
        ("export", 2 * largest),
    ):
        assert peaks[name] < allowed + SLACK, (name, peaks, allowed)


def test_killed_at_any_time(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for delay in (0.0, 0.03, 0.1):
        process = subprocess.Popen([sys.executable, "-m", "isoflop", "import", str(home / "theirs"), str(out)])
        while not (tmp_path / ".out.partial").exists() and process.poll() is None:
            time.sleep(0.005)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not out.exists()
    assert main(["import", str(home / "theirs"), str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model_type"] == "llama"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    digests = [json.loads((folder / "checkpoint.json").read_text())["tensors"] for folder in (home / "ours", out)]
    assert digests[0] == digests[1]


def test_a_full_disk_leaves_nothing(home: Path, tmp_path: Path) -> None:
    """A file as large as the process may write, and no larger."""
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (10**7, 10**7)); "
    code += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "from isoflop.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, "import", str(home / "theirs"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1, done.stderr
    assert list(tmp_path.iterdir()) == []
