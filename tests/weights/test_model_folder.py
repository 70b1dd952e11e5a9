"""Our own checkpoints: what is written is read, bit for bit, or not believed; and what we trained loads elsewhere."""

import json
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import filled, loaded, relative, saved
from safetensors import safe_open

import isoflop
from isoflop.architecture import Attention, Decoder, Dense, Experts, Layer, Mlp
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.checkpoint import Checkpoint, save_model
from isoflop.weights.folder import TensorFolder
from isoflop.weights.hugging_face import export_folder, import_folder
from isoflop.weights.writer import Form, write_tensors
from strategies import decoders

TOKENS = torch.arange(12)[None]


def model_of(decoder: Decoder) -> DecoderModel:
    model = DecoderModel(decoder).eval()
    initialize(model, 1, Recipe(lr=1e-3, batch=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)))
    return model


@settings(max_examples=20)
@given(decoder=decoders())
def test_any_architecture_comes_back(tmp_path_factory: pytest.TempPathFactory, decoder: Decoder) -> None:
    folder = tmp_path_factory.mktemp("checkpoints") / "model"
    model = model_of(decoder)
    save_model(folder, model, "a test")
    again = isoflop.load(folder)
    assert again.decoder == decoder
    ours, theirs = model.state_dict(), again.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@given(data=st.data())
@settings(max_examples=20)
def test_files_written_tensor_by_tensor(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Odd sizes of mixed types, in one file or many: the safetensors library reads the same."""
    kinds = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
    shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)
    forms = data.draw(st.dictionaries(st.text("abc.", min_size=1), st.builds(Form, kinds, shapes), min_size=1))
    tensors = {name: torch.randn(form.shape).to(form.dtype) for name, form in forms.items()}
    folder = tmp_path_factory.mktemp("written")
    write_tensors(folder, forms, tensors.__getitem__, most_shard=data.draw(st.integers(1, 500)))
    found = TensorFolder(folder)
    assert found.entries.keys() == forms.keys()
    for name, entry in found.entries.items():
        with safe_open(entry.file, framework="pt") as file:
            assert torch.equal(file.get_tensor(name), tensors[name])
        assert torch.equal(found.read(name), tensors[name])
        assert entry.start % entry.dtype.itemsize == 0


def test_one_flipped_bit_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(folder, model_of(Dense().build(32, 40, 16)), "a test")
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"tensor 'norm.weight' is damaged: its digest is not the one"):
        isoflop.load(folder)


def test_other_damage(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(folder, model_of(Dense().build(32, 40, 16)), "a test")
    architecture, record = folder / "architecture.json", folder / "checkpoint.json"
    before = architecture.read_bytes()
    architecture.write_bytes(before.replace(b'"vocab_size": 40', b'"vocab_size": 41'))
    with pytest.raises(ValueError, match=r"architecture\.json: is damaged"):
        isoflop.load(folder)
    architecture.write_bytes(before)
    keys = json.loads(record.read_text())
    for change in ({"format": 2}, {"more": 1}, {"files": {}}, {"files": {"../x": ""}}, {"tensors": 3}):
        record.write_text(json.dumps(keys | change))
        with pytest.raises(ValueError, match="model"):
            isoflop.load(folder)


def test_types(tmp_path: Path) -> None:
    """Half the bytes, and vectors in full: Gemma's 1 + w would lose most of a small w."""
    saved(filled("gemma2", 0).to(torch.bfloat16), tmp_path / "half")
    import_folder(tmp_path / "half", tmp_path / "ours")
    ours = isoflop.load(tmp_path / "ours")
    assert ours.dtype == ours.embedding.dtype == torch.bfloat16 and ours.norm.weight.dtype == torch.float32
    export_folder(tmp_path / "ours", tmp_path / "back")
    mine, theirs = TensorFolder(tmp_path / "back"), TensorFolder(tmp_path / "half")
    assert all(torch.equal(mine.read(name), theirs.read(name)) for name in theirs.entries)
    whole = isoflop.load(tmp_path / "half", torch.float32)
    assert whole.dtype == whole.embedding.dtype == torch.float32
    with torch.no_grad():
        assert relative(whole(TOKENS), loaded(tmp_path / "half")(TOKENS).logits) < 1e-4


@pytest.mark.parametrize("family", ["gpt2", "qwen2", "mpt", "gemma2", "deepseek_v3", "mamba", "mamba2", "gpt_oss"])
def test_half_precision_runs(tmp_path: Path, family: str) -> None:
    """Matrices and activations in bf16, vectors in fp32: near the same weights in fp32, whole and token by token."""
    saved(filled(family, 0).to(torch.bfloat16), tmp_path)
    half, whole = isoflop.load(tmp_path), isoflop.load(tmp_path, torch.float32)
    with torch.no_grad():
        wanted, found = whole(TOKENS), half(TOKENS)
        state = half.new_state(1, TOKENS.shape[1])
        steps = torch.cat([half(TOKENS[:, t : t + 1], state) for t in range(TOKENS.shape[1])], dim=1)
    assert found.dtype == torch.float32 and found.isfinite().all()
    for logits in (found, steps):  # the mean, as a router's choice may tip
        assert float((logits - wanted).abs().mean() / wanted.abs().mean()) < 0.1


TRAINABLE = {
    "dense": Dense(),
    "qk norm": Dense(qk_norm=True, tie_embeddings=False, queries_per_kv=2),
    "experts": Experts(),
    "experts, not renormalised": Experts(renormalize=False, qk_norm=True),
}


@pytest.mark.parametrize("name", TRAINABLE)
def test_what_we_trained_loads_in_transformers(tmp_path: Path, name: str) -> None:
    """Also with the multipliers of depth and width transfer, which no family has: the weights take them."""
    decoder = TRAINABLE[name].build(64, 40, 16)
    decoder = msgspec.structs.replace(decoder, residual_multiplier=0.3, logit_multiplier=0.7)
    model = model_of(decoder)
    save_model(tmp_path / "ours", model, "a test")
    export_folder(tmp_path / "ours", tmp_path / "theirs", most_shard=10_000)
    assert len(list((tmp_path / "theirs").glob("*.safetensors"))) > 1
    with torch.no_grad():
        assert relative(loaded(tmp_path / "theirs")(TOKENS).logits, model(TOKENS)) < 1e-5


def test_what_no_family_computes_is_refused(tmp_path: Path) -> None:
    layer = Layer(mixer=Attention(n_heads=2, n_kv_heads=1, d_head=8, softcap=3.0), feed_forward=Mlp(d_ff=8))
    save_model(tmp_path / "ours", DecoderModel(Decoder(vocab_size=9, d_model=8, layers=(layer,), max_context=8)), "")
    with pytest.raises(ValueError, match=r"no family of transformers has .*softcap"):
        export_folder(tmp_path / "ours", tmp_path / "theirs")
    assert Checkpoint(tmp_path / "ours").decoder.n_layers == 1
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
