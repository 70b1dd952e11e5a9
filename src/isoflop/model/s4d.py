"""Diagonal state spaces, constant in time. B batch, T position, M d_model, I d_inner, P conjugate pair (d_state / 2),
R row and W width of a block of positions, t = r W + w."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import architecture
from isoflop.model.linear import Linear
from isoflop.model.long_convolution import causal_convolution
from isoflop.model.packed import Whole
from isoflop.model.place import Place


class Complex(NamedTuple):
    """A complex tensor as two real ones, for which compilers have code."""

    re: Tensor
    im: Tensor

    def times(self, other: "Complex") -> "Complex":
        return Complex(self.re * other.re - self.im * other.im, self.re * other.im + self.im * other.re)


class Discrete(NamedTuple):
    """A step of the recurrence, of the weights as they are, [I, P] complex64: what is kept, what a unit of input adds,
    and how the state is read: real and imaginary parts times those of `read`, summed."""

    kept: Tensor
    added: Tensor
    read: Tensor


@dataclass
class S4DState(Whole):
    """The complex states after the last token, real and imaginary parts, [B, I, P, 2], float32; and the recurrence,
    made once: the same for every sequence, so no part of a sequence's bytes."""

    states: Tensor
    step: Discrete


class S4D(nn.Module):
    """See architecture.S4D (Gu et al. 2022, arXiv 2206.11893).

    u = inner(x); a channel's pair p follows h_t = lambda h_(t-1) + B u_t with lambda = exp(dt A) and, held over a step,
    B = (lambda - 1) / A (the continuous B is 1: only its product with C shows); y = 2 Re sum_p C_p h_p + D u; the
    mixer's output is GLU(out(GELU(y))) with out of width 2 d_model. Over a sequence y is a convolution of u with
    K_t = 2 Re sum_p C_p B_p lambda_p^t; token by token it is the recurrence. Both in float32.
    """

    def __init__(self, mixer: architecture.S4D, decoder: architecture.Decoder) -> None:
        super().__init__()
        d_inner, n_pairs = mixer.d_inner, mixer.d_state // 2
        self.inner = Linear(decoder.d_model, d_inner)
        self.log_dt = nn.Parameter(torch.empty(d_inner))
        self.log_A_real = nn.Parameter(torch.empty(d_inner, n_pairs))  # A = -exp(log_A_real) + i A_imag
        self.A_imag = nn.Parameter(torch.empty(d_inner, n_pairs))
        self.C = nn.Parameter(torch.empty(d_inner, n_pairs, 2))
        self.D = nn.Parameter(torch.empty(d_inner))
        self.out = Linear(d_inner, 2 * decoder.d_model)

    def forward(self, x_BTM: Tensor, place: Place, state: S4DState | None = None) -> Tensor:
        u_BTI = self.inner(x_BTM)
        y_BTI = self._mix(u_BTI, None) if state is None else state.mix(self._mix, u_BTI)
        return F.glu(self.out(F.gelu(y_BTI.to(x_BTM.dtype))), dim=-1)

    def _mix(self, u_BTI: Tensor, state: S4DState | None) -> Tensor:
        """All that runs along a sequence, [B, T, I]; `state` moves on in place."""
        u_BIT = u_BTI.transpose(1, 2)
        if state is None:
            y_BIT = causal_convolution(u_BIT, self.kernel(u_BIT.shape[-1]))
        elif u_BIT.shape[-1] == 1:
            y_BIT = self._step(u_BIT, state)
        else:
            y_BIT = self._continue(u_BIT, state)
        return y_BIT.transpose(1, 2)

    def new_state(self, batch: int, capacity: int, dtype: torch.dtype, device: torch.device) -> S4DState:
        """Zeros; the same size whatever the capacity, float32 whatever the cache's dtype."""
        states = torch.zeros(batch, *self.C.shape, dtype=torch.float32, device=device)
        with torch.no_grad():
            return S4DState(states, self._discrete())

    def first_values(self, generator: torch.Generator) -> dict[str, Tensor]:
        """S4D-Lin, A_p = -1/2 + i pi p, log dt uniform from .001 to .1, C complex normal of variance one (arXiv
        2206.11893, section 4), D normal (the authors' published code)."""
        d_inner, n_pairs = self.A_imag.shape
        low, high = math.log(0.001), math.log(0.1)
        return {
            "log_dt": low + (high - low) * torch.rand(d_inner, generator=generator),
            "log_A_real": torch.full((d_inner, n_pairs), math.log(0.5)),
            "A_imag": (math.pi * torch.arange(n_pairs)).expand(d_inner, -1),
            "C": torch.randn(d_inner, n_pairs, 2, generator=generator) / math.sqrt(2),
            "D": torch.randn(d_inner, generator=generator),
        }

    def kernel(self, length: int) -> Tensor:
        """The filter's first taps, [I, length], float32; D u is part of the first."""
        taps_IT = self._series(_complex(self.C).times(self._held()), length)
        return taps_IT + F.pad(self.D.float()[:, None], (0, length - 1))

    def _step(self, u_BI1: Tensor, state: S4DState) -> Tensor:
        """One token: the recurrence, [B, I, 1]."""
        kept_IP, added_IP, read_IP = state.step
        u_BI1, past_BIP = u_BI1.float(), torch.view_as_complex(state.states)
        now_BIP = torch.addcmul(past_BIP * kept_IP, added_IP, u_BI1.to(added_IP.dtype))
        with torch.no_grad():
            past_BIP.copy_(now_BIP)
        y_BI1 = (
            torch.view_as_real(now_BIP).flatten(-2)[..., None, :] @ torch.view_as_real(read_IP).flatten(1)[..., None]
        )
        return torch.addcmul(y_BI1[..., 0], self.D.float()[:, None], u_BI1)

    def _discrete(self) -> Discrete:
        step, held, c = self._powers(torch.ones(1, device=self.log_dt.device)), self._held(), _complex(self.C)
        kept_IP = torch.complex(step.re[..., 0], step.im[..., 0])
        # 2 Re(c h) is the dot product of (2 Re c, -2 Im c) and (Re h, Im h).
        return Discrete(kept_IP, torch.complex(*held), torch.complex(2 * c.re, -2 * c.im))

    def _continue(self, u_BIT: Tensor, state: S4DState) -> Tensor:
        """Several tokens: their own convolution, and what the state before them still says."""
        length = u_BIT.shape[-1]
        own_BIT = causal_convolution(u_BIT.float(), self.kernel(length))
        powers = self._powers(torch.tensor((1.0, float(length)), device=u_BIT.device))
        first, last = (Complex(powers.re[..., i], powers.im[..., i]) for i in (0, 1))
        before = _complex(state.states)
        y_BIT = own_BIT + self._series(_complex(self.C).times(first).times(before), length)
        kept, added = before.times(last), self._gathered(u_BIT.float()).times(self._held())
        _store(state, Complex(kept.re + added.re, kept.im + added.im))
        return y_BIT

    def _held(self) -> Complex:
        """B of the discrete recurrence, (exp(dt A) - 1) / A, [I, P]: the input is held constant over a step."""
        step = self._powers(torch.ones(1, device=self.log_dt.device))
        re, im = -self.log_A_real.float().exp(), self.A_imag.float()
        size = re.square() + im.square()
        return Complex(step.re[..., 0] - 1, step.im[..., 0]).times(Complex(re / size, -im / size))

    def _powers(self, exponents_E: Tensor) -> Complex:
        """exp(dt A e), [I, P, E]."""
        dt_I1 = self.log_dt.float().exp()[:, None]
        size = torch.exp((-dt_I1 * self.log_A_real.float().exp())[..., None] * exponents_E)
        angle = (dt_I1 * self.A_imag.float())[..., None] * exponents_E
        return Complex(size * angle.cos(), size * angle.sin())

    def _blocks(self, length: int) -> tuple[Complex, Complex]:
        """lambda^(r W), [I, P, R], and lambda^w, [I, P, W], with R W >= length and W about its root: their products are
        all the powers, which written out would be [I, P, length]."""
        width = math.isqrt(length - 1) + 1
        positions_W = torch.arange(width, dtype=torch.float32, device=self.log_dt.device)
        return self._powers(positions_W[: -(-length // width)] * width), self._powers(positions_W)

    def _series(self, weight: Complex, length: int) -> Tensor:
        """2 Re sum_p weight_p lambda_p^t for t < length; weight [..., I, P] to [..., I, length]."""
        rows, columns = self._blocks(length)
        weighted = rows.times(Complex(weight.re[..., None], weight.im[..., None]))
        left = torch.cat((weighted.re, -weighted.im), dim=-2)
        return 2 * (left.mT @ torch.cat(columns, dim=-2)).flatten(-2)[..., :length]

    def _gathered(self, u_BIT: Tensor) -> Complex:
        """sum_t lambda^(T - 1 - t) u_t, [B, I, P]."""
        rows, columns = self._blocks(u_BIT.shape[-1])
        n_rows, width = rows.re.shape[-1], columns.re.shape[-1]
        newest_first = F.pad(u_BIT.flip(-1), (0, n_rows * width - u_BIT.shape[-1]))
        sums = newest_first.unflatten(-1, (n_rows, width)) @ torch.cat(columns, dim=-2).mT
        terms = Complex(*sums.chunk(2, dim=-1)).times(Complex(rows.re.mT, rows.im.mT))
        return Complex(terms.re.sum(-2), terms.im.sum(-2))


def _complex(pairs: Tensor) -> Complex:
    return Complex(*pairs.float().unbind(-1))


def _store(state: S4DState, now: Complex) -> None:
    with torch.no_grad():
        state.states.copy_(torch.stack(now, dim=-1))
