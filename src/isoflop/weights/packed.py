"""Quantized weights as GPTQ and AWQ checkpoints hold them. O d_out, I d_in, G groups, P codes of a 32-bit word.

A matrix NAME.weight is there as words of codes, NAME.qweight; words of zeros, NAME.qzeros; NAME.scales [G, O]; and, of
GPTQ, NAME.g_idx [I], the group of each channel. Every weight is scale * (code - zero).

GPTQ  qweight [I / P, O], channels of a word from its low bits up; qzeros [G, O / P] likewise by output, each less one
      in the first version of the format ("gptq"), as it is in the second ("gptq_v2")
AWQ   qweight [I, O / 8], qzeros [G, O / 8]; nibble i of a word holds output NIBBLES[i] of its eight ("gemm")
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from isoflop.model.quantized import Integer, QuantizedWeight, Scales, groups_of, pack_halves, spread
from isoflop.weights.folder import Entry, TensorFolder
from isoflop.weights.link import Link, Shape

NIBBLES = (0, 2, 4, 6, 1, 3, 5, 7)
SCALES: dict[torch.dtype, Scales] = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
PARTS = ("qweight", "qzeros", "scales", "g_idx")


class Layout(NamedTuple):
    """How a checkpoint's codes are packed; `less` is what zeros are stored less by, `group` 0 where rows are whole."""

    method: Literal["gptq", "awq"]
    bits: int
    group: int
    less: int


def layout_of(keys: Any, path: Path) -> Layout:
    """What `quantization_config` says. Raises ValueError where it is a method or layout that is not read."""
    told = f"{path}: quantization_config"
    method = keys.get("quant_method") if isinstance(keys, Mapping) else None
    if method not in ("gptq", "awq"):
        raise ValueError(
            f"{told}: quantized weights are not read of method {str(method)[:40]!r}, only of gptq, awq and torchao"
        )
    bits, group = keys.get("bits", keys.get("w_bit")), keys.get("group_size", keys.get("q_group_size"))
    form = keys.get("version", "gemm") if method == "awq" else keys.get("checkpoint_format", "gptq")
    forms, widths = (("gemm",), (4,)) if method == "awq" else (("gptq", "gptq_v2"), (2, 4, 8))
    if type(bits) is not int or bits not in widths:
        raise ValueError(f"{told}: bits {str(bits)[:40]} of {method} are not read, only {', '.join(map(str, widths))}")
    if str(form).lower() not in forms:
        raise ValueError(f"{told}: the {method} layout {str(form)[:40]!r} is not read, only {', '.join(forms)}")
    if type(group) is not int or not (group == -1 or group > 0):
        raise ValueError(f"{told}: group_size {str(group)[:40]} is neither above 0 nor -1, for whole rows")
    return Layout(method, bits, max(group, 0), 1 if form == "gptq" else 0)


class Coded(NamedTuple):
    """A matrix of codes [O, I], scales and zeros [O, G]; `group` is 0 where rows are whole, `order` None where channels
    lie in order."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor
    order: Tensor | None
    bits: int
    group: int


class CodedFolder(Protocol):
    """A folder some of whose matrices NAME.weight are codes."""

    def coded(self, stem: str) -> Coded | None:
        """The matrix `stem`.weight in codes, or None where it is not in codes, or not in such as ours."""
        ...


class PackedFolder(TensorFolder):
    """A folder whose packed matrices are seen as NAME.weight, of the type of their scales: read, they are what the
    codes stand for. Shapes are held against the layout before anything is read. Raises ValueError."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        super().__init__(folder, codes=True)
        self.layout = layout
        self.packed: dict[str, dict[str, Entry]] = {}
        stems = [name.removesuffix(".qweight") for name in self.entries if name.endswith(".qweight")]
        for stem in stems:
            self._see(stem)
        whole = next((entry for entry in self.entries.items() if not entry[1].dtype.is_floating_point), None)
        if whole is not None:
            raise ValueError(
                f"{whole[1].file}: tensor '{whole[0]}' is of whole numbers and belongs to no packed matrix"
            )

    def read(self, name: str) -> Tensor:
        """A tensor; of a packed matrix, what its codes stand for."""
        stem = name.removesuffix(".weight")
        if stem not in self.packed or name == stem:
            return super().read(name)
        coded = self.coded(stem)
        assert coded is not None
        return dense(coded)

    def coded(self, stem: str) -> Coded | None:
        """A packed matrix. Raises ValueError where its channels' groups are not of the size that is declared."""
        if stem not in self.packed:
            return None
        layout = self.layout
        words, zero_words, scales_GO = (self._part(stem, part) for part in PARTS[:3])
        if layout.method == "awq":
            codes_OI, zeros_OG = _unpacked_awq(words).T, _unpacked_awq(zero_words).T
        else:
            codes_OI, zeros_GO = _unpacked(words.T, layout.bits), _unpacked(zero_words, layout.bits)
            zeros_OG = zeros_GO[:, : codes_OI.shape[0]].T
        order = _order(self._part(stem, "g_idx"), layout.group, stem) if "g_idx" in self.packed[stem] else None
        codes_OI = codes_OI if order is None else codes_OI[:, order]
        zeros_OG, scales_OG = (zeros_OG + layout.less).contiguous(), scales_GO.T.contiguous()
        return Coded(codes_OI.contiguous(), scales_OG, zeros_OG, order, layout.bits, layout.group)

    def _part(self, stem: str, part: str) -> Tensor:
        return self._read(f"{stem}.{part}", self.packed[stem][part]).clone()

    def _see(self, stem: str) -> None:
        found = {part: self.entries[f"{stem}.{part}"] for part in PARTS if f"{stem}.{part}" in self.entries}
        missing = [part for part in PARTS[:3] if part not in found]
        if missing:
            raise ValueError(f"{self.folder}: tensor '{stem}.{missing[0]}' is missing")
        shape = _require_shapes(stem, found, self.layout)
        if f"{stem}.weight" in self.entries:
            raise ValueError(f"{self.folder}: tensor '{stem}.weight' is there twice, packed and not")
        for part in found:
            del self.entries[f"{stem}.{part}"]
        self.packed[stem] = found
        self.entries[f"{stem}.weight"] = found["scales"]._replace(shape=shape)


def dense(coded: Coded) -> Tensor:
    """What codes stand for, fp32 [O, I]."""
    group, d_in = coded.group, coded.codes.shape[1]
    zeros, scales = spread(coded.zeros.float(), group, d_in), spread(coded.scales.float(), group, d_in)
    dense_OI = (coded.codes.float() - zeros) * scales
    return dense_OI if coded.order is None else torch.empty_like(dense_OI).index_copy_(1, coded.order, dense_OI)


def _require_shapes(stem: str, found: Mapping[str, Entry], layout: Layout) -> tuple[int, int]:
    """d_out and d_in. Raises ValueError where shapes or types do not go together."""
    words, per = found["qweight"].shape, 32 // layout.bits
    if len(words) != 2:
        raise ValueError(
            f"{found['qweight'].file}: tensor '{stem}.qweight' has shape {list(words)}, and no two dimensions"
        )
    d_in, d_out = (words[0] * per, words[1]) if layout.method == "gptq" else (words[0], words[1] * per)
    groups = groups_of(d_in, layout.group)
    expected: dict[str, Shape] = {
        "qweight": words,
        "qzeros": (groups, -(-d_out // per)),
        "scales": (groups, d_out),
        "g_idx": (d_in,),
    }
    for part, entry in found.items():
        if entry.shape != expected[part]:
            shapes = f"has shape {list(entry.shape)}, the layout wants {list(expected[part])}"
            raise ValueError(f"{entry.file}: tensor '{stem}.{part}' {shapes}")
        if entry.dtype not in (SCALES if part == "scales" else (torch.int32,)):
            raise ValueError(f"{entry.file}: tensor '{stem}.{part}' is {entry.dtype}, which it cannot be")
    return d_out, d_in


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """[..., W] int32 to [..., W * 32 / bits] uint8, from the low bits up."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((words[..., None] >> shifts) & (2**bits - 1)).to(torch.uint8).flatten(-2)


def _unpacked_awq(words: Tensor) -> Tensor:
    nibbles = _unpacked(words, 4).unflatten(-1, (-1, 8))
    outputs = torch.empty_like(nibbles)
    outputs[..., list(NIBBLES)] = nibbles
    return outputs.flatten(-2)


def _order(groups_I: Tensor, group: int, stem: str) -> Tensor | None:
    """The channels group by group, or None where they lie so."""
    expected_I = torch.arange(len(groups_I)) // (group or len(groups_I))
    order_I = groups_I.argsort(stable=True)
    if not torch.equal(groups_I[order_I].long(), expected_I):
        raise ValueError(f"tensor '{stem}.g_idx': its groups are not of {group or len(groups_I)} channels each")
    return None if torch.equal(groups_I.long(), expected_I) else order_I


def matrix_from(shape: Shape, links: list[Link], folder: CodedFolder) -> QuantizedWeight | None:
    """Our matrix of that shape, or stack of experts, from the packed ones that make it: the same codes. None where one
    of them is not packed, or where their channels lie in different orders: then only what they stand for is kept."""
    if any(link.shift for link in links):
        return None
    parts: list[Coded] = []
    for link in links:
        part = folder.coded(link.theirs.removesuffix(".weight"))
        if part is None or not _goes_with(part, parts[0] if parts else part):
            return None
        parts.append(part)
    joined = [_joined(shape, links, [part[field] for part in parts]) for field in range(3)]
    (codes, scales, zeros), first = joined, parts[0]
    symmetric = bool((zeros == 2 ** (first.bits - 1)).all())
    format = Integer(bits=first.bits, group=first.group, scales=SCALES[scales.dtype], symmetric=symmetric)
    packed = pack_halves(codes) if first.bits <= 4 else codes
    return QuantizedWeight(format, codes.shape[1], packed, scales, None if symmetric else zeros, first.order)


def _goes_with(a: Coded, b: Coded) -> bool:
    alike = (a.bits, a.group, a.scales.dtype) == (b.bits, b.group, b.scales.dtype)
    return alike and _same_order(a.order, b.order)


def _same_order(a: Tensor | None, b: Tensor | None) -> bool:
    return (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))


def _joined(shape: Shape, links: list[Link], parts: list[Tensor]) -> Tensor:
    """Rows of ours, [O, X], of theirs, each [O', X]: links move rows, and what lies in them does not matter."""
    n_columns = parts[0].shape[1]
    if len(shape) == 2:
        ours = parts[0].new_empty(shape[0], n_columns)
    else:
        ours = parts[0].new_empty(shape[0], n_columns, shape[2])
    for link, part in zip(links, parts, strict=True):
        for mine, their in link.pairs(ours, part):
            mine.copy_(their)
    return ours if len(shape) == 2 else ours.mT.reshape(-1, n_columns)
