"""Causal attention with grouped queries. B batch, T position, S key's position, M d_model, H query head, K key/value
head, D d_head."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import architecture
from isoflop.model.kernels.attention import attention as causal_attention
from isoflop.model.kernels.plain import Options
from isoflop.model.linear import Linear
from isoflop.model.norm import build_norm
from isoflop.model.place import Place, alibi_slopes
from isoflop.model.rope import Turns, rotate


@dataclass
class KeyValues:
    """Keys and values of the last tokens, each [B, capacity, K, D]; token p lies at p mod capacity."""

    rotates = False

    keys: Tensor
    values: Tensor
    length: int = 0

    def append(self, k_BTKD: Tensor, v_BTKD: Tensor) -> None:
        """Write the next T tokens; of more than fit, the last."""
        capacity, n_new = self.keys.shape[1], k_BTKD.shape[1]
        start = self.length % capacity
        if start + n_new <= capacity:
            self.keys.narrow(1, start, n_new).copy_(k_BTKD)
            self.values.narrow(1, start, n_new).copy_(v_BTKD)
            self.length += n_new
            return
        first = max(0, n_new - capacity)
        at_T = torch.arange(self.length + first, self.length + n_new, device=self.keys.device) % capacity
        self.keys[:, at_T] = k_BTKD[:, first:].to(self.keys.dtype)
        self.values[:, at_T] = v_BTKD[:, first:].to(self.values.dtype)
        self.length += n_new

    def attend(
        self, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, options: Options, turns: Turns | None = None
    ) -> Tensor:
        """Keep the new tokens' keys and values, and mix all that the new tokens may see, [B, T, H, D]."""
        assert turns is None
        k_BSKD, v_BSKD, n_past, window = self._with_past(k_BTKD, v_BTKD, options)
        o = options
        return causal_attention(
            q_BTHD, k_BSKD, v_BSKD, o.scale, n_past, window, o.chunk, o.softcap, o.slopes_H, o.sinks_H
        )

    def _with_past(self, k_BTKD: Tensor, v_BTKD: Tensor, o: Options) -> tuple[Tensor, Tensor, int, int | None]:
        """Keys and values of all that the new tokens may see, how many of them are past, and the window that is left to
        apply. Once a window has wrapped, its cache holds just what a single new token sees, in an order that is no
        matter unless distances count."""
        n_new, n_past = k_BTKD.shape[1], self.length
        if n_past + n_new <= self.keys.shape[1]:
            self.append(k_BTKD, v_BTKD)
            return *self.last(self.length, k_BTKD.dtype), n_past, o.window
        if n_new == 1 and o.window is not None and o.slopes_H is None:
            self.append(k_BTKD, v_BTKD)
            return self.keys.to(k_BTKD.dtype), self.values.to(k_BTKD.dtype), o.window - 1, None
        assert o.window is not None or o.chunk is not None, f"the cache holds {self.keys.shape[1]} tokens"
        reach = n_past % o.chunk if o.chunk is not None else min(n_past, (o.window or 0) - 1)
        past_k_BSKD, past_v_BSKD = self.last(reach, k_BTKD.dtype)
        k_BSKD, v_BSKD = torch.cat((past_k_BSKD, k_BTKD), dim=1), torch.cat((past_v_BSKD, v_BTKD), dim=1)
        self.append(k_BTKD, v_BTKD)
        return k_BSKD, v_BSKD, reach, o.window

    def last(self, n: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of the last n tokens, in order, [B, n, K, D]."""
        capacity = self.keys.shape[1]
        start = (self.length - n) % capacity
        if start + n <= capacity:
            return self.keys[:, start : start + n].to(dtype), self.values[:, start : start + n].to(dtype)
        at_S = torch.arange(start, start + n, device=self.keys.device) % capacity
        return self.keys[:, at_S].to(dtype), self.values[:, at_S].to(dtype)


class Attended(Protocol):
    """What attention asks of its past: KeyValues, or an engine's pages. `rotates`: it can turn queries and keys."""

    rotates: bool

    def attend(
        self, q_BTHD: Tensor, k_BTKD: Tensor, v_BTKD: Tensor, options: Options, turns: Turns | None = None
    ) -> Tensor:
        """Keep the new tokens' keys and values, and mix all that the new tokens may see, [B, T, H, D]; queries and keys
        are yet to be turned where `turns` are given."""
        ...


class Attention(nn.Module):
    """See architecture.Attention. Queries, keys and values come from one matrix: one matmul instead of three."""

    slopes: Tensor | None

    def __init__(self, mixer: architecture.Attention, decoder: architecture.Decoder) -> None:
        super().__init__()
        m = self.mixer = mixer
        self.rope, alibi = decoder.rope_of(m), decoder.alibi_of(m)
        self.scale = m.d_head**-0.5 if m.scale is None else m.scale
        self.eps = decoder.norm.eps
        self.qkv = Linear(decoder.d_model, (m.n_heads + 2 * m.n_kv_heads) * m.d_head, m.qkv_bias)
        self.out = Linear(m.n_heads * m.d_head, decoder.d_model, m.out_bias)
        if m.qk_norm in ("head", "all"):
            whole = m.qk_norm == "all"
            self.q_norm = build_norm(decoder.norm, m.d_head * (m.n_heads if whole else 1))
            self.k_norm = build_norm(decoder.norm, m.d_head * (m.n_kv_heads if whole else 1))
        self.sinks = nn.Parameter(torch.empty(m.n_heads)) if m.sinks else None
        slopes = None if alibi is None else alibi_slopes(alibi, m.n_heads)
        self.register_buffer("slopes", slopes, persistent=False)

    def forward(self, x_BTM: Tensor, place: Place, state: Attended | None = None) -> Tensor:
        return self.out(self.mix(self.qkv(x_BTM), place, state))

    def mix(self, qkv_BTX: Tensor, place: Place, state: Attended | None) -> Tensor:
        """What lies between the two matrices, [B, T, H * D]."""
        m, turns, options = self.mixer, self._turns(place), self.options
        heads_BTXD = qkv_BTX.view(*qkv_BTX.shape[:2], -1, m.d_head)
        if state is None:
            mixed_BTHD = causal_attention(*self._parts(heads_BTXD, place, turns), *options.tuple())
        elif state.rotates and m.temperature is None and m.qk_norm != "unweighted-after":  # turning comes last
            mixed_BTHD = state.attend(*self._parts(heads_BTXD, place, None), options, turns)
        else:
            mixed_BTHD = state.attend(*self._parts(heads_BTXD, place, turns), options)
        return mixed_BTHD.flatten(2)

    @property
    def options(self) -> Options:
        """What is asked of an attention."""
        m = self.mixer
        return Options(self.scale, 0, m.window, m.chunk, m.softcap, self.slopes, self.sinks)

    def new_state(self, batch: int, capacity: int, dtype: torch.dtype, device: torch.device) -> KeyValues:
        """An empty cache for `capacity` tokens, or as many as the window or chunk lets a token see."""
        m = self.mixer
        shape = (batch, min(capacity, m.window or m.chunk or capacity), m.n_kv_heads, m.d_head)
        return KeyValues(torch.zeros(shape, dtype=dtype, device=device), torch.zeros(shape, dtype=dtype, device=device))

    def _parts(self, heads_BTHD: Tensor, place: Place, turns: Turns | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, as they meet."""
        m = self.mixer
        if m.qk_norm in ("head", "all") or m.clip_qkv is not None:
            q_BTHD, k_BTKD, v_BTKD = self._normed(heads_BTHD)
            q_BTHD, k_BTKD = self._turned(q_BTHD, turns), self._turned(k_BTKD, turns)
        elif turns is None:
            q_BTHD, k_BTKD = heads_BTHD[:, :, : m.n_heads], heads_BTHD[:, :, m.n_heads : -m.n_kv_heads]
            v_BTKD = heads_BTHD[:, :, -m.n_kv_heads :]
        else:
            turned_BTHD, v_BTKD = heads_BTHD.split((m.n_heads + m.n_kv_heads, m.n_kv_heads), dim=2)
            q_BTHD, k_BTKD = self._turned(turned_BTHD, turns).split((m.n_heads, m.n_kv_heads), dim=2)
        if m.qk_norm == "unweighted-after":
            q_BTHD, k_BTKD = (F.rms_norm(x, x.shape[-1:], None, self.eps) for x in (q_BTHD, k_BTKD))
        return q_BTHD if m.temperature is None else self._temper(q_BTHD, place), k_BTKD, v_BTKD

    def _normed(self, heads_BTHD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, weighed by their norms and clipped."""
        m = self.mixer
        q_BTHD, k_BTKD, v_BTKD = heads_BTHD.split((m.n_heads, m.n_kv_heads, m.n_kv_heads), dim=2)
        if m.qk_norm == "head":
            q_BTHD, k_BTKD = self.q_norm(q_BTHD), self.k_norm(k_BTKD)
        elif m.qk_norm == "all":
            q_BTHD = self.q_norm(q_BTHD.flatten(2)).view_as(q_BTHD)
            k_BTKD = self.k_norm(k_BTKD.flatten(2)).view_as(k_BTKD)
        if m.clip_qkv is not None:
            q_BTHD, k_BTKD, v_BTKD = (x.clamp(-m.clip_qkv, m.clip_qkv) for x in (q_BTHD, k_BTKD, v_BTKD))
        return q_BTHD, k_BTKD, v_BTKD

    def _turns(self, place: Place) -> Turns | None:
        if self.rope is None or place.cos_TC is None or place.sin_TC is None:
            return None
        return Turns(place.cos_TC, place.sin_TC, self.rope.layout)

    def _turned(self, x_BTHD: Tensor, turns: Turns | None) -> Tensor:
        return x_BTHD if turns is None else rotate(x_BTHD, *turns)

    def _temper(self, q_BTHD: Tensor, place: Place) -> Tensor:
        t = self.mixer.temperature
        assert t is not None
        position_T = place.positions(q_BTHD.shape[1], q_BTHD.device).float()
        factor_T = 1 + t.coef * torch.log1p(torch.floor((position_T + 1) / t.period))
        return q_BTHD * factor_T[:, None, None].to(q_BTHD.dtype)
