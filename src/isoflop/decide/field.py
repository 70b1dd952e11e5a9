"""One family under one question: over a grid of its sizes, what a token of training costs, what serving costs, what is
possible, and the loss that is believed. Legend: m sizes.
"""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from isoflop.cost.serving import BYTES_A_WEIGHT, WeightType
from isoflop.decide.belief import Average, Believed, Data
from isoflop.decide.curve import Curve, Member, Setting, curve
from isoflop.decide.factors import factor_of
from isoflop.decide.question import Question
from isoflop.decide.shapes import of_size
from isoflop.decide.sources import average
from isoflop.hardware import GIB
from isoflop.laws.forms import Array

TYPICAL = 1e9  # parameters of the member by which a family is told dense, sparse or recurrent


@dataclass(frozen=True)
class Field:
    """`limited_m`: what a token counts against the budget, in its unit. `train_m`, `serve_m`: what a token of training,
    and all of serving, cost in the unit of the lifetime. `most_tokens`: of data, repeats among them. `ok_m`: whether
    memory and latency allow the size; `reasons` which of them forbid any."""

    family: str
    curve: Curve
    believed: Believed
    limited_m: Array
    train_m: Array
    serve_m: Array
    memory_m: Array
    most_tokens: float
    ok_m: npt.NDArray[np.bool_]
    reasons: tuple[str, ...]
    own_law: bool
    unit: str = "FLOPs"  # of `train_m` and `serve_m`

    def tokens(self, budget: float) -> Array:
        """Tokens that a training budget buys at each size, as far as there are any."""
        return np.minimum(budget / self.limited_m, self.most_tokens)

    def part(self, keep: slice) -> "Field":
        """The same over some of the sizes."""
        names = ("limited_m", "train_m", "serve_m", "memory_m", "ok_m")
        cut = {name: getattr(self, name)[keep] for name in names}
        old = self.curve
        lines = ("total_m", "active_m", "train_m", "served_m", "cache_m")
        shorter = replace(
            old, n={k: v[keep] for k, v in old.n.items()}, **{name: getattr(old, name)[keep] for name in lines}
        )
        return replace(self, curve=shorter, believed=self.believed.at(keep), **cut)


def setting(question: Question) -> Setting:
    """What costs are taken at."""
    served = question.served
    return Setting(
        question.vocab_size, question.context, served.prompt, served.output, served.prompt_share, question.count
    )


def field_of(question: Question, family: str) -> Field:
    """The field of a family, its budget and lifetime in FLOPs. Raises ValueError for what is no family, or a law that
    cannot plan."""
    costs = curve(family, setting(question))
    laws, own = average(question.laws, family)
    memory_m = serving_bytes(costs, question.served.weights)
    limit = question.serve_memory_gib
    ok_m = np.ones(len(memory_m), dtype=bool) if limit is None else memory_m <= limit * GIB
    most = np.inf
    if question.unique_tokens is not None and question.most_repeats is not None:
        most = question.unique_tokens * question.most_repeats
    return Field(
        family=family,
        curve=costs,
        believed=believed_of(question, costs, laws, own),
        limited_m=costs.train_m,
        train_m=costs.train_m,
        serve_m=question.served.tokens * costs.served_m,
        memory_m=memory_m,
        most_tokens=most,
        ok_m=ok_m,
        reasons=() if ok_m.all() else ("serving memory",),
        own_law=own,
    )


def believed_of(question: Question, costs: Curve, laws: Average, own: bool) -> Believed:
    """The loss of a family over its curve."""
    typical = of_size(costs.shape, TYPICAL)
    factor = factor_of(typical, costs.total_m, costs.active_m, own)
    return Believed(laws, Data(question.unique_tokens), factor, costs.n)


def member_bytes(built: Member, weights: WeightType) -> float:
    """Bytes to serve a decoder: weights, tables in half precision, and one request's cache. Exact."""
    tables = built.active - built.non_embedding
    return (built.total - tables) * BYTES_A_WEIGHT[weights] + 2 * tables + built.cache_bytes


def serving_bytes(costs: Curve, weights: WeightType) -> Array:
    """Bytes of the weights, tables in half precision, and of one request's cache."""
    tables = costs.active_m - costs.n["non_embedding"]
    return (costs.total_m - tables) * BYTES_A_WEIGHT[weights] + 2 * tables + costs.cache_m
