"""The selection bias in training: it evens out the load, and it is part of what a checkpoint holds."""

import numpy as np
import pytest
import torch
from torch import Tensor

from isoflop.architecture import Attention, Decoder, Layer, MixtureOfExperts
from isoflop.train import checkpoint
from isoflop.train.optimizer import AdamW
from isoflop.train.recipe import Recipe
from isoflop.train.spec import TrainSpec
from isoflop.train.trainer import Trainer

VOCAB, BATCH, CONTEXT, EXPERTS = 16, 8, 24, 8


def trainer(rate: float) -> Trainer:
    """A router that begins with a strong preference, and no loss against it."""
    sparse = MixtureOfExperts(
        n_experts=EXPERTS,
        top_k=2,
        d_ff=8,
        router="sigmoid",
        router_bias=True,
        selection_bias=True,
        bias_update_rate=rate,
        balance_coef=0.0,
        z_coef=0.0,
    )
    layer = Layer(mixer=Attention(n_heads=2, n_kv_heads=1, d_head=8), feed_forward=sparse)
    decoder = Decoder(vocab_size=VOCAB, d_model=16, layers=(layer, layer), max_context=CONTEXT)
    recipe = Recipe(lr=1e-3, batch=BATCH)
    spec = TrainSpec(
        decoder=decoder, optimizer=AdamW(), recipe=recipe, grad_clip=1.0, dtype="fp32", seed=3, compile=False
    )
    run = Trainer(spec, "cpu")
    for name, parameter in run.model.named_parameters():
        if name.endswith("router.bias"):
            parameter.data.copy_(torch.linspace(-1, 1, EXPERTS))
    return run


def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
    tokens = np.random.default_rng(step).integers(0, VOCAB, (BATCH, CONTEXT + 1))
    return tokens[:, :-1].copy(), tokens[:, 1:].copy()


def biases(run: Trainer) -> list[Tensor]:
    return [value for name, value in run.model.named_buffers() if name.endswith("selection_bias")]


def heaviest(run: Trainer) -> float:
    """The largest load of any expert of any layer, in multiples of the mean."""
    return max(max(load) for load in run.router_load()) * EXPERTS


def test_the_rule_evens_out_the_load() -> None:
    loads = {}
    for rate in (0.0, 0.02):
        run = trainer(rate)
        for step in range(150):
            run.train_step(*batch(step), lr_factor=1.0)
        loads[rate] = heaviest(run)
        assert all(bool(bias.any()) == bool(rate) for bias in biases(run))
    assert loads[0.0] > 2.0 and loads[0.02] < 1.6


@pytest.mark.parametrize("stop", [1, 3])
def test_a_resumed_run_has_the_bias_of_an_unbroken_one(tmp_path, stop: int) -> None:
    whole, broken = trainer(0.02), trainer(0.02)
    for step in range(6):
        whole.train_step(*batch(step), lr_factor=1.0)
    for step in range(stop):
        broken.train_step(*batch(step), lr_factor=1.0)
    checkpoint.save(tmp_path, "run", *broken.state())
    resumed = trainer(0.02)
    resumed.restore(*checkpoint.load(tmp_path, "run"))
    for step in range(stop, 6):
        resumed.train_step(*batch(step), lr_factor=1.0)
    mine, theirs = whole.state()[0], resumed.state()[0]
    assert sum(name.endswith("selection_bias") for name in mine) == 2
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
