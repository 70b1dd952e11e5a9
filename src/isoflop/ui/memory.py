"""Memory of the recommended model by kind: a device that trains it, and what serves one request."""

from dataclasses import dataclass

from isoflop.cost.layout import Layout
from isoflop.cost.memory import training_memory
from isoflop.cost.work import work_of
from isoflop.decide.devices import cluster_of, training_of
from isoflop.decide.family_plan import FamilyPlan
from isoflop.decide.field import serving_bytes
from isoflop.decide.optimum import at
from isoflop.decide.question import Question


@dataclass(frozen=True)
class Group:
    """Bytes of one situation, by kind."""

    title: str
    kinds: dict[str, float]


@dataclass(frozen=True)
class MemoryTable:
    """`limit`: bytes of a device that may be used; None without hardware."""

    groups: tuple[Group, ...]
    limit: float | None
    words: str


def memory_of(question: Question, best: FamilyPlan) -> MemoryTable:
    """Of the built decoder, in the plan's layout or, without hardware, on one device large enough."""
    serving = Group("Serving one request", _serving(question, best))
    cluster, decoder = cluster_of(question), best.built.decoder
    if cluster is None:
        whole = training_memory(work_of(decoder, question.context), Layout(shard="none", recompute="none"))
        training = Group("Training, one sequence", whole.by_kind)
        return MemoryTable((training, serving), None, "All on one device: without hardware there is no layout.")
    told = training_of(decoder, cluster, question.context)
    training = Group(f"Training, each of {cluster.count:,}", told.memory_per_device)
    words = f"{cluster.hardware.name}, fullest at the {told.worst_instant}; activations and buffers are assumed."
    return MemoryTable((training, serving), told.usable_bytes.value, words)


def _serving(question: Question, best: FamilyPlan) -> dict[str, float]:
    costs, place, weights = best.field.curve, best.chosen.place, question.served.weights
    cached = at(costs.cache_m, place)
    return {f"weights ({weights})": at(serving_bytes(costs, weights), place) - cached, "cache": cached}
