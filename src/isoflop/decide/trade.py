"""What over-training costs and saves, and what serving in fewer bits does (Kumar et al. 2024, arXiv 2411.04330)."""

import math

import numpy as np

from isoflop.cost.quantity import Quantity, weakest
from isoflop.cost.serving import WeightType
from isoflop.decide.answer import OverTraining, Weights
from isoflop.decide.devices import Cluster, demand_of, served_by
from isoflop.decide.family_plan import FamilyPlan, at_or_zero
from isoflop.decide.field import member_bytes
from isoflop.decide.optimum import at
from isoflop.decide.question import Question
from isoflop.laws.presets import KUMAR_QUANTIZATION

BITS: dict[WeightType, float | None] = {"bf16": None, "fp8": 8.0, "int8": 8.0, "int4": 4.0}
WITHIN = 3.0  # factor about the added loss: the law was fitted below .22B parameters and 26B tokens (assumed)
SAME = 0.01  # of a size: nearer than this to the training optimum, nothing is over-trained


def over_training(one: FamilyPlan) -> OverTraining | None:
    """The chosen place against the training optimum of the same budget; None where they are one."""
    field, chosen, training = one.field, one.chosen, one.training
    size, least = at(field.curve.active_m, chosen.place), at(field.curve.active_m, training.place)
    if size > (1 - SAME) * least or not field.serve_m.any():
        return None
    serve = [at_or_zero(field.serve_m, spot.place) for spot in (chosen, training)]
    total = [at(field.train_m, spot.place) * spot.tokens + s for spot, s in zip((chosen, training), serve, strict=True)]
    added = math.exp(chosen.log_loss) - math.exp(training.log_loss) if field.believed.average.told else None
    ratio = chosen.tokens / size
    price = "" if added is None else f" and adds {added:.4f} to the loss"
    return OverTraining(
        loss_added=added,
        tokens_per_param=ratio,
        serve_saved=1 - serve[0] / serve[1],
        lifetime_saved=1 - total[0] / total[1],
        words=f"over-training to {ratio:.3g} tokens a parameter (best to train: {training.tokens / least:.3g}) saves "
        f"{1 - serve[0] / serve[1]:.0%} of serving, {1 - total[0] / total[1]:.0%} of the lifetime{price}",
    )


def weight_types(question: Question, one: FamilyPlan, cluster: Cluster | None, loss: Quantity | None) -> list[Weights]:
    """Serving the decoder, of this loss before rounding, in each type of weights."""
    out = []
    for weights, bits in BITS.items():
        memory = member_bytes(one.built, weights)
        fast = cluster is not None and (weights != "fp8" or "fp8" in cluster.hardware.tflops)
        told = None
        if cluster is not None and fast:
            told = served_by(one.built.decoder, cluster, demand_of(question, weights))
        added = Quantity(0.0, 0.0, 0.0, None, "exact") if bits is None else quantized(one, bits)
        out.append(Weights(weights, added, _sum(loss, added), memory, None if told is None else told.usd_per_mtok))
    return out


def _sum(loss: Quantity | None, added: Quantity) -> Quantity | None:
    """Bounds added, which is cautious."""
    if loss is None:
        return None
    source = weakest(loss.source, added.source)
    return Quantity(loss.value + added.value, loss.low + added.low, loss.high + added.high, loss.level, source)


def quantized(one: FamilyPlan, bits: float) -> Quantity:
    """What rounding the weights after training adds to the loss."""
    sizes = np.array([float(one.built.non_embedding)]), np.array([one.tokens]), np.array([bits])
    added = float(KUMAR_QUANTIZATION.value(**dict(zip(("N", "D", "P"), sizes, strict=True)))[0])
    return Quantity(added, added / WITHIN, added * WITHIN, None, "assumed")
