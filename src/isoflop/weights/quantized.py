"""Matrices of few bits in a checkpoint: how they are described, and how they lie in the files. O d_out, I d_in,
G groups of a row, B bits of a code, E expert.

quantization.json says of each such matrix which format it has. In place of its tensor `NAME.weight` (of experts `NAME`,
a stack whose rows lie one expert after the other) the files hold

NAME.codes      uint8 [O, ceil(I B / 8)]: each row's codes, bit after bit, the lowest first
NAME.scales     [O, G]
NAME.zeros      uint8 [O, G], of asymmetric integers
NAME.order      int64 [I], where columns lie in another order than channels
NAME.in_scales  float32 [I], where the input is scaled first
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
from torch import Tensor

from isoflop.data.plain_json import read_json
from isoflop.model import DecoderModel
from isoflop.model.experts import MixtureOfExperts
from isoflop.model.linear import Linear
from isoflop.model.quantized import (
    DTYPES,
    Float8,
    Format,
    QuantizedLinear,
    QuantizedWeight,
    groups_of,
    pack_halves,
    unpack_halves,
)
from isoflop.weights.link import Shape
from isoflop.weights.writer import Form

QUANTIZATION = "quantization.json"
UNPACKED = 2**24  # bytes on the way from bits to codes
HEAD = "head.weight"  # of a tied table, the copy that multiplies


class Matrix(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One matrix: its format, and which of the tensors it has that not all have."""

    format: Format
    order: bool = False
    in_scales: bool = False


class Quantization(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """quantization.json. `weights` is by the name of the tensor that the codes stand for; `method` is in words."""

    version: Literal[1] = 1
    method: str
    weights: dict[str, Matrix]


def described(method: str, weights: Mapping[str, QuantizedWeight]) -> Quantization:
    """The description of matrices."""
    matrices = {
        name: Matrix(format=w.format, order=w.order is not None, in_scales=w.in_scales is not None)
        for name, w in weights.items()
    }
    return Quantization(method=method, weights=matrices)


def read_quantization(path: Path, shapes: Mapping[str, Shape], tied: bool) -> Quantization:
    """The description in a file. Raises ValueError where it is none, or names what is no matrix of the architecture."""
    try:
        found = msgspec.convert(read_json(path), Quantization)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path}: is no description of quantized weights: {error}") from None
    for name in found.weights:
        if not (tied and name == HEAD) and len(shapes.get(name, ())) not in (2, 3):
            raise ValueError(f"{path}: '{name[:80]}' is no matrix of this architecture")
    return found


def forms_of(name: str, matrix: Matrix, shape: Shape) -> dict[str, Form]:
    """What the files hold in place of the tensor `name` of that shape."""
    stem, (rows, d_in), f = stem_of(name), _rows(shape), matrix.format
    groups = groups_of(d_in, f.group)
    forms = {
        "codes": Form(torch.uint8, (rows, -(-d_in * f.bits // 8))),
        "scales": Form(DTYPES[f.scales], (rows, groups)),
    }
    if getattr(f, "symmetric", True) is False:
        forms["zeros"] = Form(torch.uint8, (rows, groups))
    if matrix.order:
        forms["order"] = Form(torch.int64, (d_in,))
    if matrix.in_scales:
        forms["in_scales"] = Form(torch.float32, (d_in,))
    return {f"{stem}.{part}": form for part, form in forms.items()}


def stem_of(name: str) -> str:
    """`NAME` of the tensor `NAME.weight`."""
    return name.removesuffix(".weight")


def _rows(shape: Shape) -> tuple[int, int]:
    """Rows and columns of the codes: an expert's matrix is kept [in, out], its codes by output."""
    return (shape[0], shape[1]) if len(shape) == 2 else (shape[0] * shape[2], shape[1])


def stored(part: str, weight: QuantizedWeight) -> Tensor:
    """A part of a matrix as it lies in the files."""
    tensor = weight.tensors()[part]
    if part == "codes":
        codes = tensor if weight.format.bits > 4 else unpack_halves(tensor)[:, : weight.d_in]
        return pack_bits(codes, weight.format.bits)
    return tensor.float() if part == "in_scales" else tensor


def restored(name: str, matrix: Matrix, shape: Shape, read: Callable[[str], Tensor]) -> QuantizedWeight:
    """A matrix from the files, in memory of its own. Raises ValueError where codes or order are such as nobody
    writes."""
    d_in = _rows(shape)[1]
    parts = {full.removeprefix(stem_of(name) + "."): read(full).clone() for full in forms_of(name, matrix, shape)}
    codes, bits = parts["codes"], matrix.format.bits
    if isinstance(matrix.format, Float8) and bool(((codes & 127) == 127).any()):
        raise ValueError(f"tensor '{stem_of(name)}.codes' holds a code that is no number")
    order = parts.get("order")
    if order is not None and not torch.equal(order.sort().values, torch.arange(d_in)):
        raise ValueError(f"tensor '{stem_of(name)}.order' is no order of {d_in} columns")
    if bits not in (4, 8):  # those lie in memory as in the files
        codes = _in_memory(codes, bits, d_in)
    return QuantizedWeight(
        matrix.format, d_in, codes, parts["scales"], parts.get("zeros"), order, parts.get("in_scales")
    )


def _in_memory(codes: Tensor, bits: int, d_in: int) -> Tensor:
    """Codes of the files as memory has them, a few rows at a time: on the way each bit takes a byte."""
    parts = (unpack_bits(rows, bits, d_in) for rows in codes.split(max(1, UNPACKED // (8 * d_in))))
    return torch.cat([pack_halves(part) if bits < 4 else part for part in parts])


def pack_bits(codes: Tensor, bits: int) -> Tensor:
    """uint8 [O, I] to [O, ceil(I bits / 8)]."""
    if bits == 8:
        return codes
    each = np.unpackbits(codes.numpy()[..., None], axis=-1, count=bits, bitorder="little")
    return torch.from_numpy(np.packbits(each.reshape(len(codes), -1), axis=-1, bitorder="little"))


def unpack_bits(packed: Tensor, bits: int, d_in: int) -> Tensor:
    """The inverse of pack_bits."""
    if bits == 8:
        return packed
    each = np.unpackbits(packed.numpy(), axis=-1, count=d_in * bits, bitorder="little")
    return torch.from_numpy(np.packbits(each.reshape(len(packed), d_in, bits), axis=-1, bitorder="little")[..., 0])


def dense(weight: QuantizedWeight, shape: Shape) -> Tensor:
    """What a matrix stands for, fp32, in the shape that the module's tensor has."""
    if len(shape) == 2:
        return weight.dense()
    return weight.dense().view(shape[0], shape[2], shape[1]).mT.contiguous()


def install(model: DecoderModel, weights: Mapping[str, QuantizedWeight]) -> None:
    """Put modules of codes where matrices were."""
    for name, weight in weights.items():
        if name == HEAD and model.head is None:
            model.head = QuantizedLinear(weight)
            continue
        path, _, last = name.rpartition(".")
        module = model.get_submodule(path)
        if isinstance(module, Linear):
            parent, _, own = path.rpartition(".")
            bias = None if module.bias is None else module.bias.detach()
            setattr(model.get_submodule(parent), own, QuantizedLinear(weight, bias))
        else:
            assert isinstance(module, MixtureOfExperts)
            module.quantize(last, weight)


def require_plain(model: DecoderModel, path: str) -> None:
    """Raises ValueError where a model has matrices of codes, which nothing can be learnt with."""
    if any(isinstance(module, QuantizedLinear) for module in model.modules()):
        raise ValueError(f"{path}: is quantized already; take the model that it was made from")
