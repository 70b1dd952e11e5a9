"""A question as the command line that asks it."""

import shlex

from isoflop.decide.question import DEFAULT_LAW, FAMILIES, LawChoice, Question, Served


def command_of(question: Question) -> str:
    """`isoflop plan ...` with what differs from the defaults; asked again it gives the same question."""
    words = ["isoflop", "plan", question.goal.flag, _number(question.goal.amount)]
    if question.laws != (LawChoice(name=DEFAULT_LAW),):
        for law in question.laws:
            words += ["--law", law_word(law)]
        first = question.laws[0]
        words += _options({"--n": first.n, "--d": first.d, "--loss": first.loss})
        words += ["--force"] if first.force else []
    if question.families != FAMILIES:
        words += ["--family", ",".join(question.families)]
    served, usual = question.served, Served()
    options = {
        "--hardware": question.hardware,
        "--devices": question.devices,
        "--price": question.price,
        "--unique-tokens": question.unique_tokens,
        "--repeats": question.most_repeats,
        "--served-tokens": served.tokens or None,
        "--context": _unless(served.context, usual.context),
        "--prompt-share": _unless(served.prompt_share, usual.prompt_share),
        "--latency": served.latency_ms,
        "--weights": _unless(served.weights, usual.weights),
        "--serve-memory": question.serve_memory_gib,
        "--device-memory": question.device_memory_gib,
    }
    usual_q = dict(zip(_PLAIN.values(), _defaults(), strict=True))
    plain = {flag: _unless(getattr(question, name), usual_q[name]) for flag, name in _PLAIN.items()}
    return shlex.join([*words, *_options({**options, **plain})])


_PLAIN = {
    "--train-context": "context",
    "--vocab": "vocab_size",
    "--count": "count",
    "--within": "within",
    "--level": "level",
}


def _defaults() -> list[object]:
    known = dict(
        zip(Question.__struct_fields__[-len(Question.__struct_defaults__) :], Question.__struct_defaults__, strict=True)
    )
    return [known[name] for name in _PLAIN.values()]


def law_word(law: LawChoice) -> str:
    """`FAMILY=NAME*WEIGHT`, without what is not said."""
    family = f"{law.family}=" if law.family is not None else ""
    return f"{family}{law.name}" + (f"*{_number(law.weight)}" if law.weight != 1 else "")


def _unless(value: object, usual: object) -> object:
    return None if value == usual else value


def _options(options: dict[str, object]) -> list[str]:
    words: list[str] = []
    for flag, value in options.items():
        if value is not None:
            words += [flag, _number(value) if isinstance(value, float) else str(value)]
    return words


def _number(value: float) -> str:
    """As short as reads back as the same number."""
    return min(repr(float(value)), f"{value:g}", key=lambda text: (float(text) != value, len(text)))
