"""Tensors of one naming made from those of another, one at a time, in both directions."""

import math
import re
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from isoflop.architecture import Decoder
from isoflop.cost import parameters
from isoflop.model import DecoderModel
from isoflop.weights.folder import Entry, TensorFolder
from isoflop.weights.link import Link, Shape
from isoflop.weights.writer import Form

FEWEST_BITS = 2  # of a code

Links = Mapping[str, list[Link]]
Read = Callable[[str], Tensor]


def our_shapes(decoder: Decoder) -> dict[str, Shape]:
    """Shape of every tensor of the decoder's module, by name: its parameters and what else it keeps."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in DecoderModel(decoder).state_dict().items()}


def require_size(decoder: Decoder, folder: TensorFolder) -> None:
    """Raises ValueError where the architecture has far more parameters than the files hold numbers: a damaged or
    hostile description must not make us build what nobody has."""
    described, held = parameters(decoder).total, sum(map(_numbers, folder.entries.values()))
    if described > 2 * held:
        raise ValueError(f"{folder.folder}: the architecture has {described} parameters, the files hold {held} numbers")


def _numbers(entry: Entry) -> int:
    """How many weights an entry can hold: codes have at least two bits."""
    return math.prod(entry.shape) if entry.dtype.is_floating_point else entry.nbytes * 8 // FEWEST_BITS


def kept_in_full(name: str, shape: Shape) -> bool:
    """Vectors and decays of ours are small, and always float32: they are scales, offsets and exponents of all else."""
    return len(shape) < 2 or name.endswith(".A_log")


def our_form(name: str, shape: Shape, dtype: torch.dtype) -> Form:
    """What a tensor of ours is stored as where matrices are of type `dtype`."""
    return Form(torch.float32 if kept_in_full(name, shape) else dtype, shape)


def main_dtype(folder: TensorFolder) -> torch.dtype:
    """The type of most of the folder's numbers, codes apart."""
    sizes: dict[torch.dtype, int] = {}
    for entry in folder.entries.values():
        if entry.dtype.is_floating_point:
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + math.prod(entry.shape)
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


def to_ours(form: Form, links: list[Link], read: Read) -> Tensor:
    """One tensor of ours from those of theirs."""
    ours = torch.empty(form.shape, dtype=form.dtype)
    for link in links:
        theirs = read(link.theirs)
        for mine, their in link.pairs(ours, theirs):
            mine.copy_(their)
            if link.shift:
                mine += link.shift
    return ours


def to_theirs(
    form: Form, parts: list[tuple[str, Link]], read: Read, factor: Callable[[str], float] = lambda name: 1.0
) -> Tensor:
    """One tensor of theirs from those of ours that it has parts in, each multiplied by its factor."""
    theirs = torch.empty(form.shape, dtype=form.dtype)
    for ours, link in parts:
        f = factor(ours)
        for mine, their in link.pairs(read(ours), theirs):
            their.copy_(mine if f == 1.0 and not link.shift else mine * f - link.shift)
    return theirs


def inverted(links: Links) -> dict[str, list[tuple[str, Link]]]:
    """For each tensor of theirs, our tensors that have a part in it."""
    parts: dict[str, list[tuple[str, Link]]] = {}
    for ours, made_of in links.items():
        for link in made_of:
            parts.setdefault(link.theirs, []).append((ours, link))
    return parts


def check_names(folder: TensorFolder, expected: Mapping[str, Shape], ignored: Collection[str]) -> list[str]:
    """Raises ValueError naming the tensors that are missing, misshapen or too many; returns those that were there and
    passed over, which match a pattern of `ignored`."""
    entries, source = folder.entries, folder.folder
    missing = [name for name in expected if name not in entries]
    if missing:
        raise ValueError(f"{source}: {_named(missing)} missing")
    wrong = [name for name in expected if entries[name].shape != expected[name]]
    if wrong:
        name = wrong[0]
        shapes = f"has shape {list(entries[name].shape)}, the architecture wants {list(expected[name])}"
        more = f" (and {len(wrong) - 1} more are misshapen)" if len(wrong) > 1 else ""
        raise ValueError(f"{entries[name].file}: tensor '{name}' {shapes}{more}")
    extra = [name for name in entries if name not in expected]
    foreign = [name for name in extra if not any(re.fullmatch(pattern, name) for pattern in ignored)]
    if foreign:
        raise ValueError(f"{source}: {_named(foreign)} extra: no part of the architecture")
    return extra


def _named(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"tensor {shown} is" if len(names) == 1 else f"tensors {shown} are"


def fill(
    decoder: Decoder, dtype: torch.dtype, shapes: Mapping[str, Shape], make: Callable[[str, Form], Tensor]
) -> DecoderModel:
    """A model of the decoder whose tensors are made one after the other; matrices and activations are `dtype`. Memory
    that a new module asks for is not taken before it is written, so no more than one tensor is ever there twice."""
    model = DecoderModel(decoder, dtype)
    for name, shape in shapes.items():
        tensor = make(name, our_form(name, shape, dtype))
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        if last in module._parameters:
            setattr(module, last, torch.nn.Parameter(tensor))
        else:
            setattr(module, last, tensor)
    model.eval()
    return model
