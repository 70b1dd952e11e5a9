"""Causal convolutions as long as the sequence. B batch, C channel, T position, N outputs asked for.

By Fourier transforms, in float32 whatever the inputs' type: on a CPU faster than a product with the Toeplitz matrix
from 16 positions on, several times from 128. The outputs of only a few last positions are dot products with the
reversed filter.
"""

from typing import Any

import torch
from torch import Tensor

# Up to so many outputs at the end of a sequence, dot products are faster than transforms of all of it: on a CPU a half
# to a fifth of the time, and none gained at 16.
DIRECT_UP_TO = 8


def causal_convolution(x_BCT: Tensor, taps_CT: Tensor, n_last: int | None = None) -> Tensor:
    """y_t = sum_{s <= t} taps_(t - s) x_s, each channel on its own: [B, C, T]; of the last N positions, [B, C, N]."""
    n_outputs = x_BCT.shape[-1] if n_last is None else n_last
    if n_outputs < x_BCT.shape[-1] and n_outputs <= DIRECT_UP_TO:
        return _dots(x_BCT, taps_CT, n_outputs)
    y_BCT: Tensor = _FourierConvolution.apply(x_BCT, taps_CT)
    return y_BCT[..., x_BCT.shape[-1] - n_outputs :]


def fast_size(least: int) -> int:
    """The smallest even transform length not below `least` that is a power of two times 1, 3, 5, 9 or 15."""
    return min(odd << max(1, (-(-least // odd) - 1).bit_length()) for odd in (1, 3, 5, 9, 15))


def _dots(x_BCT: Tensor, taps_CT: Tensor, n_outputs: int) -> Tensor:
    reversed_CT, n_past = taps_CT.flip(-1), x_BCT.shape[-1] - n_outputs
    lengths = range(n_past + 1, n_past + n_outputs + 1)
    dots = [(x_BCT[..., :length] * reversed_CT[:, -length:]).sum(-1) for length in lengths]
    return torch.stack(dots, dim=-1).to(x_BCT.dtype)


class _FourierConvolution(torch.autograd.Function):
    """The gradients are correlations, by transforms too. Written out because torch's own gradient of a real transform
    is a complex one (a third slower over all), and would keep the spectra, twice the size of the inputs."""

    @staticmethod
    def forward(ctx: Any, x_BCT: Tensor, taps_CT: Tensor) -> Tensor:
        ctx.save_for_backward(x_BCT, taps_CT)
        return torch.ops.isoflop.fourier_convolution(x_BCT, taps_CT)

    @staticmethod
    def backward(ctx: Any, grad_BCT: Tensor) -> tuple[Tensor, Tensor]:
        grad_x_BCT, grad_taps_CT = torch.ops.isoflop.fourier_correlations(grad_BCT, *ctx.saved_tensors)
        return grad_x_BCT, grad_taps_CT


# Operators of our own: complex numbers stay inside, where a compiler that has no code for them need not look.
_LIBRARY = torch.library.Library("isoflop", "FRAGMENT")
_LIBRARY.define("fourier_convolution(Tensor x, Tensor taps) -> Tensor")
_LIBRARY.define("fourier_correlations(Tensor grad, Tensor x, Tensor taps) -> (Tensor, Tensor)")


def _convolution(x: Tensor, taps: Tensor) -> Tensor:
    spectrum, size = _spectrum(x)
    return _back(spectrum.mul_(_spectrum(taps)[0]), size, x)


def _correlations(grad: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    spectrum, size = _spectrum(grad)
    grad_taps = _back((_spectrum(x)[0].conj() * spectrum).sum(0), size, taps)
    return _back(spectrum.mul_(_spectrum(taps)[0].conj()), size, x), grad_taps


def _spectrum(x: Tensor) -> tuple[Tensor, int]:
    size = fast_size(2 * x.shape[-1] - 1)  # so long that nothing wraps around
    return torch.fft.rfft(x.float(), size), size


def _back(spectrum: Tensor, size: int, like: Tensor) -> Tensor:
    y = torch.fft.irfft(spectrum, size)[..., : like.shape[-1]]
    return y.to(like.dtype, copy=True, memory_format=torch.contiguous_format)  # no view of the longer transform


def _convolution_shape(x: Tensor, taps: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _correlations_shape(grad: Tensor, x: Tensor, taps: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), taps.new_empty(taps.shape)


for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("fourier_convolution", _convolution, _key)
    _LIBRARY.impl("fourier_correlations", _correlations, _key)
torch.library.register_fake("isoflop::fourier_convolution", _convolution_shape, lib=_LIBRARY)
torch.library.register_fake("isoflop::fourier_correlations", _correlations_shape, lib=_LIBRARY)
