"""One accelerator: what its maker states, what was measured on it, and what a name on a command line means."""

import difflib
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import msgspec

_FACTS = Path(__file__).parent / "accelerators.toml"
GIB = 2**30
# Of its nominal gigabytes a device leaves a program this many GiB each: HBM is sized in powers of two, and driver and
# context take two or three of a hundred.
_USABLE_GIB_A_GB = 0.98


class Accelerator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates of one device.

    `tflops`: dense peaks in 1e12 operations a second, by precision. `achieved`: the best measured bf16 product.
    `link_gb_s`, `network_gb_s`: gigabytes (1e9) a second, one direction, one device, to the `node` devices of its own
    node and to those beyond. `tdp_w`: watts a device may draw. `source` and `date` of the figures.
    """

    name: str
    vendor: str
    tflops: dict[str, float]
    memory_gb: float
    bandwidth_tb_s: float
    link_gb_s: float
    source: str
    date: str
    achieved: float | None = None
    usable_gib: float | None = None
    network_gb_s: float = 12.5
    node: int = 8
    tdp_w: float | None = None

    def peak(self, precision: str) -> float:
        """FLOP/s of dense products in a precision. Raises ValueError for one without a stated rate."""
        if precision not in self.tflops:
            raise ValueError(f"{self.name} has no stated {precision} rate; valid: {', '.join(self.tflops)}")
        return self.tflops[precision] * 1e12

    @property
    def training_precision(self) -> str:
        """The half precision it multiplies in: bf16, or what it has instead."""
        return "bf16" if "bf16" in self.tflops else next(iter(self.tflops))

    @property
    def bandwidth(self) -> float:
        """Bytes a second of its memory."""
        return self.bandwidth_tb_s * 1e12

    @property
    def usable_bytes(self) -> float:
        """Bytes of memory that a program may take."""
        return GIB * (self.usable_gib if self.usable_gib is not None else _USABLE_GIB_A_GB * self.memory_gb)

    @property
    def usable_is_measured(self) -> bool:
        return self.usable_gib is not None


@cache
def accelerators() -> dict[str, Accelerator]:
    """All that are known, by name."""
    entries: list[dict[str, Any]] = tomllib.loads(_FACTS.read_text(encoding="utf-8"))["accelerator"]
    known = [msgspec.convert(entry, Accelerator) for entry in entries]
    return {accelerator.name: accelerator for accelerator in known}


def find_accelerator(name: str) -> Accelerator:
    """The accelerator of that name: letter case, spaces and dashes do not matter, and the beginning of a name does if
    no other begins so. Raises ValueError in one line."""
    known = {_plain(full): accelerator for full, accelerator in accelerators().items()}
    wanted = _plain(name)
    if wanted in known:
        return known[wanted]
    begun = [accelerator for plain, accelerator in known.items() if wanted and plain.startswith(wanted)]
    if len(begun) == 1:
        return begun[0]
    if begun:
        raise ValueError(f"hardware '{name}' may mean {_listed(begun)}")
    likeness = {plain: difflib.SequenceMatcher(None, wanted, plain[: len(wanted)]).ratio() for plain in known}
    near = [known[plain] for plain in sorted(known, key=lambda p: -likeness[p])[:3] if wanted and likeness[plain] > 0.5]
    hint = f"the nearest are {_listed(near)}" if near else f"known: {_listed(list(known.values()))}"
    raise ValueError(f"hardware '{name}' is unknown; {hint}")


def _listed(some: list[Accelerator]) -> str:
    return ", ".join(f"'{accelerator.name}'" for accelerator in some)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())
