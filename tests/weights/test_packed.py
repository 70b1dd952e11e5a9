"""GPTQ and AWQ checkpoints, written here by packers of our own: what is read computes what transformers computes with
the weights that the codes stand for."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import filled, loaded, relative, saved
from safetensors.torch import load_file, save_file
from torch import Tensor

import isoflop
from isoflop.model.quantized import QuantizedLinear
from isoflop.weights.checkpoint import Checkpoint
from isoflop.weights.hugging_face import export_folder, import_folder

FILE = "model.safetensors"
TOKENS = torch.arange(12)[None]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble i of a word is column 8 k + AWQ_ORDER[i] (AutoAWQ's packer)


def words_along(codes_RC: np.ndarray, bits: int) -> np.ndarray:
    """[R, C] to int32 [R, ceil(C bits / 32)], one code after the other from the low end."""
    per = 32 // bits
    words = np.zeros((codes_RC.shape[0], -(-codes_RC.shape[1] // per)), np.uint64)
    for c in range(codes_RC.shape[1]):
        words[:, c // per] |= codes_RC[:, c].astype(np.uint64) << np.uint64(bits * (c % per))
    return words.astype(np.uint32).view(np.int32)


def words_awq(codes_IO: np.ndarray) -> np.ndarray:
    words = np.zeros((codes_IO.shape[0], codes_IO.shape[1] // 8), np.uint64)
    for word in range(words.shape[1]):
        for nibble, column in enumerate(AWQ_ORDER):
            words[:, word] |= codes_IO[:, 8 * word + column].astype(np.uint64) << np.uint64(4 * nibble)
    return words.astype(np.uint32).view(np.int32)


class Packer:
    """Packs random codes; `dense` of a matrix is what they stand for, in fp16 arithmetic made exact by fp32."""

    def __init__(self, method: str, bits: int, group: int, sym: bool, shuffled: str, version: str) -> None:
        self.method, self.bits, self.group, self.sym, self.version = method, bits, group, sym, version
        self.shuffled, self.rng = shuffled, np.random.default_rng(0)

    def config(self) -> dict[str, Any]:
        if self.method == "awq":
            return {"quant_method": "awq", "bits": 4, "group_size": self.group, "version": "gemm", "zero_point": True}
        form = {"quant_method": "gptq", "bits": self.bits, "group_size": self.group, "sym": self.sym}
        return form | {"checkpoint_format": self.version, "desc_act": self.shuffled != "no"}

    def pack(self, stem: str, d_out: int, d_in: int) -> tuple[dict[str, Tensor], Tensor]:
        group = d_in if self.group == -1 else self.group
        codes_OI = self.rng.integers(0, 2**self.bits, (d_out, d_in))
        n_groups = -(-d_in // group)
        zeros_OG = self.rng.integers(1 if self.version == "gptq" else 0, 2**self.bits, (d_out, n_groups))
        zeros_OG = np.full_like(zeros_OG, 2 ** (self.bits - 1)) if self.sym else zeros_OG
        scales_OG = (self.rng.uniform(0.5, 1.5, zeros_OG.shape) / 2**self.bits / d_in**0.5).astype(np.float16)
        of_I = self._groups(stem, d_in, group)
        dense_OI = (codes_OI - zeros_OG[:, of_I]) * scales_OG[:, of_I].astype(np.float32)
        parts = {"scales": scales_OG.T.copy()}
        if self.method == "awq":
            parts |= {"qweight": words_awq(codes_OI.T), "qzeros": words_awq(zeros_OG.T)}
        else:
            less = 1 if self.version == "gptq" else 0
            parts |= {
                "qweight": words_along(codes_OI, self.bits).T.copy(),
                "qzeros": words_along(zeros_OG.T - less, self.bits),
            }
            parts |= {"g_idx": of_I.astype(np.int32)}
        named = {f"{stem}.{part}": torch.from_numpy(value) for part, value in parts.items()}
        return named, torch.from_numpy(dense_OI.astype(np.float32))

    def _groups(self, stem: str, d_in: int, group: int) -> np.ndarray:
        of_I = np.arange(d_in) // group
        if self.shuffled == "no":
            return of_I
        alike = stem.rpartition(".")[0] if self.shuffled == "alike" else stem  # q, k, v read the same input
        return np.random.default_rng(list(alike.encode())).permutation(of_I)


def packed(source: Path, target: Path, oracle: Path, packer: Packer, chosen: Callable[[str], bool]) -> None:
    """Two copies of a saved model: with the chosen matrices packed, and with what these stand for."""
    tensors = load_file(source / FILE)
    theirs, plain = dict(tensors), dict(tensors)
    for name, tensor in tensors.items():
        if tensor.dim() == 2 and chosen(name):
            del theirs[name]
            parts, plain[name] = packer.pack(name.removesuffix(".weight"), *tensor.shape)
            theirs |= parts
    config = json.loads((source / "config.json").read_text())
    for folder, content, keys in (
        (target, theirs, config | {"quantization_config": packer.config()}),
        (oracle, plain, config),
    ):
        folder.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in content.items()}, folder / FILE)
        (folder / "config.json").write_text(json.dumps(keys))


def small(family: str, folder: Path) -> Path:
    """Widths that words of codes fill."""
    import transformers

    shape = {"hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": 40}
    more: dict[str, Any] = shape | {"intermediate_size": 48, "num_hidden_layers": 2, "tie_word_embeddings": False}
    if family == "mixtral":
        config = transformers.MixtralConfig(**more, num_local_experts=3, num_experts_per_tok=2)
    else:
        config = transformers.LlamaConfig(**more, attention_bias=True)
    torch.manual_seed(0)
    return saved(transformers.AutoModelForCausalLM.from_config(config), folder)


def projections(name: str) -> bool:
    return name.endswith(("_proj.weight", "w1.weight", "w2.weight", "w3.weight"))


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize(
    "packer",
    [
        ("gptq", 4, 16, True, "no", "gptq"),
        ("gptq", 4, 16, False, "alike", "gptq"),
        ("gptq", 4, -1, False, "own", "gptq_v2"),
        ("gptq", 4, 8, False, "own", "gptq_v2"),
        ("gptq", 8, 16, False, "no", "gptq_v2"),
        ("gptq", 2, 16, True, "no", "gptq"),
        ("awq", 4, 16, False, "no", ""),
    ],
)
def test_logits_are_those_of_the_dequantized(tmp_path: Path, family: str, packer: tuple[Any, ...]) -> None:
    target, oracle, ours = tmp_path / "packed", tmp_path / "plain", tmp_path / "ours"
    packed(small(family, tmp_path / "source"), target, oracle, Packer(*packer), projections)
    theirs = loaded(oracle)
    with torch.no_grad():
        expected = theirs(TOKENS).logits
        import_folder(target, ours, torch.float32)
        for folder in (target, ours):
            model = isoflop.load(folder, torch.float32)
            assert isinstance(model.layers[0].mixer.qkv, QuantizedLinear) == (packer[4] != "own" or packer[2] == -1)
            assert isinstance(model.layers[0].mixer.out, QuantizedLinear)
            assert relative(model(TOKENS), expected) < 0.3  # random codes, and a kernel rounds the inputs too
            assert relative(_dense(model)(TOKENS), expected) < 1e-5


def _dense(model: Any) -> Any:
    """The model with plain matrices of what its codes stand for."""
    from isoflop.model.linear import Linear

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if isinstance(module, QuantizedLinear):
                linear = Linear(module.d_in, module.d_out)
                linear.weight = torch.nn.Parameter(module.dense_weight(torch.float32))
                linear.bias = None if module.bias is None else torch.nn.Parameter(module.bias)
                setattr(parent, name, linear)
    return model


def test_what_is_packed_in_part_is_dequantized(tmp_path: Path) -> None:
    """As by modules_to_not_convert; and an export goes back to the same numbers."""
    target, oracle = tmp_path / "packed", tmp_path / "plain"
    only = Packer("gptq", 4, 16, False, "no", "gptq")
    packed(small("llama", tmp_path / "source"), target, oracle, only, lambda name: "k_proj" in name or "down" in name)
    model = isoflop.load(target, torch.float32)
    with torch.no_grad():
        assert relative(_dense(model)(TOKENS), loaded(oracle)(TOKENS).logits) < 1e-5
    import_folder(target, tmp_path / "ours", torch.float32)
    assert set(Checkpoint(tmp_path / "ours").matrices) == {f"layers.{i}.feed_forward.down.weight" for i in (0, 1)}
    export_folder(tmp_path / "ours", tmp_path / "back")
    ours, theirs = load_file(tmp_path / "back" / FILE), load_file(oracle / FILE)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


DAMAGE: list[tuple[Callable[[dict[str, Tensor]], Any], str]] = [
    (lambda t: t.update({f"{Q}.qweight": t[f"{Q}.qweight"][:-1]}), "the layout wants"),
    (lambda t: t.update({f"{Q}.scales": t[f"{Q}.scales"][:, 1:]}), "the layout wants"),
    (lambda t: t.update({f"{Q}.qzeros": t[f"{Q}.qzeros"].long()}), "is torch.int64, which it cannot be"),
    (lambda t: t.update({f"{Q}.g_idx": t[f"{Q}.g_idx"] * 0}), "groups are not of 16 channels"),
    (lambda t: t.update({f"{Q}.g_idx": t[f"{Q}.g_idx"] - 5}), "groups are not of 16 channels"),
    (lambda t: t.pop(f"{Q}.qzeros"), "tensor '{}.qzeros' is missing"),
    (lambda t: t.update({f"{Q}.weight": torch.zeros(32, 32)}), "is there twice"),
    (lambda t: t.update({"x": torch.zeros(3, dtype=torch.int32)}), "belongs to no packed matrix"),
    (lambda t: t[f"{Q}.scales"].fill_(float("inf")), "holds NaN or infinity"),
]
Q = "model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_damage_is_named(tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str) -> None:
    target = tmp_path / "packed"
    packed(
        small("llama", tmp_path / "s"), target, tmp_path / "o", Packer("gptq", 4, 16, False, "no", "gptq"), projections
    )
    tensors = load_file(target / FILE)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, target / FILE)
    with pytest.raises(ValueError) as found:
        isoflop.load(target)
    assert message.format(Q) in str(found.value)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "bitsandbytes"}, "only of gptq, awq and torchao"),
        ({}, "only of gptq, awq and torchao"),
        ("gptq", "only of gptq, awq and torchao"),
        ({"quant_method": "gptq", "bits": 3, "group_size": 16}, "bits 3 of gptq are not read, only 2, 4, 8"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 0}, "group_size 0 is neither"),
        (
            {"quant_method": "awq", "bits": 4, "group_size": 16, "version": "gemv"},
            "layout 'gemv' is not read, only gemm",
        ),
        ({"quant_method": "gptq", "bits": 4, "group_size": 16, "checkpoint_format": "marlin"}, "only gptq, gptq_v2"),
    ],
)
def test_layouts_that_are_not_read(tmp_path: Path, config: Any, message: str) -> None:
    folder = saved(filled("llama", 0), tmp_path / "model")
    keys = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(keys | {"quantization_config": config}))
    with pytest.raises(ValueError, match=message):
        isoflop.load(folder)
