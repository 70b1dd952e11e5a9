"""Prices and power: inputs with a date, a source, and three values, never constants."""

import datetime
import re
import tomllib
from functools import cache
from pathlib import Path

import msgspec

from isoflop.hardware.accelerator import Accelerator

_LISTED = Path(__file__).parent / "prices.toml"
_DATE = re.compile(r"\d{4}(-\d{2}){0,2}")
_FIRST = "1970-01-01"  # completes a year or a month


class Range(msgspec.Struct, frozen=True):
    """Low, middle and high of an input, as of a date (YYYY-MM), from a source."""

    low: float
    mid: float
    high: float
    date: str
    source: str

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.mid <= self.high:
            raise ValueError(f"{self.low:g}, {self.mid:g}, {self.high:g} must be low, middle and high, none below 0")
        if not _is_date(self.date):
            raise ValueError(f"date '{self.date}' must be a year, month or day, such as 2026-05")


def _is_date(text: str) -> bool:
    if not _DATE.fullmatch(text):
        return False
    try:
        datetime.date.fromisoformat(text + _FIRST[len(text) :])
    except ValueError:
        return False
    return True


# A device's share of all a system draws, over its maker's limit. Measured on whole systems: 0.9 times (OLMo 3, 0.62 to
# 0.65 kWh an H100-hour of 700 W) to 1.6 times (BLOOM, 0.637 kWh an A100-hour of 400 W, arXiv 2211.02001).
POWER = Range(0.9, 1.2, 1.6, "2025-11", "OLMo 3 report; BLOOM, arXiv 2211.02001: whole systems, over the devices' TDP")


def read_price(text: str) -> Range:
    """A price as typed: `2.5@2026-01`, or low, middle and high `1.9,2.4,3.1@2026-06`; US dollars a device hour. Raises
    ValueError in one line where it is none, or has no date."""
    numbers, at, date = text.partition("@")
    if not at:
        raise ValueError(f"price '{text}' has no date: prices move, so say when, as in '{text}@2026-01'")
    try:
        values = [float(number) for number in numbers.split(",")]
    except ValueError:
        raise ValueError(f"price '{text}': '{numbers}' is no number, and not three") from None
    if len(values) not in (1, 3):
        raise ValueError(f"price '{text}' has {len(values)} values; one, or low, middle and high")
    low, mid, high = values if len(values) == 3 else values * 3
    return Range(low, mid, high, date, "given")


class _Listed(msgspec.Struct):
    hardware: str
    range: tuple[float, float, float]
    date: str
    source: str


@cache
def listed_prices() -> dict[str, Range]:
    """Dollars a device hour that were offered at a date, by the accelerator's name."""
    entries = tomllib.loads(_LISTED.read_text(encoding="utf-8"))["price"]
    known = [msgspec.convert(entry, _Listed) for entry in entries]
    return {entry.hardware: Range(*entry.range, entry.date, entry.source) for entry in known}


def watts(hardware: Accelerator) -> Range | None:
    """Watts that a system draws for each of its devices; None where the maker states no limit."""
    if hardware.tdp_w is None:
        return None
    low, mid, high = (share * hardware.tdp_w for share in (POWER.low, POWER.mid, POWER.high))
    return Range(low, mid, high, POWER.date, POWER.source)
