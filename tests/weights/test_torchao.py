"""Checkpoints that torchao itself quantized and laid out: what is read computes what transformers computes with the
weights that the codes stand for."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from oracle import loaded, relative, saved
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import isoflop
from isoflop.model.linear import Linear
from isoflop.model.quantized import Integer, QuantizedLinear
from isoflop.weights.checkpoint import Checkpoint
from isoflop.weights.hugging_face import import_folder

torchao = pytest.importorskip("torchao.quantization")

from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict  # noqa: E402

FILE = "model.safetensors"
TOKENS = torch.arange(12)[None]
Q = "model.layers.0.self_attn.q_proj"
INTX, INT8, INT4 = torchao.IntxWeightOnlyConfig, torchao.Int8WeightOnlyConfig, None
WAYS: dict[str, tuple[Any, Integer | None]] = {
    "int4 in groups": (
        INTX(weight_dtype=torch.int4, granularity=torchao.PerGroup(16)),
        Integer(bits=4, group=16, scales="fp32"),
    ),
    "int4 with zeros": (
        INTX(
            weight_dtype=torch.int4,
            granularity=torchao.PerGroup(16),
            mapping_type=torchao.MappingType.ASYMMETRIC,
        ),
        Integer(bits=4, group=16, scales="fp32", symmetric=False),
    ),
    "int3 by row": (
        INTX(weight_dtype=torch.int3, granularity=torchao.PerAxis(0)),
        Integer(bits=3, group=0, scales="fp32"),
    ),
    "int8 by row": (INT8(version=2), Integer(bits=8, group=0, scales="fp32")),
    "int8 of all": (INT8(version=2, granularity=torchao.PerTensor()), Integer(bits=8, group=0, scales="fp32")),
    "int4 with zeros that are floats": (INT4, None),
}


def int4(weight_OI: Tensor) -> tuple[Tensor, Tensor]:
    """torchao's Int4Tensor, which it makes on a GPU alone, and what it stands for: q * scale + zero (FBGEMM's
    int4_row_quantize_zp and pack_int4)."""
    low, high = (f(weight_OI.unflatten(1, (-1, 16)), dim=-1) for f in (torch.amin, torch.amax))
    scale_OG = (high - low) / 15
    codes = ((weight_OI.unflatten(1, (-1, 16)) - low[..., None]) / scale_OG[..., None]).round().flatten(1) - 8
    zero_OG, codes = low + 8 * scale_OG, codes.to(torch.int8)
    packed = codes[:, ::2] & 15 | codes[:, 1::2] << 4
    made = torchao.Int4Tensor(
        packed.contiguous(), scale_OG.T.contiguous(), zero_OG.T.contiguous(), [1, 16], weight_OI.shape
    )
    dense_OI = codes.unflatten(1, (-1, 16)) * scale_OG[..., None] + zero_OG[..., None]
    return made, dense_OI.flatten(1)


def small(folder: Path) -> Path:
    import transformers

    config = transformers.LlamaConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        vocab_size=40,
        intermediate_size=48,
        num_hidden_layers=2,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return saved(transformers.AutoModelForCausalLM.from_config(config), folder)


def quantized(source: Path, target: Path, oracle: Path, config: Any) -> None:
    """A saved model as torchao writes it, and with what its codes stand for."""
    theirs, plain = loaded(source), load_file(source / FILE)
    state = dict(theirs.state_dict())
    for name, module in theirs.named_modules():
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        if config is None:
            state[f"{name}.weight"], plain[f"{name}.weight"] = int4(module.weight.detach())
        else:
            torchao.quantize_(module, config)
            state[f"{name}.weight"] = module.weight.data
            plain[f"{name}.weight"] = module.weight.dequantize()
    tensors, metadata = flatten_tensor_state_dict(state)
    keys = json.loads((source / "config.json").read_text())
    target.mkdir()
    oracle.mkdir()
    save_file(tensors, target / FILE, metadata | {"format": "pt"})
    save_file({name: tensor.contiguous() for name, tensor in plain.items()}, oracle / FILE)
    (oracle / "config.json").write_text(json.dumps(keys))
    told = {"quant_method": "torchao", "quant_type": {"default": {"_type": "whatever"}}}
    (target / "config.json").write_text(json.dumps(keys | {"quantization_config": told}))


def dense(model: Any) -> Any:
    """The model with plain matrices of what its codes stand for."""
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, QuantizedLinear):
                linear = Linear(module.d_in, module.d_out)
                linear.weight = nn.Parameter(module.dense_weight(torch.float32))
                setattr(parent, name, linear)
    return model


@pytest.mark.parametrize("way", WAYS)
def test_logits_are_those_of_the_dequantized(tmp_path: Path, way: str) -> None:
    config, expected_format = WAYS[way]
    target, oracle, ours = tmp_path / "torchao", tmp_path / "plain", tmp_path / "ours"
    quantized(small(tmp_path / "source"), target, oracle, config)
    with torch.no_grad():
        expected = loaded(oracle)(TOKENS).logits
        import_folder(target, ours, torch.float32)
        for folder in (target, ours):
            model = isoflop.load(folder)
            found = getattr(model.layers[0].mixer.out, "format", None)
            assert found == expected_format
            assert relative(model(TOKENS), expected) < 0.05  # a kernel rounds the inputs too
            assert relative(dense(model)(TOKENS), expected) < 1e-5
    assert len(Checkpoint(ours).matrices) == (0 if config is None else 8)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("torchao")
    quantized(small(home / "source"), home / "torchao", home / "plain", WAYS["int4 with zeros"][0])
    return home / "torchao"


def redone(pristine: Path, folder: Path, change: Callable[[dict[str, Tensor], dict[str, str]], Any]) -> str:
    """The refusal of a checkpoint whose tensors and metadata are changed."""
    folder.mkdir()
    os.link(pristine / "config.json", folder / "config.json")
    tensors = load_file(pristine / FILE)
    with safe_open(pristine / FILE, framework="pt") as opened:
        metadata = opened.metadata()
    change(tensors, metadata)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE, metadata)
    with pytest.raises(ValueError) as found:
        isoflop.load(folder)
    assert "\n" not in str(found.value)
    return str(found.value)


def told(change: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Tensor], dict[str, str]], None]:
    def changed(tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        content = json.loads(metadata[f"{Q}.weight"])
        change(content)
        metadata[f"{Q}.weight"] = json.dumps(content)

    return changed


DAMAGE: list[tuple[Callable[[dict[str, Tensor], dict[str, str]], Any], str]] = [
    (told(lambda c: c.update(_type="Int4TilePackedTo4dTensor")), "is a torchao 'Int4TilePackedTo4dTensor', which is"),
    (told(lambda c: c.update(_type="os.system")), "is a torchao 'os.system', which is not read"),
    (told(lambda c: c.update(_type="Int4Tensor")), "does not divide [32, 64]|its scale has shape"),
    (told(lambda c: c["_data"].update(block_size=[1, 7])), "block_size [1, 7] does not divide"),
    (told(lambda c: c["_data"].update(block_size=[1, 2**70])), "does not divide"),
    (told(lambda c: c["_data"].update(block_size=[1, 8])), "its scale has shape [32, 2], block_size wants [32, 4]"),
    (told(lambda c: c["_data"].update(target_dtype={"_data": "int99"})), "codes of int99 are not read"),
    (told(lambda c: c["_data"].update(target_dtype={"_data": "int2"})), "holds what 2 bits cannot"),
    (told(lambda c: c.clear()), "is of whole numbers and belongs to no torchao matrix"),
    (lambda t, m: m.update(tensor_names="[[]]"), "the header says nothing of its tensors"),
    (lambda t, m: m.clear(), "the header says nothing of its tensors"),
    (lambda t, m: m.update({f"{Q}.weight": "[" * 10**5}), "the header says nothing of its tensors"),
    (lambda t, m: t.pop(f"{Q}._weight_scale"), "its scale is missing"),
    (lambda t, m: t[f"{Q}._weight_scale"].fill_(float("nan")), "holds NaN or infinity"),
    (lambda t, m: t.update({f"{Q}._weight_qdata": t[f"{Q}._weight_qdata"].int()}), "its qdata is torch.int32"),
    (lambda t, m: t.update({f"{Q}.weight": torch.zeros(32, 32)}), "is there twice, in codes and not"),
    (lambda t, m: t.update({f"{Q}._weight_act_pre_scale": torch.zeros(32)}), "scales inputs, which is not read"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_damage_is_named(
    pristine: Path, tmp_path: Path, change: Callable[[dict[str, Tensor], dict[str, str]], Any], message: str
) -> None:
    found = redone(pristine, tmp_path / "damaged", change)
    assert any(part in found for part in message.split("|")), found
