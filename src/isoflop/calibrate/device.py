"""From measurements to what is believed of the device: rates as measured, efficiencies from kernels, then moved by
whole training steps."""

import datetime
import math
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch

from isoflop.calibrate import micro, steps
from isoflop.calibrate.refine import fitted_to, shared
from isoflop.cost.belief import NORMAL_QUANTILE, Belief
from isoflop.cost.step_time import OPTIMIZER_BYTES
from isoflop.cost.this_device import Calibration
from isoflop.hardware import GIB, Accelerator
from isoflop.ladder.machine import this_machine

OPERATIONS = 60  # that a layer launches forward and backward
# Log deviations of efficiencies as kernels tell them, before steps are seen, in the order of `Efficiency`.
DEVIATIONS = (0.4, 0.4, 0.5, 0.6, 0.3, 0.7, 0.7)
NOISE = {"cpu": 0.10, "cuda": 0.06}  # log deviation of a run from a step's best: caches, other work, clocks

Tell = Callable[[str], None]


def calibrate(device: str, threads: int, tell: Tell) -> Calibration:
    """Measure the device, in about a minute; `tell` hears what is measured. Raises ValueError where torch lacks it."""
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device '{device}' is not on this machine; valid here: cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return _calibrate(torch.device(device), threads, tell)
    finally:
        torch.set_num_threads(before)


def _calibrate(device: torch.device, threads: int, tell: Tell) -> Calibration:
    precision: Literal["fp32", "bf16"] = "fp32" if device.type == "cpu" else "bf16"
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    tell("products, memory, attention, optimizer, launches")
    told = micro.product_rates(device, dtype)
    best = max(told.values())
    told["bandwidth, bytes/s"] = micro.bandwidth(device)
    told["attention, FLOP/s"] = micro.attention_rate(device, dtype)
    told["optimizer, bytes/s"] = micro.optimizer_bytes_a_second(device, OPTIMIZER_BYTES)
    told["launch, s"] = micro.launch_seconds(device)
    hardware = _hardware(device, precision, best, told["bandwidth, bytes/s"])
    belief = _of_kernels(told, best, device.type)
    shapes = steps.ON_CPU if device.type == "cpu" else steps.ON_GPU
    side_by_side = max(1, this_machine().cores // threads) if device.type == "cpu" else 1
    tell(f"training steps, {side_by_side} side by side")
    stepped = steps.steps_side_by_side(shapes, device.type, precision, threads, side_by_side)
    alone = device.type == "cpu" and threads == 1
    pairs = [
        (steps.ideal_of(shape, hardware, precision), each.processor if alone else each.clock)
        for shape, each in stepped.items()
    ]
    belief = fitted_to(_of_kernels(told, best, device.type), pairs)
    slower = [each.clock / each.processor if alone else 1.0 for each in stepped.values()]
    for shape, each in stepped.items():
        told |= {f"{shape.name}, clock, s": each.clock, f"{shape.name}, processor, s": each.processor}
    return Calibration(
        hardware=hardware,
        belief=shared(belief, slower),
        alone=belief,
        threads=threads,
        torch=str(torch.__version__),
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        measurements=told,
    )


def _of_kernels(told: dict[str, float], best: float, kind: str) -> Belief:
    """Efficiencies as single kernels tell them."""
    narrow = [rate for name, rate in told.items() if name.startswith("product")]
    share = sum(narrow) / len(narrow) / best
    moved = told["optimizer, bytes/s"] / told["bandwidth, bytes/s"]
    kernels = (
        share,
        share,
        told["attention, FLOP/s"] / best,
        min(2.0, moved),
        0.75,
        OPERATIONS * told["launch, s"],
        0.01,
    )
    return Belief(
        mean=tuple(math.log(value) for value in kernels),
        covariance=tuple(tuple(d * d * (i == j) for j in range(len(DEVIATIONS))) for i, d in enumerate(DEVIATIONS)),
        noise=NOISE[kind],
        stretch=NORMAL_QUANTILE,
        source="measured",
        note="measured on this device by `isoflop calibrate`",
    )


def _hardware(device: torch.device, precision: str, best: float, bandwidth: float) -> Accelerator:
    """The device as an accelerator whose stated rates are the best that were measured."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        name, memory, node = found.name, float(found.total_memory), torch.cuda.device_count()
    else:
        name, memory, node = _processor(), float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")), 1
    return Accelerator(
        name=f"this ({name})",
        vendor="measured",
        tflops={precision: best / 1e12},
        memory_gb=memory / 1e9,
        bandwidth_tb_s=bandwidth / 1e12,
        link_gb_s=bandwidth / 1e9,
        network_gb_s=bandwidth / 1e9,
        source="isoflop calibrate",
        date=datetime.datetime.now(datetime.UTC).date().isoformat()[:7],
        usable_gib=memory / GIB,
        node=node,
    )


def _processor() -> str:
    """The processor's name, where the system tells it."""
    told = Path("/proc/cpuinfo")
    lines = told.read_text().splitlines() if told.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
