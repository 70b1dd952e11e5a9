"""The report's answer in a sentence, and what a reader must be warned of."""

from collections import Counter
from collections.abc import Iterable

from isoflop.report.chart import power, short
from isoflop.report.common import fitted, measured_words, percent
from isoflop.report.families import study_verdicts
from isoflop.report.load import Law, Study, Target, as_dict, number

ENOUGH = 8  # forecasts of a backtest whose coverage says something
FAR_BELOW = 0.2  # of the coverage that was promised
SHOWN = 5  # run names listed in a warning before "and n more"


def headline(study: Study) -> list[str]:
    """One sentence a family: the forecast at its largest target, or how far the study has come."""
    named = len(study.families) > 1
    sentences = []
    for family in study.families:
        words = _family_answer(study, family)
        tested = _backtest(study, family)
        words += f" {tested}" if tested else ""
        sentences.append(f"{family}: {words}" if named else words)
    return [*sentences, *_score(study), *study_verdicts(study)] or [
        "No run has been planned or finished in this study yet."
    ]


def _family_answer(study: Study, family: str) -> str:
    targets = [target for target in study.targets if target.family == family]
    if targets:
        return _forecast(study, targets[-1])
    rows = [row for row in study.rows if row.family == family]
    done = len(fitted(study, family))
    if not done:
        return f"No forecast: none of {len(rows)} runs finished, so there is nothing to fit."
    if family in study.laws:
        asked = study.asked is None or family in study.asked
        start = "No forecast yet: " if asked else "No held-out run was asked for; "
        return f"{start}{_law_words(study.laws[family])}, fitted to {done} finished runs."
    reason = study.no_law.get(family, "no law has been fitted yet")
    return f"No forecast: {done} runs finished, but there is no law ({reason})."


def _backtest(study: Study, family: str) -> str | None:
    """How forecasts of the family's dearer runs from its cheaper ones came out; None where none were made."""
    document = study.laws[family].backtest if family in study.laws else {}
    pooled = as_dict(document.get("pooled"))
    level, held, bias = (number(value) for value in (document.get("level"), pooled.get("coverage"), pooled.get("bias")))
    if level is None or held is None or bias is None:
        return None
    return (
        f"Backtest on its own runs: {percent(level)} intervals held {percent(round(held, 2))} of "
        f"{pooled.get('forecasts')} forecasts of dearer runs from cheaper ones; on average these were "
        f"{abs(100 * bias):.2g} % too {'high' if bias > 0 else 'low'}."
    )


def _law_words(law: Law) -> str:
    return f"the law is {law.E:.4g} + {law.A:.4g}/N^{law.alpha:.3f} + {law.B:.4g}/D^{law.beta:.3f}"


def _forecast(study: Study, target: Target) -> str:
    interval = ""
    if target.low is not None and target.high is not None:
        level = f"{percent(target.level)} interval " if target.level is not None else "interval "
        interval = f" ({level}{target.low:.3f} to {target.high:.3f})"
    alike = target.n_params is None or short(target.n_params) == short(target.n)
    every = "" if alike else f" ({short(target.n_params or 0)} parameters in all)"
    sizes = f"N = {short(target.n)}{every}, D = {short(target.tokens)} tokens"
    text = f"Forecast {target.loss:.3f} nats a token{interval} for {sizes}"
    largest = max((row.flops_exact for row in fitted(study, target.family)), default=None)
    reach = f" at {target.flops / largest:.2g}x the largest fitted compute" if largest else ""
    return f"{text}{reach}; {_outcome(target)}."


def _outcome(target: Target) -> str:
    if target.measured is None:
        return "not measured yet"
    words = {True: "inside", False: "outside", None: "no interval to check"}[verdict(target)]
    side = "too high" if target.loss > target.measured else "too low"
    return f"measured {measured_words(target, 3)}: {words}, {error_percent(target):.2g} % {side}"


def verdict(target: Target) -> bool | None:
    """Whether the measured loss lies inside the forecast's interval: as recorded, else as it follows."""
    if target.measured is None or target.inside is not None:
        return target.inside
    if target.low is None or target.high is None:
        return None
    return target.low <= target.measured <= target.high


def error_percent(target: Target) -> float:
    """The forecast's distance from the measured loss, in per cent of it: as recorded, else as it follows."""
    assert target.measured is not None
    relative = target.relative_error
    return 100 * abs(target.loss / target.measured - 1 if relative is None else relative)


def _score(study: Study) -> list[str]:
    known = [verdict(target) for target in study.targets if target.measured is not None]
    if len(known) < 2:
        return []
    return [f"Of {len(known)} held-out runs measured so far, {known.count(True)} fell inside their interval."]


def warnings(study: Study) -> list[str]:
    """What speaks against trusting the answer, most general first."""
    law_words = [text for law in study.laws.values() for text in _law_warnings(study, law)]
    no_law = [f"{_of(study, family)}no law to draw: {reason}." for family, reason in study.no_law.items()]
    targets = [text for target in study.targets for text in _target_warnings(study, target)]
    return [*_unfinished(study), *no_law, *law_words, *targets, *_convention(study)]


def _of(study: Study, family: str) -> str:
    return f"{family}: " if len(study.families) > 1 else ""


def _unfinished(study: Study) -> list[str]:
    out = []
    for status in ("diverged", "failed"):
        lost = [row for row in study.rows if row.status == status]
        if lost:
            why = Counter(row.reason or "none recorded" for row in lost).most_common(3)
            reasons = "; ".join(f"{reason} ({count} runs)" if count > 1 else reason for reason, count in why)
            names = _listed(row.run for row in lost)
            out.append(f"{len(lost)} of {len(study.rows)} runs {status}: {names}. Reason: {reasons}.")
    nameless = [row.run for row in study.rows if row.status == "done" and row.loss_valid is None]
    if nameless:
        out.append(f"{len(nameless)} finished runs have no validation loss: {_listed(nameless)}.")
    return out


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _law_warnings(study: Study, law: Law) -> list[str]:
    said = law.certificate.get("warnings")
    texts = [str(text) for text in said] if isinstance(said, list) else []
    bound = law.certificate.get("at_bound")
    if bound and not any("bound" in text for text in texts):
        names = ", ".join(map(str, bound)) if isinstance(bound, list) else str(bound)
        texts.append(f"a constant of the law sits at a bound ({names}): the runs do not determine it.")
    texts += _overconfident(law)
    return [f"{_of(study, law.family)}{text}" for text in texts]


def _overconfident(law: Law) -> list[str]:
    """Whether the study's own hold-outs were missed far more often than they should."""
    document, pooled = law.backtest, as_dict(law.backtest.get("pooled"))
    told = document.get("level"), pooled.get("coverage"), pooled.get("forecasts")
    level, held, count = (number(value) for value in told)
    if level is None or held is None or count is None or count < ENOUGH or held > level - FAR_BELOW:
        return []
    intervals = f"{percent(level)} intervals held only {percent(round(held, 2))} of {count:.0f} forecasts"
    return [f"{intervals} in its own backtest: take them for too narrow."]


def _target_warnings(study: Study, target: Target) -> list[str]:
    name = f"Target {target.run} ({power(target.flops)} FLOPs)"
    out = [f"{name}: {target.warning}"] if target.warning else []
    if not target.made_before_run:
        out.append(f"{name}: this forecast was made when the run had finished; it is a comparison, not a prediction.")
    if verdict(target) is False:
        out.append(f"{name}: measured {target.measured:.4f} lies outside the forecast's interval.")
    row = next((row for row in study.done if row.run == target.run), None)
    table = row.loss_valid if row is not None else None
    if table is not None and target.measured is not None and abs(table - target.measured) > 1e-6:
        out.append(f"{name}: forecast.json records a measured loss of {target.measured}, the run table {table}.")
    return out


def _convention(study: Study) -> list[str]:
    if not (study.n_presumed and study.laws):
        return []
    return [f"Nothing in the study says what the law's N counts; this report takes {study.n_column}."]
