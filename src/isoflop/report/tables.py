"""Tables of the report as HTML. Every text from the study passes through `escape`."""

from collections.abc import Callable, Sequence
from html import escape
from typing import Any

from isoflop.report import families
from isoflop.report.accuracy import residual_percent
from isoflop.report.chart import power, short
from isoflop.report.common import percent
from isoflop.report.load import BandRow, Law, Study, Target, as_dict, number
from isoflop.report.words import error_percent, verdict
from isoflop.table import RunRow

# What the lines of a certificate mean, for a reader who has not fitted a law before.
MEANING = {
    "status": "Sound, weak (doubtful for the reasons given) or refused (its forecasts have no interval).",
    "reasons": "What makes it weak or refused.",
    "profile": "Ends of an interval within which refits with the constant held there fit about as well.",
    "influence": "Which runs move the optimal tokens per parameter most, when left out.",
    "sensitivity": "What other deltas, forms and conventions of N would have said.",
    "residual_structure": "Whether the residuals are noise, or bend with N, D or compute.",
    "objective": "The minimised misfit: the sum of Huber losses of log measured minus log predicted loss.",
    "gradient_norm": "How flat the objective is at the answer; near zero means that the search arrived at a minimum.",
    "n_starts": "From how many starting points the search was run.",
    "share_of_starts_at_optimum": "How many of them reached this same best answer; a low share hints at rival optima.",
    "condition_number": "How unevenly the runs determine the constants; beyond 1e4 some mix of them is undetermined.",
    "at_bound": "Constants that ended at the edge of what is allowed; the runs do not determine those.",
    "residual_rms": "Typical relative distance of a run from the law (root mean square of the log residuals).",
    "n_rows": "Finished runs offered to the fit.",
    "n_used": "Of those, the runs it used.",
    "excluded": "Rows left out of the fit, and why.",
    "correlation_log_n_log_d": "Near 1 or -1, N and D rose together and their effects can hardly be told apart.",
    "compute_levels": "How many levels of compute the runs cover; with one, the fall with compute is not seen.",
    "ranges": "What the fitted runs cover; beyond it the law extrapolates.",
    "data_digest": "A digest of the fitted rows: the same digest means the same data.",
    "convention": "What N and the compute count; exponents move with this more than with the method of fitting.",
    "delta": "The Huber threshold: log residuals beyond it count linearly, so that outliers pull less.",
    "bootstrap": "How the intervals were made, by refitting to resampled runs.",
    "warnings": "What speaks against the fit (also at the top of this page).",
}
CONSTANT_MEANING = {
    "E": "Loss that no size and no data removes, nats per token.",
    "A": "Scale of what a larger N removes.",
    "B": "Scale of what more tokens remove.",
    "alpha": "How fast loss falls with N.",
    "beta": "How fast loss falls with D.",
}


def table(
    caption: str, head: Sequence[str], body: Sequence[Sequence[str]], numeric: Sequence[int] = (), kind: str = ""
) -> str:
    """A table in its own scrolling box; cells are HTML already escaped, the first of a row is its header."""
    top = "".join(f'<th scope="col"{_right(i, numeric)}>{escape(text)}</th>' for i, text in enumerate(head))
    rows = "".join(_row(cells, numeric) for cells in body)
    label = escape(caption, quote=True)
    return (
        f'<div class="scroll {kind}" role="region" aria-label="{label}" tabindex="0"><table>'
        f"<caption>{escape(caption)}</caption>"
        f"<thead><tr>{top}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _right(index: int, numeric: Sequence[int]) -> str:
    return ' class="number"' if index in numeric else ""


def _row(cells: Sequence[str], numeric: Sequence[int]) -> str:
    first = f'<th scope="row">{cells[0]}</th>' if cells else ""
    rest = "".join(f"<td{_right(i, numeric)}>{cell}</td>" for i, cell in enumerate(cells) if i)
    return f"<tr>{first}{rest}</tr>"


def plain(value: Any) -> str:
    """A JSON value as escaped text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        long = any(isinstance(item, dict) or (isinstance(item, str) and " " in item) for item in value)
        between = "<br>" if long else ", "
        return between.join(plain(item) for item in value) or "none"
    if isinstance(value, dict):
        between = "<br>" if any(isinstance(item, dict) for item in value.values()) else "; "
        return between.join(f"{_words(key)}: {plain(item)}" for key, item in value.items()) or "none"
    return escape(str(value))


def _words(key: str) -> str:
    return escape(str(key).replace("_", " "))


# Targets and runs

TARGET_HEAD = (
    *("target", "family", "N (law's)", "parameters, all", "D, tokens", "exact FLOPs", "forecast", "interval"),
    *("measured", "measured, bits per byte", "error", "inside", "made"),
)


def targets(study: Study) -> str:
    """Every forecast beside its measurement."""
    body = [_target(target) for target in study.targets]
    caption = f"Forecasts of held-out runs (losses in nats per token; the law's N is {study.n_column})"
    return table(caption, TARGET_HEAD, body, range(2, 11), "wide")


def _target(target: Target) -> list[str]:
    interval = "–"
    if target.low is not None and target.high is not None:
        level = f"<br>({percent(target.level)})" if target.level is not None else ""
        interval = f"{target.low:.4f} to {target.high:.4f}{level}"
    measured = "not yet" if target.measured is None else f"{target.measured:.4f}"
    error = "–" if target.measured is None else f"{error_percent(target):.2f} %"
    every = "–" if target.n_params is None else short(target.n_params)
    return [
        *(escape(target.run), escape(target.family)),
        *(short(target.n), every, short(target.tokens), power(target.flops)),
        *(f"{target.loss:.4f}", interval, measured, _bits(target.bits_per_byte), error),
        *(plain(verdict(target)), plain(target.made_at).replace("T", "<br>", 1)),
    ]


def _bits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


# What most studies hold fixed: where every run has one value of it, the caption says it once.
HELD: dict[str, Callable[[RunRow], str]] = {
    "family": lambda row: row.family,
    "status": lambda row: row.status,
    "learning rate": lambda row: f"{row.lr:.3g}",
    "tokens a batch": lambda row: str(row.batch_tokens),
    "context": lambda row: str(row.context),
    "seed": lambda row: str(row.seed),
    "threads": lambda row: str(row.threads),
    "device": lambda row: row.device,
    "reason": lambda row: row.reason or "none",
}
RUN_TEXT = ("run", "role", "family", "status", "device", "trunk", "reason")


def runs(study: Study) -> str:
    """The run table, by family and compute."""
    rows = sorted(study.rows, key=lambda row: (study.families.index(row.family), row.flops_exact, study.n(row)))
    values = {name: {value(row) for row in rows} for name, value in HELD.items()}
    held = {name: next(iter(found)) for name, found in values.items() if len(found) == 1}
    same = "; ".join(f"{name} {value}" for name, value in held.items() if (name, value) != ("reason", "none"))
    caption = f"Runs (losses in nats per token; N is {study.n_column}; seconds are of training, without compiling)."
    caption += f" Of every run: {same}." if same else ""
    head = [name for name in _run(study, rows[0]) if name not in held]
    body = [[cell for name, cell in _run(study, row).items() if name in head] for row in rows]
    numeric = [place for place, name in enumerate(head) if name not in RUN_TEXT]
    return table(caption, head, body, numeric, "wide tall")


def _run(study: Study, row: RunRow) -> dict[str, str]:
    """A cell for each column's heading."""
    held = {name: escape(value(row)) for name, value in HELD.items()}
    loss, law_says, above = _against_law(study, row)
    return {
        "run": escape(row.run),
        "role": escape(row.role),
        "family": held["family"],
        "status": f'<span class="{held["status"]}">{held["status"]}</span>',
        "N": short(study.n(row)),
        "D, tokens": short(row.tokens),
        "D/N": f"{row.tokens / study.n(row):.3g}",
        "exact FLOPs": power(row.flops_exact),
        "validation loss": loss,
        "bits per byte": _bits(row.bits_per_byte),
        "law": law_says,
        "above law": above,
        **{name: held[name] for name in ("learning rate", "tokens a batch", "context")},
        "steps": str(row.steps),
        "seed": held["seed"],
        "training, s": f"{row.wall_s:.4g}",
        "tokens/s": short(row.tokens_per_s),
        **{name: held[name] for name in ("threads", "device")},
        "trunk": escape(row.trunk),
        "reason": plain(row.reason),
    }


def _against_law(study: Study, row: RunRow) -> list[str]:
    """Measured loss, the law's, and how far apart."""
    if row.loss_valid is None:
        return ["–", "–", "–"]
    law = study.laws.get(row.family)
    if law is None:
        return [f"{row.loss_valid:.4f}", "–", "–"]
    above = residual_percent(study, law, row)
    return [f"{row.loss_valid:.4f}", f"{row.loss_valid / (1 + above / 100):.4f}", f"{above:+.2f} %"]


# Laws and certificates


def law(fit: Law) -> str:
    """Constants with their intervals, and what each means."""
    body = []
    for name, meaning in CONSTANT_MEANING.items():
        body.append([name, f"{getattr(fit, name):.6g}", _interval(as_dict(fit.intervals.get(name))), meaning])
    caption = f"The law of {fit.family}: loss = E + A/N^alpha + B/D^beta"
    return table(caption, ("constant", "value", "interval", "meaning"), body, (1, 2))


OPTIMA_ROWS = 6


def optima(fit: Law) -> str:
    """The best N and D at some of the frontier's budgets, with their intervals; nothing where none were stored."""
    known = [row for row in fit.band if row.n and row.tokens]
    if not known:
        return ""
    step = max((len(known) - 1) // (OPTIMA_ROWS - 1), 1)
    body = [_optimum(row) for row in known[::-step][::-1]]
    head = ("FLOPs", "best N", "interval", "best D, tokens", "interval", "loss", "interval")
    caption = f"The best N and D under the law of {fit.family}, and the loss to be expected there"
    return table(caption, head, body, range(1, len(head)), "wide")


def _optimum(row: BandRow) -> list[str]:
    def ends(pair: tuple[float, float] | None) -> str:
        return "–" if pair is None else f"{short(pair[0])} to {short(pair[1])}"

    interval = "–" if row.low is None or row.high is None else f"{row.low:.4f} to {row.high:.4f}"
    sizes = [short(row.n or 0), ends(row.n_ends), short(row.tokens or 0), ends(row.tokens_ends)]
    return [power(row.flops), *sizes, f"{row.loss:.4f}", interval]


def _interval(interval: dict[str, Any]) -> str:
    low, high, level = (number(interval.get(key)) for key in ("low", "high", "level"))
    if low is None and high is None:
        return "–"
    ends = " to ".join("unbounded" if end is None else f"{end:.4g}" for end in (low, high))
    return ends + (f" ({percent(level)})" if level is not None else "")


def certificate(fit: Law) -> str:
    """The certificate line by line; lines we know no words for are shown all the same."""
    body = [[_words(key), plain(value), _meaning(key)] for key, value in fit.certificate.items()]
    return table(f"Certificate of the fit, {fit.family}", ("line", "value", "meaning"), body, kind="reading")


def _meaning(key: str) -> str:
    return MEANING.get(key) or (MEANING["ranges"] if "range" in key else "")


# Families side by side


def family_levels(study: Study) -> str:
    """Lowest loss of each family at equal exact FLOPs and at equal wall-clock."""
    parts = [
        _levels(study, "Lowest loss at equal exact FLOPs", "at most, FLOPs", families.flops),
        _levels(study, "Lowest loss at equal wall-clock of training", "at most, seconds", families.seconds),
    ]
    return "".join(parts)


def _levels(study: Study, caption: str, first: str, cost: families.Cost) -> str:
    found = families.levels(study, cost)
    if not found:
        return f'<p class="absent">{escape(caption)}: no cost at which every family has a run to compare.</p>'
    head = (first, *study.families, "lowest", "by")
    body = [_level(study, level, cost) for level in found]
    return table(f"{caption} (nats per token; N of the run)", head, body, range(1, len(study.families) + 1), "wide")


def _level(study: Study, level: families.Level, cost: families.Cost) -> list[str]:
    ranked = sorted(level.best.items(), key=lambda item: float(item[1].loss_valid or 0))
    lead = float(ranked[1][1].loss_valid or 0) - float(ranked[0][1].loss_valid or 0)
    limit = power(level.cost) if cost is families.flops else f"{level.cost:.4g}"
    cells = [f"{level.best[f].loss_valid:.4f} (N {short(study.n(level.best[f]))})" for f in study.families]
    return [limit, *cells, escape(ranked[0][0]), f"{lead:.4f}"]
