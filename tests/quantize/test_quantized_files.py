"""Checkpoints of codes that are damaged or hostile: refused in one line that names what is wrong."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import isoflop
from isoflop.architecture import Attention, Decoder, Layer, Mlp
from isoflop.model import DecoderModel
from isoflop.model.quantized import Float8, Integer, QuantizedWeight, round_to_nearest
from isoflop.quantize.run import quantize_model
from isoflop.quantize.sites import sites_of, untie
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.checkpoint import Checkpoint, Codes, write_checkpoint
from isoflop.weights.hugging_face import export_folder
from isoflop.weights.quantized import described, pack_bits, unpack_bits

QKV = "layers.0.mixer.qkv"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("codes") / "model"
    layer = Layer(mixer=Attention(n_heads=4, n_kv_heads=2, d_head=8), feed_forward=Mlp(d_ff=24))
    model = DecoderModel(Decoder(vocab_size=40, d_model=32, layers=(layer,), max_context=32)).eval()
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    untie(model)
    names = [site.name for site in sites_of(model)]
    weights = quantize_model(model, dict.fromkeys(names, Integer(bits=4, group=16, symmetric=False)), "rtn")
    down = model.layers[0].feed_forward.down.weight.detach()
    weights["layers.0.feed_forward.down.weight"] = round_to_nearest(down, Float8(group=0))
    w = weights[f"{QKV}.weight"]
    weights[f"{QKV}.weight"] = QuantizedWeight(w.format, 32, w.codes, w.scales, w.zeros, torch.arange(32).flip(0))
    state, codes = model.state_dict(), Codes(described("a test", weights), weights.__getitem__)
    make: Callable[[str, Any], Tensor] = lambda name, form: state[name].to(form.dtype)  # noqa: E731
    write_checkpoint(folder, model.decoder, make, torch.float32, "a test", codes=codes)
    return folder


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as found:
        isoflop.load(folder)
    assert "\n" not in str(found.value)
    return str(found.value)


def retold(folder: Path, name: str, change: Callable[[Any], object]) -> None:
    """Change a JSON file and its digest, as somebody who means harm does."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    record = json.loads((folder / "checkpoint.json").read_text())
    record["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(record))


def redone(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors and their digests."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    record = json.loads((folder / "checkpoint.json").read_text())
    record["tensors"] = {
        name: hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, tensor in tensors.items()
    }
    (folder / "checkpoint.json").write_text(json.dumps(record))


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "model"))


WORDS: list[tuple[Callable[[Any], object], str]] = [
    (lambda q: q["weights"][f"{QKV}.weight"]["format"].update(bits=8), "the architecture wants [64, 32]"),
    (lambda q: q["weights"][f"{QKV}.weight"]["format"].update(group=8), "the architecture wants [64, 4]"),
    (lambda q: q["weights"][f"{QKV}.weight"]["format"].update(group=-1), "group = -1 must be at least 1"),
    (lambda q: q["weights"][f"{QKV}.weight"]["format"].update(bits=99), "bits = 99 must be 2 to 8"),
    (lambda q: q["weights"][f"{QKV}.weight"]["format"].update(type="pickle"), "Invalid value 'pickle'"),
    (lambda q: q["weights"][f"{QKV}.weight"]["format"].update(scales="fp32"), "is torch.float16, and should be"),
    (lambda q: q["weights"][f"{QKV}.weight"].update(order=False), f"'{QKV}.order' is extra"),
    (lambda q: q["weights"].update({"../x": q["weights"][f"{QKV}.weight"]}), "'../x' is no matrix"),
    (lambda q: q["weights"].update({"norm.weight": q["weights"][f"{QKV}.weight"]}), "is no matrix"),
    (lambda q: q["weights"].pop(f"{QKV}.weight"), f"'{QKV}.weight' is missing"),
    (lambda q: q.update(version=2), "is no description of quantized weights"),
]


@pytest.mark.parametrize(("change", "message"), WORDS)
def test_descriptions_that_lie(folder: Path, change: Callable[[Any], object], message: str) -> None:
    retold(folder, "quantization.json", change)
    assert message in refusal(folder)


NUMBERS: list[tuple[Callable[[dict[str, Tensor]], object], str]] = [
    (lambda t: t[f"{QKV}.order"].fill_(3), f"'{QKV}.order' is no order of 32 columns"),
    (lambda t: t[f"{QKV}.order"].add_(2**40), f"'{QKV}.order' is no order of 32 columns"),
    (lambda t: t[f"{QKV}.scales"].fill_(float("nan")), "holds NaN or infinity"),
    (lambda t: t["layers.0.feed_forward.down.codes"].fill_(255), "holds a code that is no number"),
    (lambda t: t.update({f"{QKV}.codes": t[f"{QKV}.codes"].int()}), "should be torch.uint8"),
    (lambda t: t.update({"embedding": t["embedding"].int()}), "should be a float"),
]


@pytest.mark.parametrize(("change", "message"), NUMBERS)
def test_tensors_that_nobody_writes(folder: Path, change: Callable[[dict[str, Tensor]], object], message: str) -> None:
    redone(folder, change)
    assert message in refusal(folder)


def test_an_architecture_far_beyond_the_codes(folder: Path) -> None:
    """Refused before memory is taken: the files hold nothing like that."""
    retold(folder, "architecture.json", lambda a: a.update(vocab_size=2**40))
    assert "the architecture has" in refusal(folder)


def test_a_flipped_bit(folder: Path) -> None:
    entry = Checkpoint(folder).tensors.entries[f"{QKV}.codes"]
    with entry.file.open("r+b") as file:
        file.seek(entry.start)
        byte = file.read(1)[0]
        file.seek(entry.start)
        file.write(bytes([byte ^ 1]))
    assert f"tensor '{QKV}.codes' is damaged" in refusal(folder)


def test_codes_are_exported_as_what_they_stand_for(pristine: Path, tmp_path: Path) -> None:
    """A tied model's copy in codes is not the table that both sides of a tied family read: that stays whole."""
    assert export_folder(pristine, tmp_path / "theirs") == "llama"
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    expected = Checkpoint(pristine).read_matrix("layers.0.feed_forward.down.weight").dense()
    assert torch.equal(theirs["model.layers.0.mlp.down_proj.weight"], expected)


@given(bits=st.integers(1, 8), rows=st.integers(1, 5), columns=st.integers(1, 40), seed=st.integers(0, 9))
def test_bits_come_back(bits: int, rows: int, columns: int, seed: int) -> None:
    g = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, columns), generator=g, dtype=torch.uint8)
    packed = pack_bits(codes, bits)
    assert packed.shape == (rows, -(-columns * bits // 8))
    assert torch.equal(unpack_bits(packed, bits, columns), codes)
