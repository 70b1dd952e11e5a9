"""The layout that trains a decoder cheapest on given devices, and what would have to change where none fits."""

import math
from collections.abc import Iterator
from itertools import product
from typing import NamedTuple

import msgspec

from isoflop.architecture import Decoder
from isoflop.cost.belief import Belief, belief_about
from isoflop.cost.layout import Layout, Recompute, Shard
from isoflop.cost.memory import training_memory
from isoflop.cost.step_time import step_seconds
from isoflop.cost.training import Kernels, Precision, TrainingEstimate, ideal_for, kernel_set, training_estimate
from isoflop.cost.work import Work, work_of
from isoflop.hardware import GIB, Accelerator

MOST_MICRO_BATCH = 64
WORTH = 1.03  # how much faster a layout must be to split in one more way
MOST_DEVICES = 2**20
MOST_ACCUMULATED = 64  # micro-batches that fill a pipeline where no batch is asked for


class Question(NamedTuple):
    """What a layout is sought for. `batch`: sequences of an optimizer step, None where any will do; `micro_batch` and
    `recompute` None where the search may choose."""

    work: Work
    hardware: Accelerator
    devices: int
    belief: Belief
    precision: Precision = "bf16"
    kernels: Kernels = "measured"
    batch: int | None = None
    micro_batch: int | None = None
    recompute: Recompute | None = None


class Found(NamedTuple):
    """A layout, seconds a token on each of its devices, and the bytes it takes."""

    layout: Layout
    device_seconds_a_token: float
    bytes: float


def cheapest_layout(question: Question) -> Found | None:
    """The layout of fewest device-seconds a token among those that fit; None where none does. Of two that come within
    a few per cent the one that splits in fewer ways is taken: its time is surer."""
    usable = question.hardware.usable_bytes
    fitting = ((layout, memory) for layout in layouts(question) if (memory := _bytes(question, layout)) <= usable)
    found = (Found(layout, _device_seconds(question, layout), memory) for layout, memory in fitting)
    return min(found, key=lambda f: f.device_seconds_a_token * WORTH**f.layout.ways, default=None)


def layouts(question: Question) -> Iterator[Layout]:
    """Every layout worth a look: degrees in powers of two (tensor within a node), as the decoder divides."""
    work, devices = question.work, question.devices
    for tensor in _powers(min(question.hardware.node, devices)):
        if (work.n_heads or tensor) % tensor or work.d_model % tensor or devices % tensor:
            continue
        for pipeline in _powers(min(work.n_layers, devices // tensor)):
            if devices % (tensor * pipeline) == 0:
                yield from _with_context(question, tensor, pipeline)


def _with_context(question: Question, tensor: int, pipeline: int) -> Iterator[Layout]:
    rest = question.devices // (tensor * pipeline)
    recomputes: tuple[Recompute, ...] = ("none", "full") if question.recompute is None else (question.recompute,)
    for context in _powers(rest if question.work.context >= 2 * 8192 else 1):
        data = rest // context
        if rest % context or question.work.context % (2 * context) or (question.batch or data) % data:
            continue
        for micro_batch in _micro_batches(question, data):
            accumulate = _accumulated(question, data, micro_batch, pipeline)
            for shard, recompute in product(_shards(data * context, pipeline), recomputes):
                for interleave in _interleaves(question.work.n_layers, pipeline, accumulate):
                    yield Layout(
                        data=data,
                        tensor=tensor,
                        pipeline=pipeline,
                        context=context,
                        expert=_expert(question.work, data),
                        shard=shard,
                        interleave=interleave,
                        micro_batch=micro_batch,
                        accumulate=accumulate,
                        recompute=recompute,
                    )


def _shards(replicas: int, pipeline: int) -> tuple[Shard, ...]:
    if replicas == 1:
        return ("none",)
    return ("optimizer",) if pipeline > 1 else ("none", "optimizer", "parameters")


def _interleaves(n_layers: int, pipeline: int, accumulate: int) -> list[int]:
    """Chunks a stage: micro-batches go around in groups of as many as there are stages (Narayanan et al. 2021)."""
    if pipeline == 1 or accumulate % pipeline:
        return [1]
    return [n for n in (1, 2, 4) if n_layers % (pipeline * n) == 0] or [1]


def _expert(work: Work, data: int) -> int:
    """Experts are spread over as many replicas as divide them."""
    experts = work.n_experts or 1
    return max(e for e in _powers(data) if experts % e == 0 and data % e == 0)


def _micro_batches(question: Question, data: int) -> list[int]:
    if question.micro_batch is not None:
        fits = question.batch is None or question.batch % (data * question.micro_batch) == 0
        return [question.micro_batch] if fits else []
    if question.batch is None:
        return _powers(MOST_MICRO_BATCH)
    return [b for b in _powers(MOST_MICRO_BATCH) if question.batch % (data * b) == 0]


def _accumulated(question: Question, data: int, micro_batch: int, pipeline: int) -> int:
    if question.batch is not None:
        return question.batch // (data * micro_batch)
    return 1 if pipeline == 1 else min(MOST_ACCUMULATED, 8 * pipeline)


def _powers(most: int) -> list[int]:
    return [1 << i for i in range(max(1, most).bit_length())]


def _device_seconds(question: Question, layout: Layout) -> float:
    ideal = ideal_for(question.work, question.hardware, layout, question.precision, question.kernels)
    seconds = float(step_seconds(ideal, question.belief.efficiency))
    return seconds * layout.devices / layout.step_tokens(question.work.context)


def _bytes(question: Question, layout: Layout) -> float:
    fused = kernel_set(question.kernels).fused_loss
    return training_memory(question.work, layout, question.precision, fused).total


def smallest_change(question: Question) -> str:
    """What would make room where no layout fits: more of these devices, a freer choice, or larger devices."""
    free = question._replace(micro_batch=None, recompute=None, batch=None)
    least = min(_bytes(free, layout) for layout in layouts(free))
    changes = []
    if least <= question.hardware.usable_bytes:
        layout = min(layouts(free), key=lambda layout: _bytes(free, layout))
        changes.append(f"micro_batch = {layout.micro_batch} with recompute '{layout.recompute}' would fit")
    devices = question.devices
    while devices < MOST_DEVICES and not changes:
        devices *= 2
        more = free._replace(devices=devices)
        if min(_bytes(more, layout) for layout in layouts(more)) <= question.hardware.usable_bytes:
            changes.append(f"{devices} of them would fit")
    changes.append(f"devices with {math.ceil(least / GIB)} GiB free each would")
    return ", or ".join(changes)


def no_layout(question: Question) -> str:
    """One line: that nothing fits, and the smallest change that would."""
    n, name = question.devices, question.hardware.name
    free = question.hardware.usable_bytes / GIB
    what = f"{question.work.parameters / 1e9:.3g}B parameters at context {question.work.context}"
    return f"{what} fit no layout on {n} x {name} ({free:.3g} GiB free each): {smallest_change(question)}"


def cheapest_training(
    decoder: Decoder,
    hardware: Accelerator,
    devices: int,
    context: int,
    batch: int | None = None,
    precision: Precision | None = None,
    kernels: Kernels = "measured",
    belief: Belief | None = None,
) -> TrainingEstimate | None:
    """The estimate of the cheapest layout on so many devices, None where none fits: a search of tens of milliseconds.
    `batch`: sequences of an optimizer step, None where any will do."""
    known, chosen = belief or belief_about(hardware), precision or _half(hardware)
    found = cheapest_layout(Question(work_of(decoder, context), hardware, devices, known, chosen, kernels, batch))
    if found is None:
        return None
    return training_estimate(decoder, hardware, found.layout, context, chosen, kernels, known)


def _half(hardware: Accelerator) -> Precision:
    half: Precision = msgspec.convert(hardware.training_precision, Precision)
    return half
