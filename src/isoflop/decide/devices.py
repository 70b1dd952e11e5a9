"""What a family's training and serving take of given devices: layouts, rates, groups that serve.

Rates are looked for at one size (the plan's own), as the share of the peak that a step reaches hardly changes over the
sizes that are weighed against each other; hours and money of the answer are those of its own layout.
"""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from msgspec.structs import replace as replace_fields

from isoflop.architecture import Decoder
from isoflop.cost.belief import belief_about
from isoflop.cost.flops import flops
from isoflop.cost.goodput import goodput
from isoflop.cost.money import Bill, training_bill
from isoflop.cost.search import Question as LayoutQuestion
from isoflop.cost.search import cheapest_layout, no_layout
from isoflop.cost.serving import Demand, ServingEstimate, WeightType, serving_estimate
from isoflop.cost.training import Precision, TrainingEstimate, training_estimate
from isoflop.cost.work import work_of
from isoflop.decide.answer import NoPlan
from isoflop.decide.field import Field
from isoflop.decide.question import ON_DEVICES, Deadline, DeviceHours, Dollars, Goal, Question
from isoflop.decide.shapes import Shape, of_size
from isoflop.hardware import Accelerator, accelerators, find_accelerator
from isoflop.hardware.prices import Range, listed_prices, read_price
from isoflop.laws.forms import Array

GROUPS = (1, 2, 4, 8, 16, 32, 64)  # devices that serve one copy
KNOTS_A_DECADE = 4  # sizes at which serving is estimated
RATES_A_DECADE = 2  # sizes at which a layout is looked for
AROUND = (1 / 12, 3.0)  # of the training optimum, between which they lie
HOURS = "device hours"
TYPICAL_SHARE = 0.35  # of the peak, before a layout is found


@dataclass(frozen=True)
class Cluster:
    """The devices of a question."""

    name: str
    usable_gib: float | None  # what a program may take of each, where the question says
    count: int
    price: Range | None
    precision: Precision

    @property
    def hardware(self) -> Accelerator:
        """The accelerator, with the memory that the question gives it."""
        hardware = accelerators()[self.name]
        return hardware if self.usable_gib is None else replace_fields(hardware, usable_gib=self.usable_gib)


def cluster_of(question: Question) -> Cluster | None:
    """The devices asked about; None where there are none. Raises ValueError for hardware that is unknown, a budget in
    dollars without a price, and a price without a date."""
    if question.hardware is None:
        return None
    assert question.devices is not None
    if question.hardware.lower() == "this":
        raise ValueError(
            "--hardware this: plans are for named accelerators; `isoflop cost ARCH --hardware this` tells yours"
        )
    hardware = find_accelerator(question.hardware)
    price = read_price(question.price) if question.price is not None else listed_prices().get(hardware.name)
    if isinstance(question.goal, Dollars) and price is None:
        known = ", ".join(listed_prices())
        raise ValueError(
            f"--dollars: no price is known for {hardware.name}; give one with its date, as in --price 2.5@2026-01 "
            f"(known: {known})"
        )
    precision: Precision = "bf16" if "bf16" in hardware.tflops else "fp16" if "fp16" in hardware.tflops else "fp32"
    hardware.peak(precision)
    return Cluster(hardware.name, question.device_memory_gib, question.devices, price, precision)


def device_hours(goal: Goal, cluster: Cluster) -> float | None:
    """A budget in device hours; None for budgets of another kind."""
    match goal:
        case DeviceHours(amount=hours):
            return hours
        case Dollars(amount=usd):
            assert cluster.price is not None
            if not cluster.price.mid > 0:
                raise ValueError("--price 0@...: devices that cost nothing do not limit a budget in dollars")
            return usd / cluster.price.mid
        case Deadline(amount=days):
            return days * 24 * cluster.count
        case _:
            return None


@lru_cache(maxsize=512)
def training_of(decoder: Decoder, cluster: Cluster, context: int) -> TrainingEstimate:
    """Training in the cheapest layout that fits. Raises NoPlan, with the smallest change that would fit."""
    hardware, precision = cluster.hardware, cluster.precision
    work, belief = work_of(decoder, context), belief_about(hardware)
    asked = LayoutQuestion(work, hardware, cluster.count, belief, precision)
    found = cheapest_layout(asked)
    if found is None:
        raise NoPlan(no_layout(asked))
    return training_estimate(decoder, hardware, found.layout, context, precision, belief=belief)


def bill_of(decoder: Decoder, cluster: Cluster, context: int, tokens: float) -> Bill:
    """Hours and money of a run, time lost to failures among them."""
    told = training_of(decoder, cluster, context)
    return training_bill(told.tokens_per_s_per_device, cluster.count, tokens, cluster.hardware, cluster.price)


def flops_an_hour(field: Field, total: float, cluster: Cluster, context: int) -> float:
    """Exact FLOPs that a device hour buys for a family at about this size: on a line between two sizes, which stay the
    same while budgets change. Raises NoPlan where the smaller of them fits no layout."""
    below = math.floor(math.log10(total) * RATES_A_DECADE)
    sizes = [10 ** ((below + i) / RATES_A_DECADE) for i in range(2)]
    low = _rate(field.curve.shape, sizes[0], cluster, context)
    try:
        high = _rate(field.curve.shape, sizes[1], cluster, context)
    except NoPlan:
        high = low
    return float(np.interp(math.log(total), np.log(sizes), [low, high]))


@lru_cache(maxsize=512)
def _rate(shape: Shape, size: float, cluster: Cluster, context: int) -> float:
    return flops_an_hour_of(of_size(shape, size), cluster, context)


def flops_an_hour_of(decoder: Decoder, cluster: Cluster, context: int) -> float:
    """Exact FLOPs that a device hour buys for a decoder, time lost to failures counted."""
    told = training_of(decoder, cluster, context)
    a_token = flops(decoder, context, "exact").train_per_token
    return told.tokens_per_s_per_device.value * goodput(cluster.count).share.value * 3600 * a_token


def usual_flops_an_hour(cluster: Cluster) -> float:
    """A guess, before any layout is known."""
    return TYPICAL_SHARE * cluster.hardware.peak(cluster.precision) * 3600


def demand_of(question: Question, weights: WeightType | None = None, batch: int | None = None) -> Demand:
    """What a group that serves is asked."""
    served = question.served
    latency = None if served.latency_ms is None else served.latency_ms / 1e3
    return Demand(
        prompt=served.prompt, output=served.output, batch=batch, latency_s=latency, weights=weights or served.weights
    )


@lru_cache(maxsize=1024)
def served_by(decoder: Decoder, cluster: Cluster, demand: Demand) -> ServingEstimate | None:
    """The group of devices that serves cheapest, within the latency; None where none does."""
    best: ServingEstimate | None = None
    heads = {h for layer in decoder.layers if (h := getattr(layer.mixer, "n_heads", None)) is not None}
    for devices in GROUPS:
        if any(h % devices for h in heads):
            continue
        told = serving_estimate(decoder, cluster.hardware, demand, devices, price=cluster.price)
        slow = demand.latency_s is not None and told.decode_s.value > demand.latency_s
        if told.fits and not slow and (best is None or _seconds(told) < _seconds(best)):
            best = told
    return best


def _seconds(told: ServingEstimate) -> float:
    """Device seconds of an answered token."""
    return told.devices / told.tokens_per_s.value


def with_serving(field: Field, question: Question, cluster: Cluster, total: float, rate: float) -> Field:
    """The field with the cost of its lifetime in device hours, and the sizes forbidden that no group serves in time.
    `rate`: exact FLOPs of a device hour."""
    timed = isinstance(question.goal, ON_DEVICES)
    if not question.served.tokens and question.served.latency_ms is None:
        return replace(field, train_m=field.limited_m, unit=HOURS if timed else field.unit)
    train_m = field.curve.train_m / rate
    first, last = (math.log10(edge * total) * KNOTS_A_DECADE for edge in AROUND)
    places = range(math.floor(first), math.ceil(last) + 1)
    anyhow = replace(cluster, count=1)  # how many train has no part in serving
    sizes, seconds = _timed(field, places, anyhow, demand_of(question))
    while not np.isfinite(seconds).any() and sizes[0] > field.curve.total_m[0]:  # all too slow: smaller ones
        places = range(places.start - len(places), places.start)
        sizes, seconds = _timed(field, places, anyhow, demand_of(question))
    hours, knots = np.array(seconds) * (1 - question.served.prompt_share) / 3600, np.log(sizes)
    finite = np.isfinite(hours)
    if not finite.any():
        raise NoPlan(
            f"no size of family {field.family} answers within {question.served.latency_ms:g} ms a token on up to "
            f"{GROUPS[-1]} x {cluster.name}: allow a higher --latency, or name devices of more bandwidth"
            if question.served.latency_ms is not None
            else f"no size of family {field.family} fits on up to {GROUPS[-1]} x {cluster.name} to be served at a "
            f"--context of {question.served.context}"
        )
    log_m = np.log(field.curve.total_m)
    known, times = knots[finite], np.log(hours[finite])
    slope_low, slope_high = (1.0, 1.0) if len(known) < 2 else _ends(known, times)
    lines = np.interp(log_m, known, times)
    lines += np.minimum(log_m - known[0], 0) * slope_low + np.maximum(log_m - known[-1], 0) * slope_high
    ok_m = field.ok_m & ((log_m <= known[-1]) if not finite.all() else True)
    reasons = field.reasons if finite.all() else (*field.reasons, "serving devices")
    serve_m = question.served.tokens * np.exp(lines)
    return replace(field, train_m=train_m, serve_m=serve_m, ok_m=ok_m, reasons=reasons, unit=HOURS)


def _timed(field: Field, places: range, cluster: Cluster, demand: Demand) -> tuple[list[float], list[float]]:
    """Sizes, and device seconds of an answered token of each."""
    sizes = [10 ** (k / KNOTS_A_DECADE) for k in places]
    return sizes, [_served_seconds(field.curve.shape, size, cluster, demand) for size in sizes]


@lru_cache(maxsize=2048)
def _served_seconds(shape: Shape, size: float, cluster: Cluster, demand: Demand) -> float:
    """Device seconds of an answered token; infinite where no group answers in time."""
    told = served_by(of_size(shape, size), cluster, demand)
    return math.inf if told is None else _seconds(told)


def _ends(known: Array, times: Array) -> tuple[float, float]:
    """Slopes of the first and the last piece."""
    steps = np.diff(times) / np.diff(known)
    return max(0.0, float(steps[0])), max(0.0, float(steps[-1]))
