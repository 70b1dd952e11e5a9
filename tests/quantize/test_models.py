"""Whole models of every family: scales that move change nothing, inputs are those that the matrices meet, and what is
quantized is what comes back from the files."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import isoflop
from isoflop.architecture import Attention, Decoder, Layer, MixtureOfExperts, Mlp, SharedExperts
from isoflop.evaluate.windows import Windows
from isoflop.model import DecoderModel
from isoflop.model.quantized import Format, Integer, NormalFloat, QuantizedLinear
from isoflop.quantize.calibration import Inputs, Walk
from isoflop.quantize.measure import read
from isoflop.quantize.mixed import sensitivities, stored_bits
from isoflop.quantize.run import METHODS, Method, Weights, quantize_model
from isoflop.quantize.sites import scale_inputs, sites_of, stages_of, stages_of_layer, untie
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.checkpoint import Checkpoint, Codes, write_checkpoint
from isoflop.weights.quantized import described
from strategies import decoders

TOKENS = torch.arange(24).view(2, 12) % 5
EXPERTS = MixtureOfExperts(n_experts=4, top_k=2, d_ff=20, shared=SharedExperts(d_ff=12, gated=True))


def model_of(decoder: Decoder) -> DecoderModel:
    model = DecoderModel(decoder).eval()
    initialize(model, 1, Recipe(lr=1e-3, batch=1))
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=g) * ("filters" not in name))
    untie(model)
    return model


def tokens_of(decoder: Decoder) -> Tensor:
    return TOKENS[:, : decoder.max_context] % decoder.vocab_size


def sparse(tied: bool = True) -> DecoderModel:
    layers = (
        Layer(mixer=Attention(n_heads=4, n_kv_heads=4, d_head=8), feed_forward=EXPERTS),
        Layer(mixer=Attention(n_heads=4, n_kv_heads=2, d_head=8), feed_forward=Mlp(d_ff=24)),
    )
    return model_of(Decoder(vocab_size=40, d_model=32, layers=layers, max_context=32, tie_embeddings=tied))


@settings(max_examples=20, deadline=None)
@given(decoder=decoders(), seed=st.integers(0, 9))
def test_scales_that_move_change_nothing(decoder: Decoder, seed: int) -> None:
    model = model_of(decoder)
    tokens, g = tokens_of(decoder), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        before = model(tokens)
        for stage in reversed(stages_of(model)):
            if stage.fold is None:
                continue
            own = len(stage.sites) == 1 and stage.sites[0].part == "down"
            n_experts = stage.sites[0].shape[0] if own else 1
            scales_EI = torch.rand(n_experts, stage.sites[0].shape[2], generator=g) + 0.5
            scale_inputs(stage, scales_EI)
            stage.fold(scales_EI)
        torch.testing.assert_close(model(tokens), before, rtol=1e-3, atol=1e-4)


def test_every_matrix_is_a_site() -> None:
    model = sparse()
    names = {site.name for site in sites_of(model)}
    matrices = {name for name, p in model.named_parameters() if p.dim() >= 2 and "norm" not in name}
    assert matrices - names == {
        "embedding",
        "layers.0.feed_forward.router.weight",
        "layers.0.feed_forward.shared_gate.weight",
    }


def test_inputs_are_those_that_matrices_meet() -> None:
    """The output's second moments, W G Wᵀ, are those of what the modules give."""
    model, given_out = sparse(tied=False), {}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, out: given_out.update({name: out.flatten(0, -2)})

    linears = {site.name: site for site in sites_of(model) if site.part == "weight"}
    for name, site in linears.items():
        site.module.register_forward_hook(keep(name))
    inputs = observe_all(model, [TOKENS])
    with torch.no_grad():
        model(TOKENS)
    for name, site in linears.items():
        weight_OI, out_NO = site.dense()[0], given_out[name]
        expected = out_NO.T @ out_NO / len(out_NO)
        torch.testing.assert_close(weight_OI @ inputs[name].gram(0) @ weight_OI.T, expected, rtol=1e-3, atol=1e-4)


def test_experts_meet_the_rows_that_the_router_sends() -> None:
    model = sparse()
    inputs = observe_all(model, [TOKENS])
    experts = model.layers[0].feed_forward
    met = {}
    experts.register_forward_pre_hook(lambda module, args: met.update(x=args[0].flatten(0, 1)))
    with torch.no_grad():
        model(TOKENS)
        chosen = experts.router(met["x"]).topk(2).indices
    for name in ("gate_up", "down"):
        found = inputs[f"layers.0.feed_forward.{name}"]
        assert found.rows_E.tolist() == [float((chosen == e).sum()) for e in range(4)]
    first = inputs["layers.0.feed_forward.gate_up"]
    for e in range(4):
        x_RI = met["x"][(chosen == e).any(-1)]
        torch.testing.assert_close(first.gram_EII[e], x_RI.T @ x_RI)


def written(folder: Path, model: DecoderModel, weights: Weights) -> None:
    state = model.state_dict()
    codes = Codes(described("a test", weights), weights.__getitem__)
    write_checkpoint(
        folder, model.decoder, lambda name, form: state[name].to(form.dtype), torch.float32, "a test", codes=codes
    )


def observe_all(model: DecoderModel, batches_BT: Sequence[Tensor]) -> dict[str, Inputs]:
    """What every site reads in the model as it is, by name."""
    walk = Walk(model, batches_BT)
    inputs: dict[str, Inputs] = {}
    for i in range(len(model.layers)):
        inputs |= walk.observe(i, stages_of_layer(model, i))
        walk.advance(i)
    inputs |= walk.observe_table()
    return inputs


def distance(a: Tensor, b: Tensor) -> float:
    """Of a from b, in the size of b."""
    return float((a - b).norm() / b.norm())


@settings(max_examples=12, deadline=None)
@given(
    decoder=decoders(),
    method=st.sampled_from(METHODS),
    format=st.sampled_from(
        (Integer(bits=8, group=4), Integer(bits=3, group=3, symmetric=False), NormalFloat(group=0, scales="fp32"))
    ),
)
def test_any_family_quantized_comes_back(
    tmp_path_factory: pytest.TempPathFactory, decoder: Decoder, method: Method, format: Format
) -> None:
    model = model_of(decoder)
    tokens = tokens_of(decoder)
    formats = {site.name: format for site in sites_of(model)}
    original = copy.deepcopy(model)
    weights = quantize_model(model, formats, method, [tokens])
    folder = tmp_path_factory.mktemp("quantized") / "model"
    written(folder, model, weights)
    again = isoflop.load(folder)
    with torch.no_grad():
        expected = model(tokens)
        routed = any(isinstance(layer.feed_forward, MixtureOfExperts) for layer in decoder.layers)
        if not routed:  # rows are rounded to 8 bits on the way, and a token at the border goes to another expert
            assert distance(again(tokens), expected) < 0.1
        for name, weight in weights.items():
            assert torch.equal(Checkpoint(folder).read_matrix(name).dense(), weight.dense())
        if format.bits == 8 and not routed:
            assert distance(expected, original(tokens)) < 0.1
    assert isinstance(again.head, QuantizedLinear)


def test_bits_are_those_in_the_file(tmp_path: Path) -> None:
    model = sparse()
    formats: dict[str, Format] = {
        site.name: Integer(bits=2 + i % 3, group=16, symmetric=i % 2 == 0) for i, site in enumerate(sites_of(model))
    }
    counted = sum(stored_bits(site, formats[site.name]) for site in sites_of(model))
    written(tmp_path / "model", model, quantize_model(model, formats, "rtn"))
    parts = (".codes", ".scales", ".zeros")
    entries = Checkpoint(tmp_path / "model").tensors.entries
    assert counted == 8 * sum(entry.nbytes for name, entry in entries.items() if name.endswith(parts))


def test_sensitivities_are_of_each_unit_alone() -> None:
    model = sparse(tied=False)
    windows = Windows(
        torch.randint(0, 40, (3, 13), generator=torch.Generator().manual_seed(0)).numpy(), torch.arange(3).numpy()
    )
    before = read(model, windows).nats_WT.mean()
    formats = [Integer(bits=2, group=8), Integer(bits=8, group=8)]
    found = sensitivities(model, formats, windows, lambda done, total: None)
    assert [names[0].rsplit(".", 2)[0] for names in found.units][:2] == ["layers.0.mixer", "layers.0"]
    assert read(model, windows).nats_WT.mean() == before
    assert abs(found.nats_UF[:, 1]).max() < 0.05 * abs(found.nats_UF[:, 0]).max()
    assert found.weights_U.sum() == sum(site.tensor.numel() for site in sites_of(model))


def test_a_weight_that_is_no_number_is_named() -> None:
    model = sparse()
    with torch.no_grad():
        model.layers[1].feed_forward.down.weight[0, 0] = float("nan")
    formats = {site.name: Integer(bits=4) for site in sites_of(model)}
    with pytest.raises(ValueError, match=r"layers\.1\.feed_forward\.down\.weight' holds NaN"):
        quantize_model(model, formats, "rtn")
