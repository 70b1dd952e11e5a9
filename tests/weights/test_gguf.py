"""GGUF files: read back by the format's own library, and by transformers, which computes the same from them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from oracle import filled, relative, saved

import isoflop
from isoflop.architecture import Attention, Decoder, Dense, Layer, Mlp, Rope
from isoflop.cli.main import main
from isoflop.data.tokenizer import byte_alphabet, byte_tokenizer_json, train_byte_pair
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.checkpoint import save_model
from isoflop.weights.gguf_file import KINDS, export_gguf
from isoflop.weights.hugging_face import export_folder, import_folder
from isoflop.weights.writer import held

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
TOKENS = torch.arange(1, 13)[None]
TEXTS = [b"for each thing in the things that they think, another thing"] * 20


def small(tmp_path: Path) -> Path:
    """A model of ours with a tokenizer of ours, as a study leaves them."""
    tokenizer = train_byte_pair(TEXTS, 270)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(tokenizer.json)
    layer = Layer(mixer=Attention(n_heads=2, n_kv_heads=1, d_head=16), feed_forward=Mlp(d_ff=48))
    model = DecoderModel(Decoder(vocab_size=270, d_model=32, layers=(layer, layer), max_context=64, position=Rope()))
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    special = {"bos_token_id": 0, "eos_token_id": 0}
    save_model(tmp_path / "ours", model, "a test", tmp_path / "tokenizer", special)
    return tmp_path / "ours"


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_those_of_the_checkpoint(tmp_path: Path, kind: Any) -> None:
    source = small(tmp_path)
    assert export_gguf(source, tmp_path / "model.gguf", kind) == "llama"
    found = {t.name: t for t in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    ours, worst = isoflop.load(source).state_dict(), {"fp32": 0.0, "bf16": 2**-8, "q8_0": 0.01, "q4_0": 0.2}[kind]
    for theirs, name in (
        ("blk.1.ffn_down.weight", "layers.1.feed_forward.down.weight"),
        ("token_embd.weight", "embedding"),
    ):
        values = gguf.quants.dequantize(found[theirs].data, found[theirs].tensor_type)
        assert relative(torch.from_numpy(np.array(values)), ours[name]) <= worst
    assert found["blk.0.attn_norm.weight"].tensor_type.name == "F32"
    assert found["blk.0.attn_q.weight"].tensor_type.name == {"fp32": "F32"}.get(kind, kind.upper())
    sizes = sum(int(t.n_elements) for t in found.values())
    assert sizes == sum(p.numel() for p in isoflop.load(source).parameters())


def test_the_tokenizer_goes_along(tmp_path: Path) -> None:
    export_gguf(small(tmp_path), tmp_path / "model.gguf", "bf16")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    written = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    pieces = fields["tokenizer.ggml.tokens"].contents()
    assert {piece: i for i, piece in enumerate(pieces)} == written["model"]["vocab"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in written["model"]["merges"]]
    assert fields["tokenizer.ggml.merges"].contents() == merges
    assert fields["tokenizer.ggml.token_type"].contents()[0] == gguf.TokenType.CONTROL


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_transformers_computes_the_same(tmp_path: Path, family: str) -> None:
    import transformers
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    shape: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 270, "intermediate_size": 96}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    kinds = {
        "llama": transformers.LlamaConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }
    more = {"head_dim": 128} if family == "qwen3" else {}
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(kinds[family](**shape, **heads, **more)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    tokenizer = train_byte_pair(TEXTS, 270)
    folder = saved(model, tmp_path / "source")
    (folder / "tokenizer.json").write_text(tokenizer.json)
    import_folder(folder, tmp_path / "ours", torch.float32)
    (tmp_path / "gguf").mkdir()
    export_gguf(tmp_path / "ours", tmp_path / "gguf" / "model.gguf", "fp32")
    found = load_gguf_checkpoint(str(tmp_path / "gguf" / "model.gguf"), return_tensors=True, model_to_load=model)
    again = transformers.AutoModelForCausalLM.from_config(kinds[family](**found["config"])).eval()
    again.load_state_dict({name: torch.as_tensor(value) for name, value in found["tensors"].items()})
    with torch.no_grad():
        assert relative(again(TOKENS).logits, model(TOKENS).logits) < 1e-4


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("gemma2", "a gemma2: only llama"),
        ("gpt2", "a gpt2: only llama"),
        ("deepseek_v3", "only llama"),
        ("mamba2", "a mamba2: only llama"),
    ],
)
def test_families_that_are_not_written(tmp_path: Path, family: str, message: str) -> None:
    import_folder(saved(filled(family, 0), tmp_path / "theirs"), tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        export_gguf(tmp_path / "ours", tmp_path / "model.gguf", "bf16")
    assert not list(tmp_path.glob("*.gguf*"))


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(small(tmp_path)), str(tmp_path / "model.gguf")
    assert main(["export", source, out, "--format", "gguf", "--dtype", "q8_0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"checkpoint": source, "out": out, "model_type": "llama"}
    assert main(["export", source, out, "--format", "gguf"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert main(["export", source, out + "2", "--format", "gguf", "--dtype", "q5"]) == 2
    assert "valid: fp32, bf16, q8_0, q4_0" in capsys.readouterr().err
    assert main(["export", source, out + "2", "--dtype", "bf16"]) == 2
    assert "are of --format gguf" in capsys.readouterr().err


def test_a_tokenizer_without_a_known_rule(tmp_path: Path) -> None:
    source = small(tmp_path)
    written = json.loads((tmp_path / "tokenizer" / "tokenizer.json").read_text())
    written["pre_tokenizer"]["add_prefix_space"] = True
    (tmp_path / "tokenizer" / "tokenizer.json").write_text(json.dumps(written))
    save_model(tmp_path / "other", isoflop.load(source), "a test", tmp_path / "tokenizer")
    with pytest.raises(ValueError, match="its way to split text is unknown; --no-tokenizer leaves it out"):
        export_gguf(tmp_path / "other", tmp_path / "model.gguf", "bf16")
    assert export_gguf(tmp_path / "other", tmp_path / "model.gguf", "bf16", tokenizer=False) == "llama"


def test_two_at_once_into_one_file(tmp_path: Path) -> None:
    model, target = small(tmp_path), tmp_path / "out.gguf"
    with held(target.with_name(f".{target.name}.partial")), pytest.raises(ValueError, match="another isoflop"):
        export_gguf(model, target, "fp32")
    assert not target.exists()
    export_gguf(model, target, "fp32")
    assert target.is_file() and not list(tmp_path.glob(".*.partial"))


def of_bytes(tmp_path: Path) -> Path:
    model = DecoderModel(Dense().build(32, 256, 64))
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    save_model(tmp_path / "bytes", model, "a test", special_tokens={"bos_token_id": 0, "eos_token_id": 0})
    return tmp_path / "bytes"


@pytest.mark.parametrize("imported", [False, True])
def test_a_model_of_bytes(tmp_path: Path, imported: bool) -> None:
    """It has no tokenizer's file, but where it comes back from transformers; the vocabulary is the same."""
    source = of_bytes(tmp_path)
    if imported:
        export_folder(source, tmp_path / "theirs")
        import_folder(tmp_path / "theirs", tmp_path / "again")
        source = tmp_path / "again"
    export_gguf(source, tmp_path / "model.gguf", "fp32")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.model"].contents() == "gpt2"
    pieces = fields["tokenizer.ggml.tokens"].contents()
    assert {piece: i for i, piece in enumerate(pieces)} == json.loads(byte_tokenizer_json())["model"]["vocab"]
    types = fields["tokenizer.ggml.token_type"].contents()
    assert types == [gguf.TokenType.CONTROL] + [gguf.TokenType.NORMAL] * 255
    nul = byte_alphabet()[0]
    assert fields["tokenizer.ggml.merges"].contents() == [f"{nul} {nul}"] and nul not in pieces
    assert fields["tokenizer.ggml.eos_token_id"].contents() == 0
    export_gguf(source, tmp_path / "without.gguf", "fp32", tokenizer=False)
    assert gguf.GGUFReader(tmp_path / "without.gguf").fields["tokenizer.ggml.model"].contents() == "none"


def test_llama_cpp_reads_a_model_of_bytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same tokens, and the same text."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    source = of_bytes(tmp_path)
    export_gguf(source, tmp_path / "model.gguf", "fp32")
    theirs = llama_cpp.Llama(model_path=str(tmp_path / "model.gguf"), n_ctx=64, verbose=False)
    for text in ("", " a\n\nb", "Grüße ☃ 😀 e\u0301", "don't 12345", "\x01\x7f\r\n"):
        assert theirs.tokenize(text.encode(), add_bos=False) == list(text.encode())
    capsys.readouterr()
    assert main(["generate", str(source), "The quick", "--max-tokens", "12", "--temperature", "0", "--json"]) == 0
    ours = json.loads(capsys.readouterr().out)
    written = theirs.create_completion("The quick", max_tokens=12, temperature=0, repeat_penalty=1.0)
    assert written["choices"][0]["text"] == ours["outputs"][0]["text"]
