"""A trained model's weights in the decoder of a longer context, and fine-tuning there."""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

from isoflop.architecture import Decoder
from isoflop.data.stream import BatchStream
from isoflop.model import DecoderModel
from isoflop.train.optimizer import AdamW
from isoflop.train.recipe import Recipe
from isoflop.train.schedule import WarmupStableDecay
from isoflop.train.spec import TrainSpec
from isoflop.train.trainer import Trainer

LR_TIMES_WIDTH = 0.08  # 2e-5 at a width of 4096, what YaRN was tuned with (arXiv 2309.00071, section 4.1)
READINGS = 20  # points of the training loss
SCHEDULE = WarmupStableDecay(warmup=0.05, decay=0.5)


class Diverged(Exception):
    """The loss of fine-tuning is no number any more."""


class FineTuning(NamedTuple):
    """How to fine-tune: `steps` batches of `batch` sequences at the peak learning rate `lr`."""

    steps: int
    batch: int
    lr: float
    seed: int


class FineTuned(NamedTuple):
    """The model; mean training nats per token since the last reading, by step; seconds of training."""

    model: DecoderModel
    losses: list[tuple[int, float]]
    seconds: float


def default_lr(decoder: Decoder) -> float:
    """Peak learning rate of fine-tuning: YaRN's at its model's width, in inverse proportion to d_model."""
    return LR_TIMES_WIDTH / decoder.d_model


def carried(model: DecoderModel, decoder: Decoder) -> DecoderModel:
    """The same weights in a decoder that differs from the model's in nothing that has weights; fp32, to evaluate."""
    target = DecoderModel(decoder)
    target.load_state_dict(model.state_dict())
    target.eval()
    return target


def fine_tune(
    model: DecoderModel,
    stream: BatchStream,
    how: FineTuning,
    tell: Callable[[int, int], None],
    around: Callable[[DecoderModel], AbstractContextManager[None]] = lambda model: nullcontext(),
) -> FineTuned:
    """Train a copy of the model on windows of the stream, in fp32, on the CPU: AdamW without weight decay, a warm-up,
    a decay to zero over the second half. `tell` hears of every step; the steps are taken inside `around` of the copy.
    Raises Diverged."""
    recipe = Recipe(lr=how.lr, batch=how.batch)
    spec = TrainSpec(
        decoder=model.decoder,
        recipe=recipe,
        optimizer=AdamW(weight_decay=0.0),
        grad_clip=1.0,
        dtype="fp32",
        seed=how.seed,
        compile=False,
    )
    trainer = Trainer(spec, "cpu")
    trainer.model.load_state_dict(model.state_dict())
    read_every, losses = max(1, how.steps // READINGS), []
    with around(trainer.model):
        while trainer.step < how.steps:
            trainer.train_step(*stream.batch(trainer.step * how.batch, how.batch), lr_factor(trainer.step, how.steps))
            if trainer.step % read_every == 0 or trainer.step == how.steps:
                losses.append((trainer.step, trainer.read_loss()))
                if not math.isfinite(losses[-1][1]):
                    lost = f"the loss was {losses[-1][1]} at step {trainer.step} of {how.steps}"
                    raise Diverged(f"{lost}; give a lower --lr")
            tell(trainer.step, how.steps)
    trainer.model.eval()
    return FineTuned(trainer.model, losses, trainer.train_s)


def lr_factor(step: int, steps: int) -> float:
    """The learning rate of a step (from 0) as a share of the peak."""
    if step < SCHEDULE.decay_start(steps):
        return SCHEDULE.trunk_factor(step, SCHEDULE.warmup_steps(steps))
    return SCHEDULE.decay_factor(step, steps)
