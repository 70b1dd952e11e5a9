"""Where vectors lie: rows of one tensor, as they are, or quantized. N place, K vector of a token, D width, Q codes of a
vector, S scales of a vector.

A place is page * page_tokens + offset. Quantized vectors are cut into groups (cost.cache.QUANTIZED) of g numbers, each
group scaled by the one of largest magnitude: int8 to codes -127 .. 127; int4 so that this one is exactly -8 steps (its
sign is the scale's), to codes 0 .. 15 that stand for -8 .. 7; byte i of a group holds number i in its low half and
number ceil(g / 2) + i in its high half.
"""

from typing import Protocol

import torch
from torch import Tensor

from isoflop.cost.cache import QUANTIZED, vector_bytes
from isoflop.model.kernels.paged import Stored
from isoflop.model.kernels.room import in_large_pages

NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float8_e4m3fn: "fp8"}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


class Store(Protocol):
    """K vectors of width D at each of N places."""

    def write(self, at_T: Tensor, x_TKD: Tensor) -> None: ...

    def read(self, at_S: Tensor, dtype: torch.dtype) -> Tensor:
        """[S, K, D]."""
        ...

    def copy(self, first: int, to: int, n: int) -> None:
        """n places from `first` on to those from `to` on."""
        ...

    @property
    def stored(self) -> Stored:
        """As the kernels are told of it."""
        ...

    @property
    def nbytes(self) -> int: ...


def build_store(n_places: int, vectors: int, width: int, dtype: str, device: torch.device) -> Store:
    """Room for any cache dtype."""
    if dtype in QUANTIZED:
        return QuantizedStore(n_places, vectors, width, dtype, device)
    return PlainStore(n_places, vectors, width, DTYPES[dtype], device)


class PlainStore:
    """Numbers in a floating-point type."""

    def __init__(self, n_places: int, vectors: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        rows_NKD = torch.zeros(n_places, vectors, width, dtype=dtype, device=device)
        # Read a fifth faster in bf16; fp32 is read a tenth slower, which is not understood.
        self.rows_NKD = in_large_pages(rows_NKD) if dtype.itemsize == 2 else rows_NKD

    def write(self, at_T: Tensor, x_TKD: Tensor) -> None:
        if self.rows_NKD.dtype is x_TKD.dtype:
            self.rows_NKD.index_copy_(0, at_T, x_TKD)
        else:
            self.rows_NKD[at_T] = x_TKD.to(self.rows_NKD.dtype)

    def read(self, at_S: Tensor, dtype: torch.dtype) -> Tensor:
        return self.rows_NKD[at_S].to(dtype)

    def copy(self, first: int, to: int, n: int) -> None:
        self.rows_NKD[to : to + n] = self.rows_NKD[first : first + n]

    @property
    def stored(self) -> Stored:
        return Stored(NAMES[self.rows_NKD.dtype], self.rows_NKD, None)

    @property
    def nbytes(self) -> int:
        return int(self.rows_NKD.nbytes)


class QuantizedStore:
    """Integers and a scale in fp16 a group."""

    def __init__(self, n_places: int, vectors: int, width: int, dtype: str, device: torch.device) -> None:
        self.width, self.dtype = width, dtype
        self.n_scales = -(-width // QUANTIZED[dtype][1])
        n_codes = vector_bytes(width, dtype) - 2 * self.n_scales
        self.codes_NKQ = torch.zeros(n_places, vectors, n_codes, dtype=torch.uint8, device=device)
        self.scales_NKS = torch.zeros(n_places, vectors, self.n_scales, dtype=torch.float16, device=device)

    def write(self, at_T: Tensor, x_TKD: Tensor) -> None:
        codes_TKQ, scales_TKS = quantize(x_TKD, self.dtype)
        self.codes_NKQ.index_copy_(0, at_T, codes_TKQ)
        self.scales_NKS.index_copy_(0, at_T, scales_TKS)

    def read(self, at_S: Tensor, dtype: torch.dtype) -> Tensor:
        return dequantize(self.codes_NKQ[at_S], self.scales_NKS[at_S], self.width, self.dtype).to(dtype)

    def copy(self, first: int, to: int, n: int) -> None:
        for tensor in (self.codes_NKQ, self.scales_NKS):
            tensor[to : to + n] = tensor[first : first + n]

    @property
    def stored(self) -> Stored:
        return Stored(self.dtype, self.codes_NKQ, self.scales_NKS)

    @property
    def nbytes(self) -> int:
        return int(self.codes_NKQ.nbytes + self.scales_NKS.nbytes)


def quantize(x_TKD: Tensor, dtype: str) -> tuple[Tensor, Tensor]:
    """Codes [T, K, Q], uint8, and scales [T, K, S], fp16."""
    parts = x_TKD.float().split(QUANTIZED[dtype][1], dim=-1)
    pairs = [(_int8 if dtype == "int8" else _int4)(part) for part in parts]
    return torch.cat([codes for codes, _ in pairs], dim=-1), torch.cat([scale for _, scale in pairs], dim=-1)


def dequantize(codes_TKQ: Tensor, scales_TKS: Tensor, width: int, dtype: str) -> Tensor:
    """[T, K, D], float32."""
    bits, group = QUANTIZED[dtype]
    numbers = []
    for i, codes in enumerate(codes_TKQ.split(group * bits // 8, dim=-1)):
        n = min(group, width - i * group)
        plain = codes.view(torch.int8).float() if dtype == "int8" else _halves(codes, n)
        numbers.append(plain * scales_TKS[..., i : i + 1].float())
    return torch.cat(numbers, dim=-1)


def _int8(x: Tensor) -> tuple[Tensor, Tensor]:
    scale = (x.abs().amax(-1, keepdim=True) / 127).half()
    codes = (x / _divisor(scale)).round().clamp(-127, 127).to(torch.int8)
    return codes.view(torch.uint8), scale


def _int4(x: Tensor) -> tuple[Tensor, Tensor]:
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))
    scale = (largest / -8).half()
    codes = ((x / _divisor(scale)).round() + 8).clamp(0, 15).to(torch.uint8)
    half = -(-x.shape[-1] // 2)
    low, high = codes[..., :half], codes[..., half:]
    high = torch.nn.functional.pad(high, (0, half - high.shape[-1]))
    return low | (high << 4), scale


def _halves(codes: Tensor, n: int) -> Tensor:
    return torch.cat((codes & 15, codes >> 4), dim=-1)[..., :n].float() - 8


def _divisor(scale: Tensor) -> Tensor:
    """What to divide by: a group of zeros has a scale of zero, and codes of zero whatever divides them."""
    wide = scale.float()
    return torch.where(wide == 0, torch.ones_like(wide), wide)
