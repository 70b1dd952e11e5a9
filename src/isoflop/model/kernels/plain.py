"""Causal attention over windows, chunks, caps, sinks and slopes in plain torch, at memory linear in the context.

B batch, T query, S key, H query head, K key/value head, G = H / K heads that share one, D width of queries and keys,
E width of values.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

BLOCK = 128  # queries of a block
EVERYTHING = 1 << 40  # a window, or a chunk, that holds every key


@dataclass(frozen=True)
class Options:
    """Query t stands at position start + t. It sees key s if s <= position, position - s < window, and both lie in the
    same chunk. Its score is scale * q.k, capped to softcap * tanh(score / softcap), less slopes_H * (position - s)
    (ALiBi); sinks_H are scores that only the softmax's denominator knows. Sinks learn, slopes do not."""

    scale: float
    start: int = 0
    window: int | None = None
    chunk: int | None = None
    softcap: float | None = None
    slopes_H: Tensor | None = None
    sinks_H: Tensor | None = None

    @property
    def plain_scores(self) -> bool:
        """Whether the weights are a softmax of scaled products and nothing else."""
        return self.softcap is None and self.slopes_H is None and self.sinks_H is None

    @property
    def causal_only(self) -> bool:
        return self.start == 0 and self.window is None and self.chunk is None and self.plain_scores

    def tuple(self) -> tuple[Any, ...]:
        return self.scale, self.start, self.window, self.chunk, self.softcap, self.slopes_H, self.sinks_H


def torch_attention(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKE: Tensor, options: Options) -> Tensor:
    """What `attention` computes, on any device and dtype, differentiable by autograd."""
    if options.causal_only:
        return _sdpa(q_BTHD, k_BSKD, v_BSKE, options.scale)
    context = q_BTHD.shape[1]
    if context <= BLOCK:
        return _block(q_BTHD, k_BSKD, v_BSKE, 0, options)
    blocks = []
    for t in range(0, context, BLOCK):  # recomputed in the backward, else it would keep the scores of every block
        q = q_BTHD[:, t : t + BLOCK]
        blocks.append(checkpoint(_block, q, k_BSKD, v_BSKE, t, options, use_reentrant=False, preserve_rng_state=False))
    return torch.cat(blocks, dim=1)


def one_query(q_B1HD: Tensor, k_BSKD: Tensor, v_BSKE: Tensor, options: Options) -> Tensor:
    """`attention` of a single query, as in decoding: nothing is masked among the keys it sees, so that the G heads that
    share keys can stand as G queries of one head. Reads the keys where they lie."""
    end = options.start + 1
    first = max(
        0, end - (options.window or end), options.start // options.chunk * options.chunk if options.chunk else 0
    )
    q_BKGD = q_B1HD.unflatten(2, (k_BSKD.shape[2], -1))[:, 0]
    k, v = (x[:, first:end].transpose(1, 2) for x in (k_BSKD, v_BSKE))
    if options.plain_scores:
        mixed_BKGE = F.scaled_dot_product_attention(q_BKGD, k, v, scale=options.scale)
    else:
        scores_BKGS = _products(q_BKGD, k.mT)
        scores_BKGS = scores_BKGS if scores_BKGS.dtype == torch.float64 else scores_BKGS.float()
        mixed_BKGE = _products(_shares(scores_BKGS * options.scale, first, options).to(v.dtype), v)
    return mixed_BKGE.flatten(1, 2)[:, None]


def _products(x_BKGD: Tensor, y_BKDS: Tensor) -> Tensor:
    """x @ y, a sequence at a time: all at once, torch would copy a cache to make one batch of B and K."""
    return torch.stack([x_KGD @ y_KDS for x_KGD, y_KDS in zip(x_BKGD.unbind(), y_BKDS.unbind(), strict=True)])


def _shares(scores_BKGS: Tensor, first: int, o: Options) -> Tensor:
    """Softmax of one query's scores with the keys from `first` on, after cap, slope and sink."""
    by_head = 1, *scores_BKGS.shape[1:3], 1
    if o.softcap is not None:
        scores_BKGS = o.softcap * torch.tanh(scores_BKGS / o.softcap)
    if o.slopes_H is not None:
        distance_S = torch.arange(o.start - first, -1, -1, device=scores_BKGS.device)
        scores_BKGS = scores_BKGS - o.slopes_H.view(by_head) * distance_S
    if o.sinks_H is None:
        return scores_BKGS.softmax(-1)
    sinks_BKG1 = o.sinks_H.view(by_head).expand(len(scores_BKGS), -1, -1, -1)
    return torch.cat((scores_BKGS, sinks_BKG1.to(scores_BKGS.dtype)), dim=-1).softmax(-1)[..., :-1]


def _sdpa(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKE: Tensor, scale: float) -> Tensor:
    context = q_BTHD.shape[1]
    q, k, v = (x[:, :context].transpose(1, 2) for x in (q_BTHD, k_BSKD, v_BSKE))
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped).transpose(1, 2)


def _block(q_BTHD: Tensor, k_BSKD: Tensor, v_BSKE: Tensor, t: int, options: Options) -> Tensor:
    """Queries from t on, with the keys that any of them sees."""
    o, n = options, q_BTHD.shape[1]
    position_T = torch.arange(o.start + t, o.start + t + n, device=q_BTHD.device)
    first = max(
        0, o.start + t + 1 - (o.window or EVERYTHING), (o.start + t) // (o.chunk or EVERYTHING) * (o.chunk or 0)
    )
    key_S = torch.arange(first, o.start + t + n, device=q_BTHD.device)
    k, v = (x[:, first : o.start + t + n].permute(0, 2, 3, 1).unsqueeze(2) for x in (k_BSKD, v_BSKE))  # [B, K, 1, D, S]
    q_BKGTD = q_BTHD.unflatten(2, (k.shape[1], -1)).permute(0, 2, 3, 1, 4)
    distance_TS = position_T[:, None] - key_S
    seen_TS = (distance_TS >= 0) & (distance_TS < (o.window or EVERYTHING))
    if o.chunk is not None:
        seen_TS = seen_TS & (position_T[:, None] // o.chunk == key_S // o.chunk)
    score = ((q_BKGTD * o.scale) @ k).float() if q_BTHD.dtype != torch.float64 else (q_BKGTD * o.scale) @ k
    if o.softcap is not None:
        score = o.softcap * torch.tanh(score / o.softcap)
    if o.slopes_H is not None:
        score = score - o.slopes_H.to(score.dtype).view(k.shape[1], -1, 1, 1) * distance_TS
    score = score.masked_fill(~seen_TS, -math.inf)
    total = score.logsumexp(-1, keepdim=True)
    if o.sinks_H is not None:
        total = torch.logaddexp(total, o.sinks_H.to(score.dtype).view(k.shape[1], -1, 1, 1))
    mixed_BKGTE = (score - total).exp().to(v.dtype) @ v.transpose(-1, -2)
    return mixed_BKGTE.permute(0, 3, 1, 2, 4).flatten(2, 3)
