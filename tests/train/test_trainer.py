"""Training: it learns, goes on bit for bit, clips, and tells when it has blown up."""

import math

import numpy as np
import pytest
import torch

from isoflop.architecture import Attention, Decoder, Layer, MixtureOfExperts, Mlp
from isoflop.model import DecoderModel
from isoflop.train import checkpoint
from isoflop.train.init import initialize
from isoflop.train.optimizer import AdamW, Muon, Optimizer, build, kind_of
from isoflop.train.recipe import EarlyExit, Recipe, Scale, Scales
from isoflop.train.spec import TrainSpec
from isoflop.train.trainer import Trainer

ADAMW = AdamW()
OPTIMIZERS = pytest.mark.parametrize("optimizer", [AdamW(), Muon()], ids=["adamw", "muon"])
VOCAB, BATCH, CONTEXT = 16, 8, 12
MIXED = Decoder(
    vocab_size=VOCAB,
    d_model=16,
    layers=(
        Layer(mixer=Attention(n_heads=2, n_kv_heads=1, d_head=8, qk_norm=True), feed_forward=Mlp(d_ff=32)),
        Layer(
            mixer=Attention(n_heads=2, n_kv_heads=2, d_head=8),
            feed_forward=MixtureOfExperts(n_experts=4, top_k=2, d_ff=16),
        ),
    ),
    max_context=CONTEXT,
)


def trainer(optimizer: Optimizer = ADAMW, **changes) -> Trainer:
    keys = {"recipe": Recipe(lr=1e-2, batch=BATCH), "grad_clip": 1.0, "dtype": "fp32", "seed": 3} | changes
    return Trainer(TrainSpec(decoder=MIXED, optimizer=optimizer, compile=False, **keys), "cpu")


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    """Counting up from a random start: easy, but not nothing."""
    start = np.random.default_rng(step).integers(0, VOCAB, (BATCH, 1))
    tokens = (start + np.arange(CONTEXT + 1)) % VOCAB
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


@OPTIMIZERS
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_it_learns(optimizer: Optimizer, dtype: str) -> None:
    run = trainer(optimizer, dtype=dtype)
    before = run.evaluate([batch(99)])
    assert before == pytest.approx(math.log(VOCAB), abs=1.5)
    for step in range(40):
        run.train_step(*batch(step), lr_factor=1.0)
    assert run.evaluate([batch(99)]) < 0.5 * before
    assert run.step == 40 and math.isfinite(run.read_loss())
    assert [sum(load) for load in run.router_load()] == pytest.approx([1.0])


@OPTIMIZERS
@pytest.mark.parametrize("early_exit", [None, EarlyExit(after=1)], ids=["", "exit"])
def test_it_goes_on_bit_for_bit(optimizer: Optimizer, early_exit: EarlyExit | None, tmp_path) -> None:
    through = trainer(optimizer, early_exit=early_exit)
    for step in range(4):
        through.train_step(*batch(step), lr_factor=1.0)
    checkpoint.save(tmp_path, "run", *through.state())
    for step in range(4, 8):
        through.train_step(*batch(step), lr_factor=0.5)

    resumed = trainer(optimizer, early_exit=early_exit, seed=4)  # other first weights: all must come from the state
    resumed.restore(*checkpoint.load(tmp_path, "run"))
    assert resumed.step == 4
    for step in range(4, 8):
        resumed.train_step(*batch(step), lr_factor=0.5)
    mine, theirs = through.state(), resumed.state()
    assert mine[0].keys() == theirs[0].keys()
    for name, tensor in mine[0].items():
        assert torch.equal(tensor, theirs[0][name]), name
    assert through.read_loss() == resumed.read_loss()
    assert mine[1]["since_read"] == theirs[1]["since_read"] == 8


def test_a_state_is_a_copy() -> None:
    run = trainer()
    run.train_step(*batch(0), lr_factor=1.0)
    tensors, _ = run.state()
    kept = {name: tensor.clone() for name, tensor in tensors.items()}
    run.train_step(*batch(1), lr_factor=1.0)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in tensors.items())
    run.restore(tensors, {"step": 1, "train_s": 0.0, "since_read": 1})
    run.train_step(*batch(1), lr_factor=1.0)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in tensors.items())


def test_reading_starts_a_new_mean() -> None:
    run = trainer()
    run.train_step(*batch(0), lr_factor=0.0)
    first = run.read_loss()
    assert first == pytest.approx(run.evaluate([batch(0)]), rel=1e-6)  # no step was made of the learning rate
    run.train_step(*batch(1), lr_factor=0.0)
    run.train_step(*batch(2), lr_factor=0.0)
    assert run.read_loss() == pytest.approx((run.evaluate([batch(1)]) + run.evaluate([batch(2)])) / 2, rel=1e-6)


def test_a_blown_up_run_says_so() -> None:
    run = trainer()
    with torch.no_grad():
        run.model.embedding[3] = torch.nan
    run.train_step(*batch(0), lr_factor=1.0)
    assert not math.isfinite(run.read_loss())


def test_gradients_are_clipped(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    run = trainer(grad_clip=0.01)
    step = run.optimizers[0].step

    def measured() -> None:
        norms.append(torch.stack([p.grad.square().sum() for p in run.parameters]).sum().sqrt().item())
        step()

    monkeypatch.setattr(run.optimizers[0], "step", measured)
    run.train_step(*batch(0), lr_factor=1.0)
    assert norms == pytest.approx([0.01], rel=1e-3)
    run.spec = trainer(grad_clip=1e9).spec
    run.train_step(*batch(1), lr_factor=1.0)
    assert norms[1] > 0.1


def test_evaluation_weighs_by_tokens() -> None:
    run = trainer()
    inputs, targets = batch(0)
    targets = np.random.default_rng(0).integers(0, VOCAB, targets.shape)
    whole = run.evaluate([(inputs, targets)])
    assert run.evaluate([(inputs[:1], targets[:1]), (inputs[1:], targets[1:])]) == pytest.approx(whole, rel=1e-6)


SCALES = Scales(
    embedding=Scale(lr=2.0, eps=3.0),
    hidden=Scale(lr=0.25, eps=5.0, weight_decay=4.0),
    head=Scale(lr=7.0),
    norm=Scale(lr=11.0, weight_decay=9.0),
)


@OPTIMIZERS
def test_every_parameter_has_its_learning_rate(optimizer: Optimizer) -> None:
    model = DecoderModel(MIXED)
    built = build(model, optimizer, Recipe(lr=1e-2, batch=1, eps=1e-8, scales=SCALES))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    seen = []
    for which, one in enumerate(built):
        for group in one.param_groups:
            for parameter in group["params"]:
                name = names[id(parameter)]
                seen.append(name)
                scale = getattr(SCALES, kind_of(name, parameter.dim()))
                muon = (
                    isinstance(optimizer, Muon) and kind_of(name, parameter.dim()) == "hidden" and parameter.dim() == 2
                )
                muon = muon and "router" not in name
                assert muon == (which == 1)
                assert group["peak_lr"] == pytest.approx(1e-2 * scale.lr ** (0.5 if muon else 1))
                decay = 0.1 * scale.weight_decay ** (0.5 if muon else 1)
                assert group["weight_decay"] == pytest.approx(0 if kind_of(name, parameter.dim()) == "norm" else decay)
                if not muon:
                    assert group["eps"] == pytest.approx(1e-8 * scale.eps)
    assert sorted(seen) == sorted(names.values())


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shrink", [True, False])
def test_first_deviations(tied: bool, shrink: bool) -> None:
    mixture = MixtureOfExperts(n_experts=4, top_k=2, d_ff=96)
    layers = tuple(
        Layer(mixer=Attention(n_heads=3, n_kv_heads=3, d_head=16), feed_forward=f) for f in (Mlp(d_ff=200), mixture)
    )
    model = DecoderModel(Decoder(vocab_size=300, d_model=64, layers=layers, max_context=8, tie_embeddings=tied))
    initialize(model, 5, Recipe(lr=1e-3, batch=1, depth_scaled_init=shrink))
    less = 0.5 if shrink else 1.0  # two layers: 1 / sqrt(4)
    wanted = {
        "embedding": 1 / 8 if tied else 1.0,
        "layers.0.mixer.qkv.weight": 1 / 8,
        "layers.0.mixer.out.weight": 48**-0.5 * less,
        "layers.0.feed_forward.gate_up.weight": 1 / 8,
        "layers.0.feed_forward.down.weight": 200**-0.5 * less,
        "layers.1.feed_forward.router.weight": 1 / 8,
        "layers.1.feed_forward.gate_up": 1 / 8,
        "layers.1.feed_forward.down": 96**-0.5 * less,
    }
    if not tied:
        wanted["head.weight"] = 1 / 8
    parameters = dict(model.named_parameters())
    for name, deviation in wanted.items():
        # Four standard errors of a deviation: 4 / sqrt(2 n).
        tolerance = 4 * (2 * parameters[name].numel()) ** -0.5
        assert float(parameters[name].detach().std()) == pytest.approx(deviation, rel=tolerance), name
    assert all(bool((p == 1).all()) for name, p in parameters.items() if "norm" in name)
    again = DecoderModel(model.decoder)
    initialize(again, 5, Recipe(lr=1e-3, batch=1, depth_scaled_init=shrink, embedding_std=0.25))
    assert float(again.embedding.detach().std()) == pytest.approx(0.25, rel=0.03)
    assert torch.equal(again.layers[1].feed_forward.down, parameters["layers.1.feed_forward.down"])


@pytest.mark.parametrize("keys", [{"beta1": 1.0}, {"weight_decay": -0.1}])
def test_impossible_optimizers(keys: dict[str, float]) -> None:
    for kind in (AdamW, Muon):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\)|must not be negative"):
            kind(**keys)
