"""Multi-head latent attention. B batch, T position, S key's position, M d_model, H head, R kv_rank, P d_rope, N d_nope,
V d_value."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isoflop import architecture
from isoflop.model.kernels import latent as kernel
from isoflop.model.kernels import rows
from isoflop.model.kernels.attention import attention as causal_attention
from isoflop.model.linear import Linear
from isoflop.model.norm import RmsNorm
from isoflop.model.place import Place
from isoflop.model.rope import rotate


@dataclass
class Latents:
    """What latent attention keeps of each token: the normalised latent and the rotated key, [B, capacity, R + P]."""

    latents: Tensor
    length: int = 0

    def attend(self, module: "LatentAttention", q_BTHD: Tensor, latent_BTL: Tensor) -> Tensor:
        """Keep the new tokens' latents, and mix all that the new tokens may see, [B, T, H, V]."""
        if self.length == 0:
            self.append(latent_BTL)
            return module.expanded(q_BTHD, *module.parts(latent_BTL))
        return module.absorbed(q_BTHD, self.append(latent_BTL))

    def append(self, latent_BTL: Tensor) -> Tensor:
        """Write the next T tokens and return all, [B, length, R + P]."""
        end = self.length + latent_BTL.shape[1]
        assert end <= self.latents.shape[1], f"the cache holds {self.latents.shape[1]} tokens"
        self.latents[:, self.length : end] = latent_BTL.to(self.latents.dtype)
        self.length = end
        return self.latents[:, :end].to(latent_BTL.dtype)


class LatentsAttended(Protocol):
    """What latent attention asks of its past: Latents, or an engine's pages."""

    def attend(self, module: "LatentAttention", q_BTHD: Tensor, latent_BTL: Tensor) -> Tensor:
        """Keep the new tokens' latents, and mix all that the new tokens may see, [B, T, H, V]."""
        ...


class LatentAttention(nn.Module):
    """See architecture.LatentAttention.

    Without a past, keys and values are expanded from the latents (few products a score); with one, queries are brought
    into the latents' space instead and the cached latents are keys and values at once (arXiv 2405.04434, section
    2.1.2)."""

    def __init__(self, mixer: architecture.LatentAttention, decoder: architecture.Decoder) -> None:
        super().__init__()
        m = self.mixer = mixer
        self.rope = decoder.rope_of(m)
        self.scale = (m.d_nope + m.d_rope) ** -0.5 if m.scale is None else m.scale
        d_model, d_query = decoder.d_model, m.n_heads * (m.d_nope + m.d_rope)
        latent_norm = architecture.RmsNorm(eps=m.norm_eps)
        if m.q_rank is None:
            self.q = Linear(d_model, d_query)
        else:
            self.q_down = Linear(d_model, m.q_rank, m.bias)
            self.q_norm = RmsNorm(latent_norm, m.q_rank)
            self.q_up = Linear(m.q_rank, d_query)
        self.kv_down = Linear(d_model, m.kv_rank + m.d_rope, m.bias)
        self.kv_norm = RmsNorm(latent_norm, m.kv_rank)
        self.kv_up = Linear(m.kv_rank, m.n_heads * (m.d_nope + m.d_value))
        self.out = Linear(m.n_heads * m.d_value, d_model, m.bias)
        self._kept: tuple[nn.Module, Tensor] | None = None  # a tuple, so that the module is no second child

    def forward(self, x_BTM: Tensor, place: Place, state: LatentsAttended | None = None) -> Tensor:
        q_BTHD, latent_BTR, key_BTP = self._project(x_BTM, place)
        if state is None:
            mixed_BTHV = self.expanded(q_BTHD, latent_BTR, key_BTP)
        else:
            mixed_BTHV = state.attend(self, q_BTHD, torch.cat((latent_BTR, key_BTP), dim=-1))
        return self.out(mixed_BTHV.flatten(2))

    def new_state(self, batch: int, capacity: int, dtype: torch.dtype, device: torch.device) -> Latents:
        """An empty cache for `capacity` tokens."""
        width = self.mixer.kv_rank + self.mixer.d_rope
        return Latents(torch.zeros(batch, capacity, width, dtype=dtype, device=device))

    def _project(self, x_BTM: Tensor, place: Place) -> tuple[Tensor, Tensor, Tensor]:
        m = self.mixer
        q_BTX = self.q(x_BTM) if m.q_rank is None else self.q_up(self.q_norm(self.q_down(x_BTM)))
        q_BTHD = q_BTX.unflatten(-1, (m.n_heads, -1))
        latent_BTR, key_BTP = self.kv_down(x_BTM).split((m.kv_rank, m.d_rope), dim=-1)
        if self.rope is not None and place.cos_TC is not None and place.sin_TC is not None:
            q_nope, q_rope = q_BTHD.split((m.d_nope, m.d_rope), dim=-1)
            q_BTHD = torch.cat((q_nope, rotate(q_rope, place.cos_TC, place.sin_TC, self.rope.layout)), dim=-1)
            key_BTP = rotate(key_BTP[:, :, None], place.cos_TC, place.sin_TC, self.rope.layout)[:, :, 0]
        return q_BTHD, self.kv_norm(latent_BTR), key_BTP

    def expanded(self, q_BTHD: Tensor, latent_BSR: Tensor, key_BSP: Tensor) -> Tensor:
        """What the last T of S tokens mix of all, [B, T, H, V], keys and values made of all latents."""
        m = self.mixer
        up_BSHX = self._keys_values(latent_BSR).unflatten(-1, (m.n_heads, -1))
        key_BSHN, value_BSHV = up_BSHX.split((m.d_nope, m.d_value), dim=-1)
        key_BSHP = key_BSP[:, :, None].expand(-1, -1, m.n_heads, -1)
        key_BSHD, n_past = torch.cat((key_BSHN, key_BSHP), dim=-1), latent_BSR.shape[1] - q_BTHD.shape[1]
        return causal_attention(q_BTHD, key_BSHD, value_BSHV, self.scale, n_past)

    def _keys_values(self, latent_BSR: Tensor) -> Tensor:
        """[B, S, H (N + V)]. A quantized matrix would round latents to 8 bits first, which decoding does not do."""
        if type(self.kv_up) is Linear or torch.is_grad_enabled():
            made: Tensor = self.kv_up(latent_BSR)
            return made
        up_XR = self.dense_up(latent_BSR.dtype)
        if rows.multiplies(latent_BSR, up_XR):
            return rows.linear(latent_BSR, up_XR, None)
        return F.linear(latent_BSR, up_XR)

    def parts(self, latent_BTL: Tensor) -> tuple[Tensor, Tensor]:
        """Latents [B, T, R] and rotated keys [B, T, P], of what is kept."""
        latent_BTR, key_BTP = latent_BTL.split((self.mixer.kv_rank, self.mixer.d_rope), dim=-1)
        return latent_BTR, key_BTP

    def absorbed(self, q_BTHD: Tensor, past_BSL: Tensor) -> Tensor:
        """What the last T of S tokens mix of all, [B, T, H, V]."""
        past_BS1L, n_past = past_BSL[:, :, None], past_BSL.shape[1] - q_BTHD.shape[1]
        q_BTHL, values_BS1R = self.into_latents(q_BTHD), past_BS1L[..., : self.mixer.kv_rank]
        return self.out_of_latents(causal_attention(q_BTHL, past_BS1L, values_BS1R, self.scale, start=n_past))

    def into_latents(self, q_BTHD: Tensor) -> Tensor:
        """Queries that meet latents as they are, [B, T, H, R + P]."""
        up_HXR = self._up(q_BTHD.dtype)
        if kernel.meets(q_BTHD, up_HXR):
            return kernel.into_latents(self.mixer, q_BTHD, up_HXR)
        q_nope_BTHN, q_rope_BTHP = q_BTHD.split((self.mixer.d_nope, self.mixer.d_rope), dim=-1)
        key_HNR = up_HXR[:, : self.mixer.d_nope]
        return torch.cat((torch.einsum("bthn,hnr->bthr", q_nope_BTHN, key_HNR), q_rope_BTHP), dim=-1)

    def out_of_latents(self, mixed_BTHR: Tensor) -> Tensor:
        """Values of mixed latents, [B, T, H, V]."""
        up_HXR = self._up(mixed_BTHR.dtype)
        if kernel.meets(mixed_BTHR, up_HXR):
            return kernel.out_of_latents(self.mixer, mixed_BTHR, up_HXR)
        return torch.einsum("bthr,hvr->bthv", mixed_BTHR, up_HXR[:, self.mixer.d_nope :])

    def _up(self, dtype: torch.dtype) -> Tensor:
        """What makes keys and values of latents, [H, N + V, R]."""
        return self.dense_up(dtype).unflatten(0, (self.mixer.n_heads, -1))

    def dense_up(self, dtype: torch.dtype) -> Tensor:
        """The matrix that makes keys and values; of a quantized one a dense copy is kept while nothing is learnt, as
        every decoded token needs it."""
        if type(self.kv_up) is Linear or torch.is_grad_enabled():
            return self.kv_up.dense_weight(dtype)
        if self._kept is None or self._kept[0] is not self.kv_up or self._kept[1].dtype is not dtype:
            self._kept = self.kv_up, self.kv_up.dense_weight(dtype)
        return self._kept[1]
