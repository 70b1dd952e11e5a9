"""Places of a plan as figures: points of a curve, and the recommended decoder with its bills and interval."""

from itertools import groupby

import msgspec
import numpy as np
import tomli_w

from isoflop.architecture import Decoder
from isoflop.cost.quantity import Quantity, Source, weakest
from isoflop.decide.answer import Architecture, Point, Recommended
from isoflop.decide.belief import joint_draws
from isoflop.decide.devices import Cluster, bill_of, demand_of, served_by, training_of
from isoflop.decide.family_plan import FamilyPlan, at_or_zero, exactly
from isoflop.decide.field import member_bytes
from isoflop.decide.optimum import Spot, at
from isoflop.decide.question import Question
from isoflop.laws.forms import Array


def point(one: FamilyPlan, spot: Spot) -> Point:
    """A place before dimensions are rounded."""
    field, place = one.field, spot.place
    train = at(field.train_m, place) * spot.tokens
    serve = at_or_zero(field.serve_m, place)
    active = at(field.curve.active_m, place)
    return Point(
        n_params=at(field.curve.total_m, place),
        n_active=active,
        tokens=spot.tokens,
        tokens_per_param=spot.tokens / active,
        loss=float(np.exp(spot.log_loss)) if field.believed.average.told else None,
        train_flops=at(field.curve.train_m, place) * spot.tokens,
        serve_flops=at(field.curve.served_m, place) * one.served_tokens,
        lifetime=train + serve,
    )


def interval(drawn: Array, level: float, source: Source, value: float | None = None) -> Quantity:
    """Value (the median, unless given) and central interval of draws."""
    low, middle, high = np.quantile(drawn, [(1 - level) / 2, 0.5, (1 + level) / 2])
    value = float(middle) if value is None else value
    return Quantity(value, min(float(low), value), max(float(high), value), level, source)


def loss_of(question: Question, one: FamilyPlan) -> Quantity:
    """The loss of the built decoder after its tokens, a run's noise included in its interval."""
    believed, tokens = exactly(one.built, one.field, one.chosen), np.array([one.tokens])
    (drawn,) = joint_draws([believed], [tokens], noisy=True)
    sources: list[Source] = [law.source for law in believed.average.laws]
    if one.field.believed.factor.note:
        sources.append("assumed")
    return interval(np.exp(drawn[:, 0]), question.level, weakest(*sources), float(np.exp(believed.mean(tokens)[0])))


def recommended(question: Question, one: FamilyPlan, cluster: Cluster | None) -> Recommended:
    """The answer's decoder. Raises NoPlan where the cluster cannot hold it."""
    built, decoder = one.built, one.built.decoder
    training = None if cluster is None else training_of(decoder, cluster, question.context)
    bill = None if cluster is None else bill_of(decoder, cluster, question.context, one.tokens)
    served = None if cluster is None else served_by(decoder, cluster, demand_of(question))
    memory = member_bytes(built, question.served.weights)
    return Recommended(
        architecture=architecture(one.field.family, decoder),
        n_params=built.total,
        n_active=built.active,
        tokens=one.tokens,
        tokens_per_param=one.tokens / built.active,
        epochs=max(1.0, one.tokens / question.unique_tokens) if question.unique_tokens else 1.0,
        loss=loss_of(question, one) if one.field.believed.average.told else None,
        train_flops=built.train_flops * one.tokens,
        train_flops_6nd=6.0 * built.active * one.tokens,
        serve_flops=built.served_flops * question.served.tokens,
        train_hours=None if bill is None else bill.hours,
        train_device_hours=None if bill is None else bill.device_hours,
        train_cost=None if bill is None else bill.usd,
        train_energy_kwh=None if bill is None else bill.kwh,
        serve_cost_per_mtok=None if served is None else served.usd_per_mtok,
        serve_devices=None if served is None else served.devices,
        serve_memory_bytes=Quantity(memory, memory, memory, None, "exact"),
        layout=None if training is None else layout_words(msgspec.to_builtins(training.layout)),
    )


def layout_words(layout: dict[str, int | str]) -> str:
    """A layout in one line: what is split."""
    degrees = [f"{name} {value}" for name, value in layout.items() if isinstance(value, int) and value > 1]
    return ", ".join([*degrees, f"shard {layout['shard']}", f"recompute {layout['recompute']}"])


def architecture(family: str, decoder: Decoder) -> Architecture:
    """A decoder for people and for files."""
    kinds = []
    for layer, same in groupby(decoder.layers):
        mixer = "" if layer.mixer is None else type(layer.mixer).__struct_config__.tag
        feed = "" if layer.feed_forward is None else type(layer.feed_forward).__struct_config__.tag
        kinds.append(f"{len(list(same))} x {' + '.join(str(part) for part in (mixer, feed) if part)}")
    shown = kinds if len(kinds) <= 4 else [*kinds[:3], f"... ({len(kinds)} groups)"]
    summary = f"d_model {decoder.d_model}, {decoder.n_layers} layers: {', '.join(shown)}"
    return Architecture(family, decoder.d_model, decoder.n_layers, summary, decoder.digest, toml_of(decoder))


def toml_of(decoder: Decoder) -> str:
    """The file that `load_decoder` reads back as this decoder."""
    data = _without_nulls(msgspec.to_builtins(decoder))
    layers = []
    for layer, same in groupby(decoder.layers):
        entry = _without_nulls(msgspec.to_builtins(layer))
        absent = {key: "none" for key in ("mixer", "feed_forward") if key not in entry}
        layers.append({"repeat": len(list(same)), **entry, **absent})
    return tomli_w.dumps({**data, "layers": layers})


def _without_nulls(value: dict[str, object]) -> dict[str, object]:
    kept = {key: item for key, item in value.items() if item is not None}
    return {key: _without_nulls(item) if isinstance(item, dict) else item for key, item in kept.items()}
