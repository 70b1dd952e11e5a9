"""What if: the answer at other values of an input, and how far each input moves it."""

import difflib
import math
from collections.abc import Callable
from typing import Any

import msgspec

from isoflop.decide.answer import NoPlan
from isoflop.decide.devices import cluster_of
from isoflop.decide.family_plan import FamilyPlan, family_plan, settled
from isoflop.decide.planner import plan
from isoflop.decide.question import Question

replace = msgspec.structs.replace

Change = Callable[[Question, str], Question]


class Varied(msgspec.Struct, frozen=True):
    """The answer at one value; `why_not` where there is none."""

    key: str
    value: str
    family: str | None
    n_params: int | None
    n_active: int | None
    tokens: float | None
    loss: float | None
    p_best: float | None
    train_flops: float | None
    serve_flops: float | None
    command: str | None
    why_not: str | None


class Bar(msgspec.Struct, frozen=True):
    """What an input times one half and times two does to the recommended family's answer. None: no answer there."""

    key: str
    value: float
    loss: tuple[float | None, float | None]
    n_params: tuple[float | None, float | None]
    tokens: tuple[float | None, float | None]


def _of_question(name: str) -> Change:
    return lambda question, text: replace(question, **{name: _number(name, text)})


def _of_demand(name: str, whole: bool = False) -> Change:
    def change(question: Question, text: str) -> Question:
        value = _number(name, text)
        return replace(question, served=replace(question.served, **{name: round(value) if whole else value}))

    return change


def _whole(name: str) -> Change:
    return lambda question, text: replace(question, **{name: round(_number(name, text))})


def _goal(question: Question, text: str) -> Question:
    return replace(question, goal=type(question.goal)(_number("goal", text)))


CHANGES: dict[str, Change] = {
    "unique-tokens": _of_question("unique_tokens"),
    "repeats": _of_question("most_repeats"),
    "serve-memory": _of_question("serve_memory_gib"),
    "device-memory": _of_question("device_memory_gib"),
    "devices": _whole("devices"),
    "train-context": _whole("context"),
    "vocab": _whole("vocab_size"),
    "served-tokens": _of_demand("tokens"),
    "context": _of_demand("context", whole=True),
    "prompt-share": _of_demand("prompt_share"),
    "latency": _of_demand("latency_ms"),
    "weights": lambda question, text: replace(question, served=replace(question.served, weights=text)),
    "hardware": lambda question, text: replace(question, hardware=text),
    "price": lambda question, text: replace(question, price=text),
    "count": lambda question, text: replace(question, count=text),
    "family": lambda question, text: replace(question, families=(text,)),
    "law": lambda question, text: replace(question, laws=(replace(question.laws[0], name=text),)),
}


def varied(question: Question, text: str) -> list[Varied]:
    """The answers to KEY=a,b,c. Raises ValueError for a key that is no input, or a value that it cannot take."""
    key, equals, values = text.partition("=")
    goal = str(question.goal.__struct_config__.tag)
    change = _goal if key == goal else CHANGES.get(key)
    if not equals or not values:
        raise ValueError(f"--vary {text}: must be KEY=a,b,c, such as {goal}=1e22,1e23")
    if change is None:
        known = [goal, *CHANGES]
        near = difflib.get_close_matches(key, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ValueError(f"--vary {key}: is no input of this plan; {hint}there are {', '.join(known)}")
    return [_varied(change(question, value), key, value) for value in values.split(",")]


def _varied(question: Question, key: str, value: str) -> Varied:
    try:
        told = plan(question)
    except NoPlan as no:
        return Varied(key, value, *(None,) * 9, why_not=str(no))
    best, first = told.recommended, told.candidates[0]
    return Varied(
        key=key,
        value=value,
        family=first.family,
        n_params=best.n_params,
        n_active=best.n_active,
        tokens=best.tokens,
        loss=None if best.loss is None else best.loss.value,
        p_best=first.p_best,
        train_flops=best.train_flops,
        serve_flops=best.serve_flops,
        command=told.command,
        why_not=None,
    )


def tornado(question: Question) -> list[Bar]:
    """Each numeric input halved and doubled, the family held: the widest bar of loss first."""
    asked = settled(question)
    family = plan(question).candidates[0].family
    inputs = {key: value for key, value in _inputs(asked).items() if value}
    bars = [_bar(asked, family, key, value) for key, value in inputs.items()]
    return sorted(bars, key=lambda bar: -_width(bar))


def _inputs(question: Question) -> dict[str, float | None]:
    served, data = question.served, question.unique_tokens
    return {
        str(question.goal.__struct_config__.tag): question.goal.amount,
        "unique-tokens": data,
        "served-tokens": served.tokens,
        "context": served.context if served.tokens else None,
        "latency": served.latency_ms,
        "serve-memory": question.serve_memory_gib,
        "train-context": question.context,
        "vocab": question.vocab_size,
        "devices": question.devices,
    }


def _bar(question: Question, family: str, key: str, value: float) -> Bar:
    change = CHANGES.get(key, _goal)
    ends = [_answer(question, family, change, f"{value * factor:.17g}") for factor in (0.5, 2.0)]
    told = [one is not None and one.field.believed.average.told for one in ends]
    return Bar(
        key=key,
        value=value,
        loss=_pair([math.exp(one.chosen.log_loss) if one and t else None for one, t in zip(ends, told, strict=True)]),
        n_params=_pair([float(one.built.total) if one else None for one in ends]),
        tokens=_pair([one.tokens if one else None for one in ends]),
    )


def _pair(values: list[Any]) -> tuple[Any, Any]:
    return values[0], values[1]


def _answer(question: Question, family: str, change: Change, value: str) -> FamilyPlan | None:
    try:
        changed = change(question, value)
        return family_plan(changed, family, cluster_of(changed))
    except NoPlan:
        return None


def _width(bar: Bar) -> float:
    low, high = bar.loss
    return math.inf if low is None or high is None else abs(high - low)


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--vary {name.replace('_', '-')}: '{text}' is no number") from None
