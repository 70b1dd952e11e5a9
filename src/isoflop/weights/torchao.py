"""Quantized weights as torchao's safetensors hold them. O d_out, I d_in, G groups of a row.

The header's `__metadata__` has `tensor_names` and, by the name of each tensor, JSON that says which class it had and
with what attributes; the tensors of NAME.weight are NAME._weight_qdata, NAME._weight_scale, NAME._weight_zero_point.

IntxUnpackedToInt8Tensor  qdata int8 [O, I], scale and zero_point [O, G]; a weight is scale * (code - zero)
Int8Tensor                the same at 8 bits; a scale of a row, of a group, or of all; zero_point is optional
Int4Tensor                qdata [O, I / 2], two signed codes a byte, the even column low; scale and zero_point [G, O];
                          a weight is scale * code + zero, and so nothing that our codes can say: it is kept as what it
                          stands for

The classes that hold a kernel's order (tiles for one GPU) and those of other number formats are refused by name, and so
are scales of the input. Inputs that torchao would round stay as they are.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from isoflop.model.quantized import spread, unpack_halves
from isoflop.weights.folder import DTYPES, Entry, TensorFolder, metadata_of
from isoflop.weights.packed import SCALES, Coded, dense

PARTS = ("qdata", "scale", "zero_point")
KINDS = ("IntxUnpackedToInt8Tensor", "Int8Tensor", "Int4Tensor")
BITS = {f"int{bits}": bits for bits in range(2, 9)}
WHOLE = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}


class Matrix(NamedTuple):
    """A matrix in codes: its class, bits, shape [O, I], the rows and columns that share a scale, and its tensors."""

    kind: str
    bits: int
    shape: tuple[int, int]
    block: tuple[int, int]
    parts: dict[str, Entry]


class TorchaoFolder(TensorFolder):
    """A folder whose quantized matrices are seen as NAME.weight, of the type that they stand for: read, they are what
    their codes stand for. What the metadata say is held against the tensors before any is read. Raises ValueError."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, codes=True)
        self.matrices: dict[str, Matrix] = {}
        for file in sorted({entry.file for entry in self.entries.values()}):
            for name, told in _told(file).items():
                self._see(name, told, file)
        for name, entry in self.entries.items():
            if not entry.dtype.is_floating_point:
                raise ValueError(f"{entry.file}: tensor '{name}' is of whole numbers and belongs to no torchao matrix")

    def read(self, name: str) -> Tensor:
        """A tensor; of a quantized matrix, what its codes stand for."""
        matrix = self.matrices.get(name)
        if matrix is None:
            return super().read(name)
        coded = self.coded(name.removesuffix(".weight"))
        return dense(coded) if coded is not None else self._dense_with_whole_zeros(name, matrix)

    def coded(self, stem: str) -> Coded | None:
        """A matrix in codes such as ours. Raises ValueError where a code or a zero is none of its bits."""
        name = f"{stem}.weight"
        matrix = self.matrices.get(name)
        if matrix is None or not _has_codes_of_ours(matrix):
            return None
        middle, (d_out, d_in) = 2 ** (matrix.bits - 1), matrix.shape
        codes_OI = self._checked(name, "qdata", matrix).add(middle).to(torch.uint8)
        scales_OG = self._part(name, "scale", matrix).expand(d_out, -1).contiguous()
        if "zero_point" in matrix.parts:
            zeros_OG = self._checked(name, "zero_point", matrix).add(middle).to(torch.uint8).expand(d_out, -1)
        else:
            zeros_OG = torch.full_like(scales_OG, middle, dtype=torch.uint8)
        group = matrix.block[1] % d_in
        return Coded(codes_OI, scales_OG, zeros_OG.contiguous(), None, matrix.bits, group)

    def _dense_with_whole_zeros(self, name: str, matrix: Matrix) -> Tensor:
        """Of zeros that are no codes, fp32 [O, I]."""
        d_out, d_in = matrix.shape
        scale, zero = (self._part(name, part, matrix).float() for part in PARTS[1:])
        if matrix.kind == "Int4Tensor":
            halves = unpack_halves(self._part(name, "qdata", matrix).view(torch.uint8))
            codes = (halves ^ 8).float() - 8  # from two's complement
            return codes * spread(scale.T, matrix.block[1], d_in) + spread(zero.T, matrix.block[1], d_in)
        codes = self._checked(name, "qdata", matrix).float()
        scale, zero = (spread(x.expand(d_out, -1), matrix.block[1], d_in) for x in (scale, zero))
        return (codes - zero) * scale

    def _part(self, name: str, part: str, matrix: Matrix) -> Tensor:
        return self._read(_part_name(name, part), matrix.parts[part]).clone()

    def _checked(self, name: str, part: str, matrix: Matrix) -> Tensor:
        """Whole numbers of as many bits as there should be, int16."""
        tensor, middle = self._part(name, part, matrix).short(), 2 ** (matrix.bits - 1)
        if int(tensor.min()) < -middle or int(tensor.max()) >= middle:
            raise ValueError(f"{self.folder}: tensor '{_part_name(name, part)}' holds what {matrix.bits} bits cannot")
        return tensor

    def _see(self, name: str, told: dict[str, Any], file: Path) -> None:
        kind = told.get("_type")
        if kind == "Tensor" or not isinstance(kind, str):
            return
        if kind not in KINDS:
            why = f"tensor '{name[:80]}' is a torchao {kind[:40]!r}, which is not read, only {', '.join(KINDS)}"
            raise ValueError(f"{file}: {why}")
        attributes = told.get("_data")
        attributes = attributes if isinstance(attributes, dict) else {}
        found = {part: self.entries.get(_part_name(name, part)) for part in PARTS}
        entries = {part: entry for part, entry in found.items() if entry is not None}
        scaled = next((n for n in ("act_pre_scale", "act_quant_scale") if _part_name(name, n) in self.entries), None)
        if scaled is not None:
            raise ValueError(f"{file}: tensor '{_part_name(name, scaled)[:80]}' scales inputs, which is not read")
        matrix = _matrix(name, kind, attributes, entries, file)
        if name in self.entries:
            raise ValueError(f"{file}: tensor '{name}' is there twice, in codes and not")
        for part in entries:
            del self.entries[_part_name(name, part)]
        self.matrices[name] = matrix
        dtype = WHOLE.get(_tagged(attributes.get("dtype")), entries["scale"].dtype)
        self.entries[name] = entries["scale"]._replace(shape=matrix.shape, dtype=dtype)


def _has_codes_of_ours(matrix: Matrix) -> bool:
    zero = matrix.parts.get("zero_point")
    return matrix.kind != "Int4Tensor" and (zero is None or zero.dtype == torch.int8)


def _part_name(name: str, part: str) -> str:
    stem, _, last = name.rpartition(".")
    return f"{stem}._{last}_{part}"


def _told(file: Path) -> dict[str, dict[str, Any]]:
    """What the metadata say of each tensor. Raises ValueError where they are not torchao's."""
    metadata = metadata_of(file)
    try:
        names = json.loads(metadata.get("tensor_names", "null"))
        told = {name: json.loads(metadata[name]) for name in names}
    except (TypeError, KeyError, ValueError, RecursionError):
        raise ValueError(f"{file}: quant_method is torchao, but the header says nothing of its tensors") from None
    if not all(isinstance(each, dict) for each in told.values()):
        raise ValueError(f"{file}: the header's metadata are not torchao's")
    return told


def _tagged(value: Any) -> str:
    """The name in torchao's {"_type": "torch.dtype", "_data": name}."""
    return str(value.get("_data")) if isinstance(value, dict) else ""


def _matrix(name: str, kind: str, attributes: dict[str, Any], parts: dict[str, Entry], file: Path) -> Matrix:
    """Raises ValueError where shapes, types and attributes do not go together."""
    told = f"{file}: tensor '{name[:80]}'"
    needed = PARTS[:2] if kind == "Int8Tensor" else PARTS
    missing = next((part for part in needed if part not in parts), None)
    if missing is not None:
        raise ValueError(f"{told}: its {missing} is missing")
    shape = parts["qdata"].shape
    if len(shape) != 2 or not name.endswith(".weight"):
        raise ValueError(f"{told}: codes of shape {list(shape)} are not read, only matrices")
    d_out, d_in = (shape[0], 2 * shape[1]) if kind == "Int4Tensor" else shape
    target = _tagged(attributes.get("target_dtype")) if kind == "IntxUnpackedToInt8Tensor" else ""
    if target and target not in BITS:
        raise ValueError(f"{told}: codes of {target[:40]} are not read, only {', '.join(BITS)}")
    bits = BITS[target] if target else (4 if kind == "Int4Tensor" else 8)
    block = _block(attributes.get("block_size"), d_out, d_in, told)
    if kind == "Int4Tensor" and block[0] != 1:
        raise ValueError(f"{told}: block_size {list(block)} is not read, only groups of a row")
    matrix = Matrix(kind, bits, (d_out, d_in), block, parts)
    _require_forms(matrix, told)
    return matrix


def _block(value: Any, d_out: int, d_in: int, told: str) -> tuple[int, int]:
    whole = isinstance(value, list) and len(value) == 2 and all(type(n) is int and n > 0 for n in value)
    if not whole or value[0] not in (1, d_out) or d_in % value[1]:
        raise ValueError(f"{told}: block_size {str(value)[:40]} does not divide {[d_out, d_in]} by rows or groups")
    return value[0], value[1]


def _require_forms(matrix: Matrix, told: str) -> None:
    (d_out, d_in), (rows, columns) = matrix.shape, matrix.block
    grid = (d_out // rows, d_in // columns)
    grid = (grid[1], grid[0]) if matrix.kind == "Int4Tensor" else grid
    bytes_ = (torch.int8, torch.uint8) if matrix.kind == "Int4Tensor" else (torch.int8,)
    zeros = tuple(SCALES) if matrix.kind == "Int4Tensor" else (torch.int8, *SCALES)
    for part, dtypes in (("qdata", bytes_), ("scale", tuple(SCALES)), ("zero_point", zeros)):
        entry = matrix.parts.get(part)
        if entry is None:
            continue
        if part != "qdata" and entry.shape != grid:
            raise ValueError(f"{told}: its {part} has shape {list(entry.shape)}, block_size wants {list(grid)}")
        if entry.dtype not in dtypes:
            raise ValueError(f"{told}: its {part} is {entry.dtype}, which it cannot be")
