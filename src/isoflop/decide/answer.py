"""What the planner answers: the JSON document. Every `Quantity` says whether it is exact, measured, fitted, datasheet
or assumed."""

from typing import Literal

import msgspec

from isoflop.cost.quantity import Quantity
from isoflop.decide.question import Question

Verdict = Literal["recommended", "within noise", "loses"]


class NoPlan(ValueError):
    """The question was right and the answer is no; the line says what would have to change."""


class Architecture(msgspec.Struct, frozen=True):
    """A decoder by its main dimensions; `toml` is the whole of it, as `isoflop cost` and studies read it."""

    family: str
    d_model: int
    n_layers: int
    summary: str
    digest: str
    toml: str


class Point(msgspec.Struct, frozen=True):
    """A size and its tokens on a curve, before dimensions are rounded. `n_params` all parameters, `n_active` those a
    token uses; FLOPs as the question counts them; `lifetime` training and serving together, in `Plan.lifetime_unit`."""

    n_params: float
    n_active: float
    tokens: float
    tokens_per_param: float
    loss: float | None
    train_flops: float
    serve_flops: float
    lifetime: float


class Recommended(msgspec.Struct, frozen=True):
    """What to train. Hours and cost are None without hardware (a price), `loss` where the law tells none."""

    architecture: Architecture
    n_params: int
    n_active: int
    tokens: float
    tokens_per_param: float
    epochs: float
    loss: Quantity | None
    train_flops: float
    train_flops_6nd: float
    serve_flops: float
    train_hours: Quantity | None
    train_device_hours: Quantity | None
    train_cost: Quantity | None
    train_energy_kwh: Quantity | None
    serve_cost_per_mtok: Quantity | None
    serve_devices: int | None
    serve_memory_bytes: Quantity
    layout: str | None


class Candidate(msgspec.Struct, frozen=True):
    """A family's best under the same limits. `p_best`: the probability that its loss is the lowest at equal cost over
    the lifetime. `behind`: its loss over the recommended one's there. Where nothing of it is possible, `why_not`."""

    family: str
    n_params: int | None
    n_active: int | None
    tokens: float | None
    loss: Quantity | None
    p_best: float | None
    behind: Quantity | None
    verdict: Verdict | None
    serve_flops_per_token: float | None
    serve_cost_per_mtok: Quantity | None
    law: str
    note: str
    why_not: str | None


class Near(msgspec.Struct, frozen=True):
    """The range of sizes whose loss is within `within` of the least."""

    within: float
    n_low: float
    n_high: float
    tokens_low: float
    tokens_high: float
    n_best_low: float | None
    n_best_high: float | None
    level: float


class Binding(msgspec.Struct, frozen=True):
    """A limit that shapes the answer: its value, and what the loss would fall by without it (None: not told)."""

    limit: str
    value: float
    unit: str
    loss_without: float | None
    words: str


class Lever(msgspec.Struct, frozen=True):
    """A change of the question and its effect. `worth`: training compute times which would do as much (1: nothing)."""

    change: str
    loss: float | None
    loss_change: float | None
    n_params: float
    tokens: float
    cost_change: float
    worth: float
    words: str


class Weights(msgspec.Struct, frozen=True):
    """Serving the recommended model with weights of another type: the loss that rounding them after training adds, and
    the loss then (None where the law tells none)."""

    weights: str
    loss_added: Quantity
    loss: Quantity | None
    memory_bytes: float
    cost_per_mtok: Quantity | None


class OverTraining(msgspec.Struct, frozen=True):
    """What a smaller model, trained for longer, costs and saves against the training-optimal one of the same budget."""

    loss_added: float | None
    tokens_per_param: float
    serve_saved: float
    lifetime_saved: float
    words: str


class IsoCost(msgspec.Struct, frozen=True):
    """A family at the training budget, an entry a size; `possible` within the limits of memory and latency."""

    family: str
    n_params: list[float]
    n_active: list[float]
    tokens: list[float]
    loss: list[float]
    low: list[float]
    high: list[float]
    possible: list[bool]


class IsoLoss(msgspec.Struct, frozen=True):
    """The recommended family at one loss, an entry a size: training, and training with serving, in the lifetime's
    unit."""

    loss: float
    n_params: list[float]
    tokens: list[float]
    train: list[float]
    lifetime: list[float]


class Curves(msgspec.Struct, frozen=True):
    """What an answer looks like when drawn; empty where the law tells no loss."""

    iso_cost: list[IsoCost]
    iso_loss: IsoLoss | None


class Plan(msgspec.Struct, frozen=True):
    """The answer. `training_optimal` has the least loss of the budget, `lifetime_optimal` the same loss for the least
    training and serving; `recommended` spends the training budget on the model that is cheapest over its lifetime for
    the loss it reaches. The same point without a serving demand."""

    recommended: Recommended
    near_optimal: list[Point]
    near_optimal_range: Near | None
    candidates: list[Candidate]
    binding: list[Binding]
    levers: list[Lever]
    training_optimal: Point
    lifetime_optimal: Point | None
    over_training: OverTraining | None
    serving: list[Weights]
    curves: Curves
    lifetime_unit: str
    sentence: str
    notes: list[str]
    command: str
    question: Question
