"""What a study directory holds, read once and leniently: any stage may not have run yet (see docs/layout.md)."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from isoflop.table import RunRow, read_table

Json = dict[str, Any]

FORMS = ("E + A/N^alpha + B/D^beta", "chinchilla")  # two names of one form
N_COLUMNS = {
    "n_params_matmul": "parameters N (active in matmuls)",
    "n_params_non_embedding": "parameters N (non-embedding)",
    "n_params": "parameters N (all)",
}
# Words by which a law's `convention` may say what its N counts, most specific first.
N_WORDS = (
    (r"non[-_ ]embedding", "n_params_non_embedding"),
    (r"matmul|\bactive\b", "n_params_matmul"),
    (r"\bn_params\b|\b(all|every|total) parameters?\b", "n_params"),
)
PRESUMED_N = "n_params_matmul"


@dataclass(frozen=True)
class BandRow:
    """A point of the compute-optimal frontier: loss in nats per token, with intervals (low, high) where known."""

    flops: float
    n: float | None  # the law's N
    tokens: float | None
    loss: float
    low: float | None
    high: float | None
    level: float | None
    n_ends: tuple[float, float] | None = None
    tokens_ends: tuple[float, float] | None = None


@dataclass(frozen=True)
class Law:
    """L = E + A/N^alpha + B/D^beta of one family, nats per token, with what `law.json` says about it."""

    family: str
    E: float
    A: float
    B: float
    alpha: float
    beta: float
    certificate: Json
    intervals: Json
    band: tuple[BandRow, ...]
    backtest: Json = field(default_factory=dict)  # of its own runs, or `why` there is none


@dataclass(frozen=True)
class Target:
    """A held-out run: what was forecast (nats per token) and, once trained, what was measured.

    `n` is the law's N; `n_params` every parameter, where the study recorded both.
    """

    run: str
    family: str
    flops: float
    n: float
    n_params: float | None
    tokens: float
    loss: float
    low: float | None
    high: float | None
    level: float | None
    warning: str | None
    measured: float | None
    bits_per_byte: float | None  # measured
    relative_error: float | None
    inside: bool | None
    made_at: str | None
    made_before_run: bool


@dataclass(frozen=True)
class Study:
    """Everything the report is made from."""

    folder: Path
    rows: tuple[RunRow, ...]
    laws: Mapping[str, Law]
    no_law: Mapping[str, str]  # family -> why it has no law that can be drawn
    targets: tuple[Target, ...]
    n_column: str  # which parameter count the law's N is
    n_presumed: bool  # nothing in the study says which, so `PRESUMED_N` is taken
    plan: Any
    dataset: Any
    study_toml: str | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def families(self) -> tuple[str, ...]:
        """Every family, in order of appearance."""
        seen = [row.family for row in self.rows] + list(self.laws) + [target.family for target in self.targets]
        return tuple(dict.fromkeys(seen))

    @property
    def asked(self) -> frozenset[str] | None:
        """The families of which the plan holds out runs; None where no plan says."""
        jobs = as_dict(as_dict(self.plan).get("plan")).get("jobs")
        if not isinstance(jobs, list):
            return None
        runs = [as_dict(run) for job in jobs for run in as_dict(job).get("runs") or []]
        return frozenset(str(run.get("family")) for run in runs if run.get("role") == "target")

    @property
    def done(self) -> tuple[RunRow, ...]:
        """The finished runs with a validation loss."""
        return tuple(row for row in self.rows if row.status == "done" and row.loss_valid is not None)

    def n(self, row: RunRow) -> float:
        """N of a run, under the law's convention."""
        return float(getattr(row, self.n_column))


def load(folder: Path) -> Study:
    """Read the study in `folder`; ValueError where it is no study directory or a file in it cannot be read."""
    if not folder.is_dir():
        raise ValueError(f"report: {folder} is not a directory: give a study directory, as `isoflop study` makes it")
    if not any((folder / name).exists() for name in ("study.toml", "plan.json", "runs.parquet")):
        raise ValueError(f"report: {folder} has no study.toml, plan.json or runs.parquet: not a study directory")
    rows = tuple(read_table(folder)) if (folder / "runs.parquet").exists() else ()
    laws, no_law = _laws(_json(folder / "law.json"), _only_family(rows))
    targets = _targets(_json(folder / "forecast.json"), folder / "forecast.json")
    column, presumed = _n_column(laws.values(), targets, rows)
    plan, dataset = _json(folder / "plan.json"), _json(folder / "data" / "dataset.json")
    return Study(folder, rows, laws, no_law, targets, column, presumed, plan, dataset, _text(folder / "study.toml"))


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else None


def _json(path: Path) -> Any:
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(path.read_bytes())
    except msgspec.DecodeError as error:
        raise ValueError(f"report: {path} is not valid JSON ({error}): remove it and run the study again") from error


def _only_family(rows: Iterable[RunRow]) -> str:
    families = list(dict.fromkeys(row.family for row in rows))
    return families[0] if len(families) == 1 else "all families"


def _laws(document: Any, only_family: str) -> tuple[dict[str, Law], dict[str, str]]:
    if not isinstance(document, dict):
        return {}, {}
    families = document.get("families")
    documents = families if isinstance(families, dict) else {document.get("family") or only_family: document}
    laws, no_law = {}, {}
    for family, entry in documents.items():
        law = _law(family, entry if isinstance(entry, dict) else {})
        if isinstance(law, Law):
            laws[family] = law
        else:
            no_law[family] = law
    return laws, no_law


def _law(family: str, document: Json) -> Law | str:
    """The law, or why there is none."""
    law = document.get("law")
    if not isinstance(law, dict):
        return str(document.get("why") or document.get("error") or "law.json holds no law")
    if law.get("form", FORMS[0]) not in FORMS:
        return f"its form is {law['form']!r}; this report draws {FORMS[0]}"
    constants = {name: number(law.get(name)) for name in ("E", "A", "B", "alpha", "beta")}
    absent = [name for name, value in constants.items() if value is None]
    if absent:
        return f"law.json has no finite {', '.join(absent)}"
    values = {name: value for name, value in constants.items() if value is not None}
    certificate, intervals = as_dict(document.get("certificate")), as_dict(document.get("intervals"))
    band, backtest = _band(document.get("band")), as_dict(document.get("backtest"))
    return Law(family=family, certificate=certificate, intervals=intervals, band=band, backtest=backtest, **values)


def _band(document: Any) -> tuple[BandRow, ...]:
    entries = document.get("rows") if isinstance(document, dict) else document
    rows = []
    for entry in entries if isinstance(entries, list) else []:
        flops, loss = number(entry.get("flops")), number(entry.get("loss"))
        if flops is None or loss is None:
            continue
        low, high, level = (number(entry.get(key)) for key in ("low", "high", "level"))
        n_ends, tokens_ends = (_ends(entry.get(key)) for key in ("n_interval", "tokens_interval"))
        tokens = number(entry.get("tokens"))
        rows.append(BandRow(flops, _law_n(entry), tokens, loss, low, high, level, n_ends, tokens_ends))
    return tuple(sorted(rows, key=lambda row: row.flops))


def _ends(interval: Any) -> tuple[float, float] | None:
    low, high = (number(as_dict(interval).get(key)) for key in ("low", "high"))
    return None if low is None or high is None else (low, high)


def _law_n(entry: Json) -> float | None:
    """The law's N: `n_params_matmul`, or `n_params` where an older study wrote only that."""
    return number(entry.get("n_params_matmul", entry.get("n_params")))


def _targets(document: Any, path: Path) -> tuple[Target, ...]:
    entries = document.get("targets") if isinstance(document, dict) else document
    targets = [_target(entry, path) for entry in entries or [] if as_dict(as_dict(entry).get("forecast"))]
    return tuple(sorted(targets, key=lambda target: target.flops))


def _target(entry: Json, path: Path) -> Target:
    forecast = entry["forecast"]
    numbers = {key: number(entry.get(key)) for key in ("flops_exact", "tokens")}
    numbers |= {"n_params_matmul": _law_n(entry), "forecast.loss": number(forecast.get("loss"))}
    for key, value in numbers.items():
        if value is None:
            raise ValueError(f"report: {path}: target {entry.get('run')!r} has no finite {key}")
    flops, tokens, n, loss = (value for value in numbers.values() if value is not None)
    low, high, level = (number(forecast.get(key)) for key in ("low", "high", "level"))
    warning, made_at, inside = forecast.get("warning"), entry.get("made_at"), entry.get("inside")
    return Target(
        run=str(entry.get("run")),
        family=str(entry.get("family", "")),
        flops=flops,
        n=n,
        n_params=number(entry.get("n_params")) if "n_params_matmul" in entry else None,
        tokens=tokens,
        loss=loss,
        low=low,
        high=high,
        level=level,
        warning=None if not warning else str(warning),
        measured=number(entry.get("measured")),
        bits_per_byte=number(entry.get("bits_per_byte")),
        relative_error=number(entry.get("relative_error")),
        inside=inside if isinstance(inside, bool) else None,
        made_at=None if made_at is None else str(made_at),
        made_before_run=entry.get("made_before_run") is not False,
    )


def _n_column(laws: Iterable[Law], targets: Iterable[Target], rows: Iterable[RunRow]) -> tuple[str, bool]:
    """Which column the law's N is: as its certificate says, else as the forecasts' N show; and whether presumed."""
    for law in laws:
        said = str(law.certificate.get("convention", "")).lower()
        for word, column in N_WORDS:
            if re.search(word, said):
                return column, False
    by_run = {row.run: row for row in rows}
    for target in targets:
        for column in N_COLUMNS:
            if target.run in by_run and getattr(by_run[target.run], column) == target.n:
                return column, False
    return PRESUMED_N, True


def number(value: Any) -> float | None:
    """A finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def as_dict(value: Any) -> Json:
    """A JSON object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}
