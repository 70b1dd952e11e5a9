"""Whole training steps of small decoders, as a study trains them: eager, one run a core, all cores at work.

Seconds by the clock and on the processor: on one thread they differ by what other work took, which says how much slower
a run is than the device alone, and how steadily.
"""

import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Literal, NamedTuple

import numpy as np
import torch

from isoflop.architecture import Attention, Decoder, Layer, Mlp
from isoflop.cost.layout import Layout
from isoflop.cost.step_time import Ideal, ideal_step
from isoflop.cost.work import work_of
from isoflop.hardware import Accelerator
from isoflop.train.optimizer import AdamW
from isoflop.train.recipe import Recipe
from isoflop.train.spec import TrainSpec
from isoflop.train.trainer import Trainer

VOCABULARY = 256
WARM_UP = 3
STEP_S = 4.0  # for each shape

Precision = Literal["fp32", "bf16"]


class Measured(NamedTuple):
    """Mean seconds of a step: by the clock, and on the processor."""

    clock: float
    processor: float


class Shape(NamedTuple):
    """A small decoder, and the batch it trains on."""

    d_model: int
    n_layers: int
    d_head: int
    context: int
    batch: int

    @property
    def decoder(self) -> Decoder:
        heads = self.d_model // self.d_head
        attention = Attention(n_heads=heads, n_kv_heads=heads, d_head=self.d_head)
        layer = Layer(mixer=attention, feed_forward=Mlp(d_ff=8 * self.d_model // 3 // 8 * 8))
        return Decoder(
            vocab_size=VOCABULARY,
            d_model=self.d_model,
            layers=(layer,) * self.n_layers,
            max_context=self.context,
            tie_embeddings=True,
        )

    @property
    def name(self) -> str:
        return f"step d_model {self.d_model}, {self.n_layers} layers, {self.batch} x {self.context}"


ON_CPU = (
    Shape(16, 2, 16, 128, 4),
    Shape(48, 2, 16, 128, 4),
    Shape(96, 2, 16, 128, 4),
    Shape(64, 4, 32, 256, 8),
    Shape(128, 5, 64, 128, 8),
    Shape(256, 4, 64, 256, 8),
)
ON_GPU = (
    Shape(128, 4, 64, 256, 8),
    Shape(512, 8, 64, 512, 16),
    Shape(1024, 12, 64, 1024, 16),
    Shape(2048, 8, 128, 2048, 8),
)


def steps_side_by_side(
    shapes: tuple[Shape, ...], device: str, precision: Precision, threads: int, n: int
) -> dict[Shape, Measured]:
    """Of each shape, while n processes train the same; the mean over them."""
    if n == 1:
        torch.set_num_threads(threads)
        return {shape: step_seconds(shape, device, precision) for shape in shapes}
    told: dict[Shape, Measured] = {}
    with ProcessPoolExecutor(n, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        for shape in shapes:
            asked = [pool.submit(step_seconds, shape, device, precision) for _ in range(n)]
            told[shape] = Measured(*map(statistics.fmean, zip(*(each.result() for each in asked), strict=True)))
    return told


def step_seconds(shape: Shape, device: str, precision: Precision, budget_s: float = STEP_S) -> Measured:
    """Mean over as many steps as a budget allows, once warm."""
    spec = TrainSpec(
        decoder=shape.decoder,
        recipe=Recipe(lr=1e-4, batch=shape.batch),
        optimizer=AdamW(),
        grad_clip=1.0,
        dtype=precision,
        seed=0,
        compile=False,
    )
    trainer = Trainer(spec, device)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (shape.batch, shape.context + 1))
    inputs, targets = tokens[:, :-1].copy(), tokens[:, 1:].copy()
    for _ in range(WARM_UP):
        trainer.train_step(inputs, targets, 1.0)
    if device != "cpu":
        torch.cuda.synchronize()
    began, on_processor, steps = time.perf_counter(), time.process_time(), 0
    while steps < 2 or time.perf_counter() - began < budget_s:
        trainer.train_step(inputs, targets, 1.0)
        steps += 1
        if device != "cpu":
            torch.cuda.synchronize()
    return Measured((time.perf_counter() - began) / steps, (time.process_time() - on_processor) / steps)


def ideal_of(shape: Shape, hardware: Accelerator, precision: str) -> Ideal:
    """What the rates of the device alone would say."""
    layout = Layout(shard="none", micro_batch=shape.batch)
    return ideal_step(work_of(shape.decoder, shape.context), hardware, layout, precision)
