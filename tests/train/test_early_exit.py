"""Training the head to read early: what it minimises, that the rest is as it was, and what is written of it."""

import hashlib
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_trainer import MIXED, batch, trainer

from isoflop.architecture import Decoder, Dense
from isoflop.engine.draft_exit import first_layers
from isoflop.evaluate.checkpoint import write_like
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.optimizer import AdamW
from isoflop.train.recipe import EarlyExit, Recipe
from isoflop.train.spec import TrainSpec
from isoflop.weights.checkpoint import Checkpoint, save_model
from strategies import decoders

EXIT = EarlyExit(after=1, weight=0.5)


@settings(max_examples=20)
@given(decoder=decoders().filter(lambda d: d.n_layers > 1), data=st.data())
def test_an_exit_is_what_its_layers_alone_would_lose(decoder: Decoder, data: st.DataObject) -> None:
    """And what the whole model loses has the same bits."""
    after = data.draw(st.integers(1, decoder.n_layers - 1))
    model = DecoderModel(decoder)
    initialize(model, 1, Recipe(lr=1e-3, batch=1))
    generator = torch.Generator().manual_seed(2)
    tokens_BT = torch.randint(decoder.vocab_size, (2, min(8, decoder.max_context)), generator=generator)
    plain, both = model.loss(tokens_BT, tokens_BT), model.loss(tokens_BT, tokens_BT, after)
    assert torch.equal(plain.nats, both.nats) and torch.equal(plain.total, both.total) and plain.exit_nats is None
    assert both.exit_nats is not None
    alone = first_layers(model, after).loss(tokens_BT, tokens_BT).nats
    torch.testing.assert_close(both.exit_nats, alone, rtol=1e-6, atol=1e-6)


def test_a_step_minimises_both() -> None:
    """The gradient is that of the model's loss and the exit's share, as autograd has them apart."""
    run = trainer(early_exit=EXIT, grad_clip=1e9)
    inputs, targets = (torch.from_numpy(part) for part in batch(0))

    def gradients(loss: torch.Tensor) -> list[torch.Tensor]:
        found = torch.autograd.grad(loss, run.parameters, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for p, g in zip(run.parameters, found, strict=True)]

    early = first_layers(run.model, 1).loss(inputs, targets).nats
    own, exits = gradients(run.model.loss(inputs, targets).total), gradients(early)
    for both, a, b in zip(gradients(run.loss(inputs, targets).total), own, exits, strict=True):
        torch.testing.assert_close(both, a + EXIT.weight * b, rtol=1e-5, atol=1e-7)
    assert any(b.any() for b in exits) and not all(b.any() for b in exits)


def test_it_learns_to_read_early() -> None:
    with_exit, without = trainer(early_exit=EXIT), trainer()
    for step in range(40):
        for run in (with_exit, without):
            run.train_step(*batch(step), lr_factor=1.0)
    inputs, targets = (torch.from_numpy(part) for part in batch(99))
    unread = float(without.model.loss(inputs, targets, 1).exit_nats.detach())
    told = with_exit.evaluate_exit([batch(99)])
    assert told is not None and told < 0.7 * unread
    whole = float(with_exit.model.loss(inputs, targets).nats.detach())
    assert with_exit.evaluate([batch(99)]) == pytest.approx(whole, rel=1e-5)
    assert without.evaluate_exit([batch(99)]) is None


def test_a_spec_without_one_is_written_as_before() -> None:
    """So that the hash of no run has changed: the digest is of a version that knew no exits."""
    spec = TrainSpec(
        decoder=MIXED, recipe=Recipe(lr=0.01, batch=8), optimizer=AdamW(), grad_clip=1.0, dtype="fp32", seed=3,
        compile=False,
    )  # fmt: skip
    written = msgspec.json.encode(spec, order="sorted")
    assert hashlib.sha256(written).hexdigest()[:16] == "e0ce51f72eedddce"
    other = msgspec.structs.replace(spec, early_exit=EXIT)
    written_early = msgspec.json.decode(msgspec.json.encode(other))["early_exit"]
    assert (written_early["after"], written_early["weight"]) == (1, 0.5)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"after": 0}, "after = 0 must be above 0"),
        ({"after": 1, "weight": 0.0}, "weight = 0.0 must be above 0"),
        ({"after": 2}, "early_exit after 2 of 2 layers: must be from 1 to 1"),
    ],
)
def test_impossible_exits(keys: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(early_exit=EarlyExit(**keys))


def test_a_model_of_one_layer_has_no_exit() -> None:
    with pytest.raises(ValueError, match="early_exit after 1 of 1 layers: a model of one layer has none"):
        EXIT.require_within(1)


def test_a_checkpoint_remembers_it(tmp_path: Path) -> None:
    """Also when the model is written once more, as quantized ones are; and says nothing where there was none."""
    model = DecoderModel(Dense().build(32, 40, 16))
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    save_model(tmp_path / "plain", model, "a test")
    save_model(tmp_path / "early", model, "a test", exit_after=1)
    for name, wanted in (("plain", msgspec.UNSET), ("early", 1)):
        source = tmp_path / name
        (source / "tokenizer.json").write_text("{}")
        write_like(tmp_path / f"{name} again", model, source, "a copy")
        assert all(Checkpoint(folder).record.exit_after == wanted for folder in (source, tmp_path / f"{name} again"))
    assert "exit_after" not in (tmp_path / "plain" / "checkpoint.json").read_text()
