"""Bits where they matter: what each layer's matrices cost in loss at each format, and the choice under a budget.
U unit (a layer's mixer or feed-forward, or the table), F format."""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import LinearConstraint, milp

from isoflop.evaluate.windows import Windows
from isoflop.model import DecoderModel
from isoflop.model.quantized import DTYPES, Format, Integer, groups_of
from isoflop.quantize.measure import read
from isoflop.quantize.run import quantize_model
from isoflop.quantize.sites import Site, sites_of

Floats = NDArray[np.float64]


class Sensitivity(NamedTuple):
    """Nats a token by which the loss rises where one unit alone is rounded, [U, F], and bits that it then takes."""

    units: list[list[str]]  # names of sites
    formats: list[Format]
    nats_UF: Floats
    bits_UF: Floats
    weights_U: Floats


class Choice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a unit was given, and what its rounding alone costs in nats a token."""

    unit: str
    format: Format
    nats_alone: float


def mixed_formats(like: Format) -> list[Format]:
    """Integers to choose from, in the groups of `like`: zeros of their own cost a byte a group, and earn it at few
    bits or nowhere."""
    both = [(bits, symmetric) for bits in (2, 3, 4) for symmetric in (True, False)]
    kinds = [*both, (5, True), (6, True), (8, True)]
    return [Integer(bits=bits, group=like.group, scales=like.scales, symmetric=symmetric) for bits, symmetric in kinds]


def stored_bits(site: Site, format: Format) -> int:
    """Bits of a site's codes, scales and zeros."""
    n_experts, d_out, d_in = site.shape
    groups, zeros = groups_of(d_in, format.group), 8 if getattr(format, "symmetric", True) is False else 0
    scale: int = DTYPES[format.scales].itemsize
    row = 8 * -(-d_in * format.bits // 8) + groups * (8 * scale + zeros)
    return n_experts * d_out * row


def sensitivities(
    model: DecoderModel, formats: Sequence[Format], windows: Windows, tell: Callable[[int, int], None]
) -> Sensitivity:
    """Round each unit alone, to nearest, in each format, and read the text. A model, fp32 and untied, is left as it
    was. U * F + 1 readings."""
    units = _units(model)
    whole = read(model, windows).nats_WT.mean()
    nats_UF, bits_UF = np.zeros((2, len(units), len(formats)))
    sizes = {site.name: site for site in sites_of(model)}
    for u, names in enumerate(units):
        for f, format in enumerate(formats):
            tried = copy.deepcopy(model)
            quantize_model(tried, dict.fromkeys(names, format), "rtn")
            nats_UF[u, f] = read(tried, windows).nats_WT.mean() - whole
            bits_UF[u, f] = sum(stored_bits(sizes[name], format) for name in names)
            tell(u * len(formats) + f + 1, nats_UF.size)
    weights_U = np.array([float(sum(np.prod(sizes[name].shape) for name in names)) for names in units])
    return Sensitivity(units, list(formats), nats_UF, bits_UF, weights_U)


def require_room(sites: Sequence[Site], formats: Sequence[Format], bits_per_weight: float) -> None:
    """Raises ValueError where even each site's smallest format takes more bits a weight, scales counted."""
    weights = sum(int(np.prod(site.shape)) for site in sites)
    least = sum(min(stored_bits(site, format) for format in formats) for site in sites) / weights
    if least > bits_per_weight:
        raise ValueError(
            f"--bits-per-weight {bits_per_weight:g}: the smallest formats take {least:.3f}, scales counted"
        )


def cheapest(found: Sensitivity, bits_per_weight: float) -> dict[str, Format]:
    """The formats, by site, whose summed rises are least among those that take at most so many bits a weight, scales
    counted (`require_room`): an integer program, solved exactly. That rises add up is an assumption."""
    n_units, n_formats = found.nats_UF.shape
    budget = bits_per_weight * found.weights_U.sum()
    one_each = LinearConstraint(np.kron(np.eye(n_units), np.ones(n_formats)), 1, 1)
    within = LinearConstraint(found.bits_UF.ravel()[None], 0, budget)
    costs = np.maximum(found.nats_UF, 0).ravel() + 1e-12 * found.bits_UF.ravel()
    solved = milp(costs, constraints=[one_each, within], integrality=np.ones(costs.size), bounds=(0, 1))
    assert solved.x is not None, solved.message
    best_U = solved.x.reshape(n_units, n_formats).argmax(1)
    return {name: found.formats[f] for names, f in zip(found.units, best_U, strict=True) for name in names}


def choices(found: Sensitivity, chosen: Mapping[str, Format]) -> list[Choice]:
    """The choice as a list, a unit each."""
    made = []
    for names, nats_F in zip(found.units, found.nats_UF, strict=True):
        format = chosen[names[0]]
        made.append(Choice(unit=_unit(names[0]), format=format, nats_alone=float(nats_F[found.formats.index(format)])))
    return made


def _units(model: DecoderModel) -> list[list[str]]:
    units: dict[str, list[str]] = {}
    for site in sites_of(model):
        units.setdefault(_unit(site.name), []).append(site.name)
    return list(units.values())


def _unit(name: str) -> str:
    """`layers.3.mixer` of `layers.3.mixer.qkv.weight`."""
    return ".".join(name.split(".")[:3]) if name.startswith("layers.") else name.split(".")[0]
