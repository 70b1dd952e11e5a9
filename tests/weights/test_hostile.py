"""Our own checkpoints of codes, experts and latents, changed by somebody who means harm and renews the digests:
whatever they say, a model that runs or one line, soon, and without memory for what nobody has."""

import copy
import hashlib
import json
import resource
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import isoflop
from isoflop.architecture import Attention, Decoder, LatentAttention, Layer, Mamba2, MixtureOfExperts, Mlp, Rope
from isoflop.cli.main import main
from isoflop.model import DecoderModel
from isoflop.model.quantized import Integer
from isoflop.quantize.run import quantize_model
from isoflop.quantize.sites import sites_of, untie
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.checkpoint import Codes, write_checkpoint
from isoflop.weights.quantized import described

FILES = ("architecture.json", "quantization.json", "checkpoint.json")
TENSORS = "model.safetensors"
SECONDS = 20.0  # far below what absurd sizes would take, far above a busy machine
ROOM = 1 << 30  # bytes of addresses beside those in use
WRONG: list[Any] = [0, -1, 1, 3, 2**31, 10**12, 2**62, 2**70, 0.5, 1e300, float("nan"), None, "", "x" * 9999, True]
WRONG += [[], [1], [0] * 999, {}, {"a": 1}, {"type": "attention"}, "../../etc/passwd", "/etc/passwd", "\ud800", "\0"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "model"
    latent = LatentAttention(n_heads=2, kv_rank=16, d_nope=8, d_rope=4, d_value=8)
    layers = (
        Layer(
            mixer=Attention(n_heads=4, n_kv_heads=2, d_head=8),
            feed_forward=MixtureOfExperts(n_experts=3, top_k=2, d_ff=24),
        ),
        Layer(mixer=latent, feed_forward=Mlp(d_ff=24)),
        Layer(mixer=Mamba2(n_heads=4, d_head=8, d_state=8), feed_forward=None),
    )
    decoder = Decoder(vocab_size=256, d_model=32, layers=layers, max_context=32, position=Rope())
    model = DecoderModel(decoder).eval()
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    untie(model)
    form = Integer(bits=4, group=16, symmetric=False)
    weights = quantize_model(model, dict.fromkeys((site.name for site in sites_of(model)), form), "rtn")
    state, codes = model.state_dict(), Codes(described("a test", weights), weights.__getitem__)
    write_checkpoint(folder, decoder, lambda name, f: state[name].to(f.dtype), torch.float32, "a test", codes=codes)
    with torch.no_grad():
        isoflop.load(folder)(torch.zeros(1, 3, dtype=torch.long))  # compiles the kernels, where that was never done
    return folder


@pytest.fixture(autouse=True)
def little_room() -> Iterator[None]:
    """What asks for absurd memory fails here, and not the machine."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in plain data."""
    yield at
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*at, key))


def put(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    holder = value
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = new
    return value


def vandalized(content: Any, data: st.DataObject) -> Any:
    """One to three places of plain data with something else there."""
    for _ in range(data.draw(st.integers(1, 3))):
        at, new = data.draw(st.sampled_from(list(places(content)))), data.draw(st.sampled_from(WRONG))
        content = put(content, at, copy.deepcopy(new))
    return content


def renewed(folder: Path) -> None:
    record = json.loads((folder / "checkpoint.json").read_text())
    for name in record["files"]:
        record["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(record))


def loads_or_says(folder: Path) -> None:
    started = time.monotonic()
    try:
        model = isoflop.load(folder)
        with torch.no_grad():
            model(torch.zeros(1, 3, dtype=torch.long))
    except ValueError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1000
    assert time.monotonic() - started < SECONDS


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("changed") / "model"


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_whatever_the_descriptions_say(pristine: Path, home: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(FILES))
    content = vandalized(json.loads((pristine / name).read_text()), data)
    shutil.copytree(pristine, home, dirs_exist_ok=True)
    (home / name).write_text(json.dumps(content))
    if name != "checkpoint.json":
        renewed(home)
    loads_or_says(home)


@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_whatever_the_header_says(pristine: Path, home: Path, data: st.DataObject) -> None:
    whole = (pristine / TENSORS).read_bytes()
    n = int.from_bytes(whole[:8], "little")
    header = json.dumps(vandalized(json.loads(whole[8 : 8 + n]), data)).encode()
    length = data.draw(st.sampled_from([len(header)] * 5 + [0, 1, len(header) - 8, 10**9, 2**63, 2**64 - 1]))
    shutil.copytree(pristine, home, dirs_exist_ok=True)
    (home / TENSORS).write_bytes(length.to_bytes(8, "little") + header + whole[8 + n :])
    loads_or_says(home)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_bytes(pristine: Path, home: Path, data: st.DataObject) -> None:
    """Flipped or cut off, digests renewed or not."""
    name = data.draw(st.sampled_from([*FILES, TENSORS]))
    content = bytearray((pristine / name).read_bytes())
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    shutil.copytree(pristine, home, dirs_exist_ok=True)
    (home / name).write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2, 9, 0]))])
    if name in FILES[:2] and data.draw(st.booleans()):
        renewed(home)
    loads_or_says(home)


@pytest.mark.parametrize("verb", [["generate", "a"], ["serve", "--port", "0"], ["quantize", "out"]])
def test_verbs_say_it_in_one_line(
    pristine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], verb: list[str]
) -> None:
    folder = Path(shutil.copytree(pristine, tmp_path / "model"))
    decoder = json.loads((folder / FILES[0]).read_text())
    decoder["layers"][0]["feed_forward"]["n_experts"] = 10**12
    (folder / FILES[0]).write_text(json.dumps(decoder))
    renewed(folder)
    arguments = [verb[0], str(folder), *verb[1:]]
    assert main([str(tmp_path / "out") if part == "out" else part for part in arguments]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "parameters, the files hold" in said
