"""Where a plan's laws come from: presets by name, and the studies, law documents and tables of runs on disk."""

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from isoflop.cost.quantity import Source
from isoflop.decide.belief import Average, Convention, Law, Published
from isoflop.decide.question import LawChoice
from isoflop.decide.vouched import SOUND, certified, doubts
from isoflop.laws.expression import Evaluator
from isoflop.laws.forms import Array
from isoflop.laws.presets import PRESETS, Preset, preset_named
from isoflop.laws.soundness import Soundness

if TYPE_CHECKING:
    from isoflop.decide.told import Told

BOWL = 0.005  # of the pretended loss of a law that only allocates, by the square of log N over its best
STATES: dict[str, Source] = {"reproduced": "fitted", "primary": "fitted", "secondary": "assumed"}


def average(choices: tuple[LawChoice, ...], family: str) -> tuple[Average, bool]:
    """The laws that speak for a family, and whether they are its own. Raises ValueError for a law that cannot plan."""
    own = tuple(choice for choice in choices if choice.family == family)
    chosen = own or tuple(choice for choice in choices if choice.family is None)
    laws = [_law(choice, family) for choice in chosen]
    if len({law.told for law in laws}) > 1:
        names = ", ".join(f"{law.name} ({'a loss' if law.told else 'an allocation'})" for law in laws)
        raise ValueError(f"--law: laws of a loss and laws of an allocation cannot be averaged: {names}")
    total = sum(choice.weight for choice in chosen)
    weights = tuple(choice.weight / total for choice in chosen)
    is_own = bool(own) or all(law.name.endswith(f" ({family})") for law in laws)
    return Average(tuple(laws), weights), is_own


def _law(choice: LawChoice, family: str) -> Law:
    path = Path(choice.name)
    if choice.name in {preset.name for preset in PRESETS} or not (path.exists() or "/" in choice.name or path.suffix):
        return _preset(choice.name)
    if not path.exists():
        raise ValueError(f"--law {choice.name}: no such file; give a study, a law.json, a table of runs, or a preset")
    table = path / "runs.csv" if path.is_dir() else path
    if path.is_dir() and not table.exists():
        raise ValueError(f"--law {path}: has no runs.csv; a study's directory has one once a run has finished")
    stamp = tuple(number for file in (table, table.with_name("law.json")) if file.exists() for number in _stat(file))
    families = _families(table, stamp)
    speaker = family if family in families else "dense" if "dense" in families else next(iter(families), None)
    return _from_file(choice, table, speaker, stamp)


def _stat(file: Path) -> tuple[int, int]:
    return file.stat().st_mtime_ns, file.stat().st_size


@lru_cache(maxsize=64)
def _families(path: Path, _stamp: tuple[int, ...]) -> tuple[str, ...]:
    """Families of which a file holds a law each; none where it holds one law."""
    if path.suffix == ".json":
        return tuple(_read(path).get("families", {}))
    from isoflop.decide.told import families_of

    return families_of(path)


@lru_cache(maxsize=64)
def _from_file(choice: LawChoice, table: Path, family: str | None, _stamp: tuple[int, ...]) -> Law:
    if table.suffix == ".json":
        return _document(choice, table, family)
    from isoflop.decide.told import told_by

    told: Told = told_by(choice, table, family, _known(table, family))
    return told


@lru_cache(maxsize=64)
def _preset(name: str) -> Law:
    preset = preset_named(name)
    if preset.unit == "other":
        return _allocation(preset)
    constants = {key: np.array(value) for key, value in preset.parameters.items()}
    expression = preset.as_formula().expression

    def value(n_m: Array, d_m: Array) -> Array:
        columns = {"N": n_m, "D": d_m, "C": 6 * n_m * d_m, "m": d_m / n_m, "U": d_m, "UN": n_m}
        told: Array = Evaluator(columns, constants)(expression)
        return told

    unknown = [column for column in preset.columns if column not in ("N", "D", "C", "m", "U", "UN")]
    if unknown or len(preset.columns) < 2:
        raise ValueError(
            f"--law {name}: is of {', '.join(preset.columns)}; a plan needs a loss of N and D, such as besiroglu-2024"
        )
    most = (preset.fitted["N"][1], preset.fitted["D"][1]) if {"N", "D"} <= set(preset.fitted) else None
    return Published(name, _convention(preset.convention), STATES[preset.status], value, most)


def _allocation(preset: Preset) -> Law:
    """A law of the best N or D at a budget: a bowl whose bottom lies there, which is no loss."""
    tokens, parameters = preset.units.startswith("tokens, of C"), preset.units.startswith("parameters, of C")
    if not (tokens or parameters):
        raise ValueError(f"--law {preset.name}: gives {preset.units}; a plan needs a loss, or the best N or D, of C")
    coefficient, power = preset.parameters["K"], preset.parameters["a"]

    def value(n_m: Array, d_m: Array) -> Array:
        best = coefficient * (6 * n_m * d_m) ** power
        return np.asarray(np.exp(BOWL * np.log((d_m if tokens else n_m) / best) ** 2))

    most = preset.fitted["C"][1] / 6 if "C" in preset.fitted else 1e22 / 6
    return Published(preset.name, _convention(preset.convention), STATES[preset.status], value, (most, 1.0), told=False)


def _convention(words: str) -> Convention:
    """What N counts, from how a preset says it."""
    if "without embeddings" in words:
        return "non_embedding"
    return "matmul" if "with the head" in words else "total"


def _read(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError as error:  # or no object
        raise ValueError(f"--law {path}: is no law.json: {error}") from None


def _known(table: Path, family: str | None) -> Soundness:
    """The verdict of the law.json beside a study's runs."""
    law = table.with_name("law.json")
    if table.name != "runs.csv" or not law.exists():
        return SOUND
    document = _read(law)
    return certified(document.get("families", {}).get(family, document))


def _document(choice: LawChoice, path: Path, family: str | None) -> Law:
    """A law.json: its constants, of a family where it has several."""
    document = _read(path)
    own = ""
    if family is not None:
        document, own = document["families"][family], f" ({family})"
    law = document.get("law")
    wanted = ("E", "A", "B", "alpha", "beta")
    if not isinstance(law, dict) or any(not isinstance(law.get(key), float | int) for key in wanted):
        raise ValueError(f"--law {path}: holds no law of {', '.join(wanted)}; `isoflop fit --out` and studies write it")
    E, A, B, alpha, beta = (float(law[key]) for key in wanted)

    def value(n_m: Array, d_m: Array) -> Array:
        return np.asarray(E + A * n_m**-alpha + B * d_m**-beta)

    certificate = document.get("certificate", {})
    ranges = certificate.get("ranges", {})
    most = (ranges["n"]["high"], ranges["d"]["high"]) if {"n", "d"} <= set(ranges) else None
    words = certificate.get("convention", "")
    convention: Convention = "matmul" if "matmul" in words else "non_embedding" if "without" in words else "total"
    doubtful = doubts(choice, f"{path}{own}", certified(document))
    return Published(f"{path}{own}", convention, "fitted", value, most, doubts=doubtful)
