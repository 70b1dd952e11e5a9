"""What is not a whole, plain, finite set of weights is refused in one line that names it."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import filled, saved
from safetensors.torch import load_file, save_file
from torch import Tensor

import isoflop
from isoflop.weights.hugging_face import HuggingFaceFolder, import_folder

FILE, INDEX = "model.safetensors", "model.safetensors.index.json"
Q = "model.layers.1.self_attn.q_proj.weight"


def refusal(folder: Path) -> str:
    with pytest.raises(ValueError) as found:
        isoflop.load(folder)
    assert "\n" not in str(found.value)
    return str(found.value)


def changed(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> str:
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)
    return refusal(folder)


def header(folder: Path, content: bytes, length: int | None = None) -> str:
    body = (folder / FILE).read_bytes()[-100:]
    (folder / FILE).write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + body)
    return refusal(folder)


def sharded(folder: Path) -> dict[str, str]:
    """Split the one file in three; returns the index's map."""
    tensors = load_file(folder / FILE)
    (folder / FILE).unlink()
    places = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, folder / file)
    write_index(folder, places)
    return places


def write_index(folder: Path, places: object) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def test_a_missing_tensor(model_folder: Path) -> None:
    assert f"tensor '{Q}' is missing" in changed(model_folder, lambda tensors: tensors.pop(Q))


def test_an_extra_tensor(model_folder: Path) -> None:
    message = changed(model_folder, lambda tensors: tensors.update(more=torch.zeros(3)))
    assert "tensor 'more' is extra" in message


def test_a_misshapen_tensor(model_folder: Path) -> None:
    message = changed(model_folder, lambda tensors: tensors.update({Q: tensors[Q].T.contiguous()}))
    assert f"'{Q}' has shape [28, 32], the architecture wants [32, 28]" in message


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_that_is_none(model_folder: Path, value: float) -> None:
    message = changed(model_folder, lambda tensors: tensors[Q].view(-1)[-1:].fill_(value))
    assert f"tensor '{Q}' holds NaN or infinity" in message


def test_a_type_that_is_no_weight(model_folder: Path) -> None:
    message = changed(model_folder, lambda tensors: tensors.update({Q: tensors[Q].to(torch.int8)}))
    assert f"'{Q}' is of type I8" in message


def test_harmless_extras_are_told(model_folder: Path) -> None:
    tensors = load_file(model_folder / FILE)
    angles = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file(tensors | {angles: torch.ones(2)}, model_folder / FILE)
    assert HuggingFaceFolder(model_folder).ignored == [angles]


def test_a_head_beside_the_table_it_is_tied_to(tmp_path: Path) -> None:
    folder = saved(filled("llama", 1), tmp_path / "model")
    tensors = load_file(folder / FILE)
    table = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": table.clone()}, folder / FILE)
    assert HuggingFaceFolder(folder).ignored == ["lm_head.weight"]
    save_file(tensors | {"lm_head.weight": table + 1}, folder / FILE)
    assert "differ, though tie_word_embeddings makes them one" in refusal(folder)


def test_names_without_their_base(tmp_path: Path) -> None:
    """GPT-2's first checkpoint has no `transformer.` before its names, and masks among them."""
    folder = saved(filled("gpt2", 1), tmp_path / "model")
    before = HuggingFaceFolder(folder).load()
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(folder / FILE).items()}
    save_file(tensors | {"h.0.attn.bias": torch.ones(1, 1, 4, 4)}, folder / FILE)
    opened = HuggingFaceFolder(folder)
    assert opened.ignored == ["h.0.attn.bias"]
    tokens = torch.arange(10)[None]
    assert torch.equal(opened.load()(tokens), before(tokens))


def test_shards_and_their_index(model_folder: Path) -> None:
    tokens = torch.arange(10)[None]
    whole = isoflop.load(model_folder)(tokens)
    places = sharded(model_folder)
    assert torch.equal(isoflop.load(model_folder)(tokens), whole)

    write_index(model_folder, places | {"ghost": places[Q]})
    assert "'ghost' is in the index but not in the file" in refusal(model_folder)
    write_index(model_folder, {name: file for name, file in places.items() if name != Q})
    assert f"'{Q}' is in the file but not in the index" in refusal(model_folder)
    shutil.copy(model_folder / places[Q], model_folder / "twin.safetensors")
    write_index(model_folder, places | {"x": "twin.safetensors"})
    assert "is both in" in refusal(model_folder)
    write_index(model_folder, ["no", "map"])
    assert "no 'weight_map'" in refusal(model_folder)
    (model_folder / INDEX).write_text('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}')
    assert "the key 'a' occurs twice" in refusal(model_folder)


@pytest.mark.parametrize(
    "name",
    [
        "../model/model-0.safetensors",
        "/etc/passwd.safetensors",
        "..",
        "a/b.safetensors",
        "x\0.safetensors",
        "\ud800.safetensors",
        "x" * 255 + ".safetensors",
        "x.bin",
    ],
    ids=ascii,
)
def test_names_that_leave_the_folder(model_folder: Path, name: str) -> None:
    places = sharded(model_folder)
    write_index(model_folder, places | {Q: name})
    message = refusal(model_folder)
    assert any(part in message for part in ("is not the name of a file", "is not a safetensors file", "surrogates"))


@pytest.mark.parametrize("name", [FILE, "config.json"])
def test_links_that_leave_the_folder(model_folder: Path, tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    (model_folder / name).rename(outside)
    (model_folder / name).symlink_to(outside)
    assert "is a link that leaves the folder" in refusal(model_folder)


def test_a_tokenizer_that_is_a_link(model_folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("{}")
    (model_folder / "tokenizer.json").symlink_to(secret)
    with pytest.raises(ValueError, match="is a link that leaves the folder"):
        import_folder(model_folder, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "secret"]


def test_no_plain_file(model_folder: Path) -> None:
    (model_folder / FILE).unlink()
    os.mkfifo(model_folder / FILE)  # opening it would wait for ever
    assert "is not a plain file" in refusal(model_folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt"])
def test_pickles(model_folder: Path, name: str) -> None:
    """This one would touch a file were it opened."""
    (model_folder / FILE).unlink()
    (model_folder / name).write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")
    assert "only safetensors are read" in refusal(model_folder)
    assert not Path("owned").exists() and not (model_folder / "owned").exists()


def test_damaged_headers(model_folder: Path) -> None:
    tensor = (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}'
    )
    for content, length in (
        (b"{}", 2**63),
        (b"{}", 10**9),
        (b"", 0),
        (b"not json", None),
        (b"[" * 100_000, None),
        (tensor, None),
        (b'{"a":{"dtype":"F32","shape":[1e99],"data_offsets":[0,8]}}', None),
        (b'{"a":{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,100]}}', None),
    ):
        assert "is not a valid safetensors file" in header(model_folder, content, length)


@settings(max_examples=40)
@given(data=st.data())
def test_any_byte_damage_of_a_header(
    pristine: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Whatever the bytes: a model, or one line."""
    folder = Path(shutil.copytree(pristine, tmp_path_factory.mktemp("damage") / "model"))
    content = bytearray((folder / FILE).read_bytes())
    end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, end - 1))] = data.draw(st.integers(0, 255))
    (folder / FILE).write_bytes(content[: data.draw(st.sampled_from([len(content), end, 7, 0]))])
    try:
        isoflop.load(folder)
    except ValueError as error:
        assert "\n" not in str(error)


def test_configurations(model_folder: Path) -> None:
    config = model_folder / "config.json"
    keys = json.loads(config.read_text())
    for change, expected in (
        ({"model_type": "t5"}, "model_type 't5'"),
        ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantized weights are not read"),
        ({"model_type": None}, "model_type"),
    ):
        config.write_text(json.dumps(keys | change))
        assert expected in refusal(model_folder)
    for text in ("[]", "{", '{"a": 1, "a": 2}', "[" * 100_000):
        config.write_text(text)
        assert str(config) in refusal(model_folder)
    config.unlink()
    assert "holds neither a checkpoint of Isoflop, nor a Hugging Face model" in refusal(model_folder)
    assert "is not a folder" in refusal(model_folder / "nowhere")


WRONG = [0, -1, 1, 3, 2**53, 2**70, 0.5, 1e300, None, "", "x", True, [], [1], {}, {"rope_type": "yarn"}]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("several")
    return [
        saved(filled(family, 0), home / family) for family in ("falcon", "deepseek_v3", "jamba", "gpt_oss", "mamba2")
    ]


@settings(max_examples=150)
@given(data=st.data())
def test_any_configuration(several: list[Path], data: st.DataObject) -> None:
    """Whatever it says: a model, or one line, and soon."""
    folder = data.draw(st.sampled_from(several))
    before = (folder / "config.json").read_text()
    keys = json.loads(before)
    changes = data.draw(st.dictionaries(st.sampled_from(sorted(keys)), st.sampled_from(WRONG), min_size=1, max_size=3))
    (folder / "config.json").write_text(json.dumps(keys | changes))
    try:
        isoflop.load(folder)
    except ValueError as error:
        assert "\n" not in str(error)
    finally:
        (folder / "config.json").write_text(before)
