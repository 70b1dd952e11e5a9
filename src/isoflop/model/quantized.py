"""Weights of few bits: how they are described, what they stand for, and the linear map over them.

O d_out, I d_in, G groups of a row (of `group` columns each, the last one perhaps fewer). Codes lie in the order of the
columns as they were quantised; codes of up to 4 bits share a byte, column 2 i in its low half.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop.architecture.base import Description
from isoflop.model.kernels import quantized as kernels
from isoflop.model.kernels.rows import unrecorded
from isoflop.model.linear import Linear

Scales = Literal["fp16", "bf16", "fp32"]
DTYPES: dict[Scales, torch.dtype] = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

# The 16 values of NormalFloat: quantiles of a normal distribution, and zero (Dettmers et al. 2023, arXiv 2305.14314,
# appendix E).
NORMAL_FLOAT = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
)
FLOAT8_MAX = 448.0  # of e4m3


class _Grouped(Description, frozen=True):
    group: int = 0  # columns that share a scale; 0: all of a row
    scales: Scales = "fp16"

    def __post_init__(self) -> None:
        if self.group < 0:
            raise ValueError(f"group = {self.group} must be at least 1, or 0 for whole rows")


class Integer(_Grouped, frozen=True, tag="integer"):
    """scale * (code - zero), codes of 2 to 8 bits; zero is half their range where `symmetric`, else the group's own."""

    bits: int = 4
    symmetric: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bits <= 8:
            raise ValueError(f"bits = {self.bits} must be 2 to 8")


class NormalFloat(_Grouped, frozen=True, tag="normal-float"):
    """scale * NORMAL_FLOAT[code]: 4 bits."""

    @property
    def bits(self) -> int:
        return 4


class Float8(_Grouped, frozen=True, tag="float8"):
    """scale * the float of 8 bits (e4m3, without infinities) that the code is."""

    @property
    def bits(self) -> int:
        return 8


Format = Integer | NormalFloat | Float8


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix [O, I] in a format. y = x @ dense().T, where dense() has its columns where they always were."""

    format: Format
    d_in: int
    codes: Tensor  # uint8 [O, I], or [O, ceil(I / 2)] of up to 4 bits
    scales: Tensor  # [O, G]
    zeros: Tensor | None = None  # uint8 [O, G], of asymmetric integers
    order: Tensor | None = None  # int64 [I]: column i of the codes is channel order[i] of the input (GPTQ's act-order)
    in_scales: Tensor | None = None  # [I], by channel: the input is multiplied by them first (AWQ, where not folded)

    def __post_init__(self) -> None:
        rows, groups = len(self.codes), groups_of(self.d_in, self.format.group)
        width = (self.d_in + 1) // 2 if self.format.bits <= 4 else self.d_in
        asymmetric = isinstance(self.format, Integer) and not self.format.symmetric
        _expect("codes", self.codes, (rows, width), torch.uint8)
        _expect("scales", self.scales, (rows, groups), DTYPES[self.format.scales])
        if (self.zeros is not None) != asymmetric:
            raise ValueError("zeros belong to asymmetric integers, and to nothing else")
        if self.zeros is not None:
            _expect("zeros", self.zeros, (rows, groups), torch.uint8)
        if self.order is not None:
            _expect("order", self.order, (self.d_in,), torch.int64)
        if self.in_scales is not None:
            _expect("in_scales", self.in_scales, (self.d_in,), self.in_scales.dtype)

    @property
    def d_out(self) -> int:
        return len(self.codes)

    @property
    def nbytes(self) -> int:
        """Bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, without those it does not have: what a checkpoint keeps beside the format."""
        named = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in named if isinstance(value, Tensor)}

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix it stands for, [O, I]."""
        dense_OI = self.rows(slice(None))
        if self.order is not None:
            dense_OI = torch.empty_like(dense_OI).index_copy_(1, self.order, dense_OI)
        return (dense_OI if self.in_scales is None else dense_OI * self.in_scales.float()).to(dtype)

    def rows(self, index: Any) -> Tensor:
        """Rows of the matrix in fp32, columns in the codes' order."""
        codes = self.codes[index]
        codes = codes if self.format.bits > 4 else unpack_halves(codes)[..., : self.d_in]
        zeros = None if self.zeros is None else self._spread(self.zeros[index].float())
        return values_of(codes, self.format, zeros) * self._spread(self.scales[index].float())

    def _spread(self, x_G: Tensor) -> Tensor:
        return spread(x_G, self.format.group, self.d_in)


def _expect(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if tensor.shape != shape or tensor.dtype != dtype:
        raise ValueError(f"{name} are {tensor.dtype} {list(tensor.shape)}; expected {dtype} {list(shape)}")


def groups_of(d_in: int, group: int) -> int:
    """How many groups a row of d_in columns has."""
    return -(-d_in // group) if group else 1


def spread(x_G: Tensor, group: int, d_in: int) -> Tensor:
    """[..., G], one for a group, to [..., I], one for a column."""
    return x_G.repeat_interleave(group or d_in, dim=-1)[..., :d_in]


def values_of(codes: Tensor, format: Format, zeros: Tensor | None = None) -> Tensor:
    """What codes stand for before the scale, in fp32; `zeros` of asymmetric integers, in the codes' shape."""
    match format:
        case Integer(bits=bits):
            return codes.float() - (2 ** (bits - 1) if zeros is None else zeros)
        case NormalFloat():
            return torch.tensor(NORMAL_FLOAT, device=codes.device)[codes.long()]
        case Float8():
            return codes.view(torch.float8_e4m3fn).float()


def pack_halves(codes: Tensor) -> Tensor:
    """Codes below 16, [..., I], two a byte, [..., ceil(I / 2)]."""
    even = F.pad(codes, (0, codes.shape[-1] % 2))
    return even[..., ::2] | even[..., 1::2] << 4


def unpack_halves(packed: Tensor) -> Tensor:
    """The inverse of pack_halves, but for the one more column where I was odd."""
    return torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)


# ---- rounding to nearest


def round_to_nearest(weight_OI: Tensor, format: Format) -> QuantizedWeight:
    """Each weight's nearest code, under scales from its group's extremes."""
    d_in, group = weight_OI.shape[1], format.group or weight_OI.shape[1]
    padded_OGI = F.pad(weight_OI.float(), (0, -d_in % group)).unflatten(1, (-1, group))
    scales_OG, zeros_OG = _grid(padded_OGI, format)
    scales_OG = scales_OG.to(DTYPES[format.scales])
    units_OI = padded_OGI.flatten(1)[:, :d_in] / spread(scales_OG.float(), group, d_in)
    units_OI = units_OI.nan_to_num(0.0, 0.0, 0.0)  # of groups that are all zeros
    spread_OI = None if zeros_OG is None else spread(zeros_OG.float(), group, d_in)
    codes_OI = codes_of(units_OI, format, spread_OI)
    codes_OI = pack_halves(codes_OI) if format.bits <= 4 else codes_OI
    return QuantizedWeight(format, d_in, codes_OI, scales_OG, zeros_OG)


def codes_of(units: Tensor, format: Format, zeros: Tensor | None = None) -> Tensor:
    """The nearest codes, uint8, of weights that are divided by their scales."""
    match format:
        case Integer(bits=bits):
            zero = 2 ** (bits - 1) if zeros is None else zeros
            return (units.round() + zero).clamp(0, 2**bits - 1).to(torch.uint8)
        case NormalFloat():
            values = torch.tensor(NORMAL_FLOAT, device=units.device)
            return torch.bucketize(units, (values[1:] + values[:-1]) / 2).to(torch.uint8)
        case Float8():
            return units.clamp(-FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn).view(torch.uint8)


def _grid(padded_OGI: Tensor, format: Format) -> tuple[Tensor, Tensor | None]:
    """Scales and zeros by which a group's extremes are just within reach."""
    most_OG = padded_OGI.abs().amax(-1)
    match format:
        case NormalFloat():
            return most_OG, None
        case Float8():
            return most_OG / FLOAT8_MAX, None
        case Integer(bits=8, symmetric=True):
            return most_OG / 127, None
        case Integer(bits=bits, symmetric=True):  # the lowest code reaches one further: it is given to the extreme
            extreme_OG1 = padded_OGI.gather(-1, padded_OGI.abs().argmax(-1, keepdim=True))
            return extreme_OG1.squeeze(-1) / -(2 ** (bits - 1)), None
        case Integer(bits=bits):
            low_OG, high_OG = padded_OGI.amin(-1).clamp(max=0), padded_OGI.amax(-1).clamp(min=0)
            scales_OG = (high_OG - low_OG) / (2**bits - 1)
            zeros_OG = (-low_OG / scales_OG).nan_to_num(0.0).round()
            return scales_OG, zeros_OG.to(torch.uint8)


# ---- the linear map


FIELDS = ("codes", "scales", "zeros", "order", "in_scales")


class QuantizedLinear(nn.Module):
    """y = x @ dense.T + bias, in the input's type; stands where a Linear stood. Where our kernel runs (a CPU, no
    gradient wanted), the input too is rounded, to 8 bits by row and group, and from its first use on the weight is kept
    in the kernel's order only; `weight` and a state_dict still give it as it came. Stays in its format's types when
    the module around it is cast."""

    codes: Any  # None, as are the others, while packed or where there are none
    scales: Any
    zeros: Any
    order: Any
    in_scales: Any
    bias: Tensor | None
    _packed: kernels.Packed | None

    def __init__(self, weight: QuantizedWeight, bias: Tensor | None = None) -> None:
        super().__init__()
        self.format, self.d_in, self.d_out = weight.format, weight.d_in, weight.d_out
        self._keep(weight)
        self.register_buffer("bias", bias)

    @property
    def weight(self) -> QuantizedWeight:
        """The matrix as it came."""
        packed = self._packed
        if packed is None:
            return QuantizedWeight(self.format, self.d_in, *(getattr(self, field) for field in FIELDS))
        codes, scales, zeros = packed.unpacked()
        codes = pack_halves(codes) if self.format.bits <= 4 else codes
        return QuantizedWeight(self.format, self.d_in, codes, scales, zeros, self.order, self.in_scales)

    def forward(self, x: Tensor) -> Tensor:
        packed = self.packed(x)
        if packed is not None:
            return kernels.linear(rows_of(x), packed).view(*x.shape[:-1], self.d_out).to(x.dtype)
        return F.linear(x, self.dense_weight(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    def dense_weight(self, dtype: torch.dtype) -> Tensor:
        """The matrix it stands for, [d_out, d_in]."""
        return self.weight.dense(dtype)

    def packed(self, x: Tensor) -> kernels.Packed | None:
        """The matrix in the kernel's order, or None if `x` is not the kernel's to multiply."""
        if not unrecorded(x):
            return None
        if self._packed is None and kernels.available() and self.codes.device.type == "cpu":
            self._pack()
        return self._packed

    def _pack(self) -> None:
        w = self.weight
        if (w.format.group or w.d_in) > kernels.WIDEST:
            return
        codes = w.codes if w.format.bits > 4 else unpack_halves(w.codes)[:, : w.d_in]
        match w.format:
            case Integer(bits=bits):
                kind, zero = kernels.BYTES if bits > 4 else kernels.HALVES, 2 ** (bits - 1)
            case NormalFloat():
                kind, zero = kernels.LOOKUP, kernels.LOOKUP_ZERO
            case Float8():
                kind, zero = kernels.FLOAT8, 0
        layout = kernels.Layout(kind, zero, w.format.group or w.d_in)
        self._packed = kernels.Packed(layout, codes, w.scales, w.zeros, w.order, w.in_scales, self.bias)
        self.codes = self.scales = self.zeros = None

    def _keep(self, weight: QuantizedWeight) -> None:
        self._packed = None
        for field in FIELDS:
            self.register_buffer(field, getattr(weight, field))

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Moves, but does not cast."""
        self._keep(self.weight)
        device = fn(torch.empty(0, device=self.scales.device)).device
        return super()._apply(lambda tensor: tensor.to(device), recurse)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        named = self.weight.tensors() | ({} if self.bias is None else {"bias": self.bias})
        destination.update({prefix + name: tensor.detach() for name, tensor in named.items()})

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._keep(self.weight)
        super()._load_from_state_dict(*arguments)


def rows_of(x: Tensor) -> Tensor:
    """[..., d] as contiguous fp32 rows [M, d]."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.dtype == torch.float32 and rows.is_contiguous() else rows.float().contiguous()


def quantize_linears(model: nn.Module, format: Format) -> None:
    """Round every Linear of a model to nearest, in place; a tied output table gets a copy of its own to read from."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear):
                bias = None if child.bias is None else child.bias.detach()
                setattr(module, name, QuantizedLinear(round_to_nearest(child.weight.detach(), format), bias))
    if getattr(model, "head", ...) is None:
        model.head = QuantizedLinear(round_to_nearest(model.embedding.detach(), format))
