"""Bytes that a quantized model is said to hold, and those that it holds: codes stay codes, of experts too."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import isoflop
from isoflop.architecture import Attention, Decoder, LatentAttention, Layer, Mamba2, Mixer, MixtureOfExperts
from isoflop.model import DecoderModel
from isoflop.model.kernels import quantized as kernels
from isoflop.model.latent import LatentAttention as LatentModule
from isoflop.model.quantized import Format, Integer, NormalFloat, QuantizedLinear
from isoflop.quantize.memory import memory_bytes
from isoflop.quantize.report import coded_bytes, whole_bytes
from isoflop.quantize.run import quantize_model
from isoflop.quantize.sites import sites_of, untie
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.checkpoint import Checkpoint, Codes, write_checkpoint
from isoflop.weights.quantized import described

FULL = Attention(n_heads=4, n_kv_heads=2, d_head=8)
LATENT = LatentAttention(n_heads=2, kv_rank=16, d_nope=8, d_rope=4, d_value=8)
MAMBA = Mamba2(d_state=8, n_heads=4, d_head=8)
EXPERTS = MixtureOfExperts(n_experts=4, top_k=2, d_ff=32)
TOKENS = torch.arange(9)[None]


def held(model: nn.Module) -> int:
    """Bytes of what a model keeps; what several modules share counts once."""
    tensors: list[Tensor | None] = []
    for module in model.modules():
        skipped = module._non_persistent_buffers_set
        tensors += [*module._parameters.values()]
        tensors += [buffer for name, buffer in module._buffers.items() if name not in skipped]
        if isinstance(module, QuantizedLinear) and module._packed is not None:
            tensors += [value for value in vars(module._packed).values() if isinstance(value, Tensor)]
        if isinstance(module, LatentModule) and module._kept is not None:
            tensors += [module._kept[1]]
    return sum({x.data_ptr(): x.nbytes for x in tensors if x is not None and x.nbytes}.values())


def saved(folder: Path, mixer: Mixer, form: Format, method: str) -> tuple[int, int]:
    """A quantized checkpoint; bytes said to be in its files, and in memory."""
    layers = (Layer(mixer=mixer, feed_forward=EXPERTS),) * 2
    model = DecoderModel(Decoder(vocab_size=40, d_model=32, layers=layers, max_context=32)).eval()
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    untie(model)
    formats = dict.fromkeys((site.name for site in sites_of(model)), form)
    weights = quantize_model(model, formats, method, [TOKENS])  # type: ignore[arg-type]
    state, codes = model.state_dict(), Codes(described("a test", weights), weights.__getitem__)
    write_checkpoint(
        folder, model.decoder, lambda name, f: state[name].to(f.dtype), torch.float32, "a test", codes=codes
    )
    whole = whole_bytes(model.decoder, 4, weights)
    return whole + coded_bytes(model.decoder, weights), whole + memory_bytes(model.decoder, 4, weights)


@pytest.mark.parametrize("method", ["rtn", "gptq", "awq"])
@pytest.mark.parametrize("mixer", [FULL, LATENT, MAMBA], ids=lambda mixer: type(mixer).__name__)
@pytest.mark.parametrize("form", [Integer(bits=4, group=16), Integer(bits=3, group=20, symmetric=False), NormalFloat()])
@pytest.mark.skipif(not kernels.available(), reason="no C++ compiler")
def test_bytes_are_those_that_are_said(tmp_path: Path, mixer: Mixer, form: Format, method: str) -> None:
    in_files, in_memory = saved(tmp_path / "model", mixer, form, method)
    assert in_files == sum(entry.nbytes for entry in Checkpoint(tmp_path / "model").tensors.entries.values())
    model = isoflop.load(tmp_path / "model")
    if form.bits == 4 and form.group == 16 and method == "rtn":  # as they lie in the files
        assert held(model) == in_files
    with torch.no_grad():
        state = model.new_state(1, 16)
        model(TOKENS, state)
        model(TOKENS[:, :1], state)
        model(torch.arange(32)[None])  # every expert once
    assert held(model) == in_memory
