"""How fast a decoder trains on a number of devices, and the memory it takes: the interface of the planner.

`training_estimate` makes everything from a decoder, in about two milliseconds; `estimate_step` is its inner part, tens
of microseconds once `work_of` the decoder is known, for searches over layouts and hardware.
"""

import math
from typing import Literal, NamedTuple, get_args

import msgspec

from isoflop.architecture import Attention, Decoder, LatentAttention, MixtureOfExperts
from isoflop.cost.belief import Belief, belief_about
from isoflop.cost.layout import Layout
from isoflop.cost.memory import Memory, training_memory
from isoflop.cost.mfu import mfu
from isoflop.cost.quantity import Quantity, Source
from isoflop.cost.step_time import Ideal, ideal_step
from isoflop.cost.work import Work, work_of
from isoflop.hardware import Accelerator

Precision = Literal["bf16", "fp16", "fp8", "fp32"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

Kernels = Literal["measured", "torch", "flash-3"]
KERNELS: tuple[Kernels, ...] = get_args(Kernels)


# Bytes of memory that follow from the layout alone; the rest depends on what kernels and libraries do.
_EXACT_KINDS = frozenset({"weights", "gradients", "optimizer"})


class KernelSet(NamedTuple):
    """What runs: attention's rate over that of the measured runs, forward and backward, causal; whether the loss is
    fused; the log deviation of what it has not been measured to do."""

    attention: float
    fused_loss: bool
    unmeasured: float


# measured: what the fitted runs used, FlashAttention 1 and a fused loss. torch: its own attention, FlashAttention 2
# (Dao 2023, arXiv 2307.08691, figure 4), and its own loss. flash-3: FlashAttention 3 (Shah et al. 2024, arXiv
# 2407.08608, figures 5 and 6) and a fused loss. Both later ones are assumed.
_SETS = {
    "measured": KernelSet(1.0, True, 0.0),
    "torch": KernelSet(1.7, False, 0.2),
    "flash-3": KernelSet(3.0, True, 0.2),
}

# Log deviations of a step beyond those fitted, for what none of the measured runs did (assumed).
_BY_TENSOR, _BY_PIPELINE, _BY_CONTEXT, _BY_EXPERTS = 0.10, 0.10, 0.10, 0.20
_RECURRENT, _EXPERTS = 0.30, 0.20


class Step(NamedTuple):
    """Seconds of an optimizer step on each device, its tokens over all, memory of the fullest device."""

    seconds: Quantity
    tokens: int
    memory: Memory

    def tokens_per_s_per_device(self, devices: int) -> Quantity:
        return self.seconds.inverse(self.tokens / devices)


class TrainingEstimate(msgspec.Struct, frozen=True):
    """The JSON document. Rates of one device while it trains: no failures, evaluations or checkpoints (goodput.py).
    `memory_per_device` in bytes by kind, at the instant `worst_instant`; `fits` in `usable_bytes`."""

    hardware: str
    devices: int
    context: int
    precision: str
    kernels: str
    layout: Layout
    tokens_per_step: int
    step_seconds: Quantity
    tokens_per_s_per_device: Quantity
    mfu: dict[str, float]
    memory_per_device: dict[str, float]
    memory_sources: dict[str, Source]
    memory_bytes: Quantity
    worst_instant: str
    usable_bytes: Quantity
    fits: bool
    notes: list[str]


def training_estimate(
    decoder: Decoder,
    hardware: Accelerator,
    layout: Layout,
    context: int,
    precision: Precision = "bf16",
    kernels: Kernels = "measured",
    belief: Belief | None = None,
) -> TrainingEstimate:
    """Everything about training in this layout. `belief` replaces what is known of the hardware in general. Raises
    ValueError for a layout that the decoder cannot take or a precision that the hardware lacks."""
    work = work_of(decoder, context)
    layout.check(work)
    known = belief or belief_about(hardware)
    step = estimate_step(work, hardware, layout, precision, known, kernels, novelty(decoder))
    rate = step.tokens_per_s_per_device(layout.devices)
    peak = hardware.peak(precision)
    used, usable = step.memory.total, hardware.usable_bytes
    return TrainingEstimate(
        hardware=hardware.name,
        devices=layout.devices,
        context=context,
        precision=precision,
        kernels=kernels,
        layout=layout,
        tokens_per_step=step.tokens,
        step_seconds=step.seconds,
        tokens_per_s_per_device=rate,
        mfu=mfu(decoder, context, rate.value, peak, layout.recompute == "full"),
        memory_per_device=step.memory.by_kind,
        memory_sources={kind: "exact" if kind in _EXACT_KINDS else "assumed" for kind in step.memory.by_kind},
        memory_bytes=memory_quantity(step.memory),
        worst_instant=step.memory.instant,
        usable_bytes=Quantity(usable, usable, usable, None, "measured" if hardware.usable_is_measured else "assumed"),
        fits=used <= usable,
        notes=[known.note],
    )


def estimate_step(
    work: Work,
    hardware: Accelerator,
    layout: Layout,
    precision: Precision,
    belief: Belief,
    kernels: Kernels = "measured",
    new: float = 0.0,
) -> Step:
    """One optimizer step; the layout must have been checked. `new`: see `novelty`."""
    ideal, chosen = ideal_for(work, hardware, layout, precision, kernels), kernel_set(kernels)
    unmeasured = math.hypot(new, _novel_layout(layout), chosen.unmeasured)
    memory = training_memory(work, layout, precision, chosen.fused_loss)
    return Step(belief.seconds(ideal, unmeasured), layout.step_tokens(work.context), memory)


def kernel_set(kernels: Kernels) -> KernelSet:
    """What a named set of kernels does. Raises ValueError for a name that is none."""
    if kernels not in _SETS:
        raise ValueError(f"kernels '{kernels}' are unknown; valid: {', '.join(KERNELS)}")
    return _SETS[kernels]


def ideal_for(work: Work, hardware: Accelerator, layout: Layout, precision: Precision, kernels: Kernels) -> Ideal:
    """Seconds by kind at stated rates, with these kernels."""
    ideal = ideal_step(work, hardware, layout, precision)
    return ideal._replace(attention=ideal.attention / kernel_set(kernels).attention)


def novelty(decoder: Decoder) -> float:
    """Log deviation for parts of a decoder that none of the measured runs had: experts, recurrences, convolutions."""
    mixers = {layer.mixer for layer in decoder.layers if layer.mixer is not None}
    recurrent = any(not isinstance(mixer, Attention | LatentAttention) for mixer in mixers)
    sparse = any(isinstance(layer.feed_forward, MixtureOfExperts) for layer in decoder.layers)
    return math.hypot(_RECURRENT * recurrent, _EXPERTS * sparse)


def memory_quantity(memory: Memory) -> Quantity:
    """The total with bounds: weights, gradients and moments are exact; of the rest a tenth more or less is assumed."""
    loose = memory.activations + memory.logits + memory.buffers
    return Quantity(memory.total, memory.total - 0.1 * loose, memory.total + 0.1 * loose, None, "assumed")


def _novel_layout(layout: Layout) -> float:
    return math.hypot(
        _BY_TENSOR * (layout.tensor > 1),
        _BY_PIPELINE * (layout.pipeline > 1),
        _BY_CONTEXT * (layout.context > 1),
        _BY_EXPERTS * (layout.expert > 1),
    )
