"""From logits to tokens. B rows (one a sequence), V vocabulary.

A row's tokens never depend on the rows beside it: every reduction is along V alone, and the draw is one uniform number
from (seed, place in the sequence) held against the cumulated probabilities in the order of the vocabulary. Filters are
thresholds and not ranks, so tokens exactly as likely stay or go together and no sort's order matters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from isoflop.engine.sampling import Guide, Sampling

LEAST_TEMPERATURE = 1e-6  # below it, float32 cannot tell the quotients from the likeliest token's
TOGETHER = 8  # rows whose weights stay in a cache nearby while they are drawn from
BLOCK = 256  # tokens whose weights are summed before they are cumulated
WORD = 2**64


@dataclass(slots=True)
class Row:
    """What the choice of one sequence's next token depends on. `history` is prompt and output so far, `n_prompt` of it
    prompt; `seed` is sampling.seed, or one that was drawn for the request."""

    sampling: Sampling
    seed: int
    n_prompt: int
    history: Sequence[int]
    guide: Guide | None = None


class Logprobs(NamedTuple):
    """Natural log probabilities under the model: of the token, and of the likeliest, likeliest first."""

    token: float
    top: tuple[tuple[int, float], ...]


class Drawn(NamedTuple):
    """A token, and what `Sampling.logprobs` asked for."""

    token: int
    logprobs: Logprobs | None


def sample(logits_BV: Tensor, rows: Sequence[Row]) -> list[Drawn]:
    """The next token of each row; logits are float32 and stay as they are. The rows' guides are asked and not moved
    on: `guide.accept(token)` is the caller's."""
    assert logits_BV.shape[0] == len(rows)
    choice_BV = adjusted(logits_BV, rows)
    drawn = [i for i, row in enumerate(rows) if not row.sampling.greedy]
    if len(drawn) < len(rows):
        tokens = likeliest(choice_BV)
    else:
        tokens = [0] * len(rows)
    if drawn:
        drawn_NV = choice_BV if len(drawn) == len(rows) else choice_BV[drawn]
        for begin in range(0, len(drawn), TOGETHER):
            at = drawn[begin : begin + TOGETHER]
            weights_NV = _weights(drawn_NV[begin : begin + TOGETHER], [rows[i] for i in at])
            numbers = [uniform(rows[i].seed, len(rows[i].history)) for i in at]
            for i, token in zip(at, invert(weights_NV, numbers), strict=True):
                tokens[i] = token
    told = log_probabilities(logits_BV, tokens, [row.sampling.logprobs for row in rows])
    return [Drawn(token, logprobs) for token, logprobs in zip(tokens, told, strict=True)]


def probabilities(logits_BV: Tensor, rows: Sequence[Row]) -> Tensor:
    """[B, V] float32: the very distribution that `sample` draws each row's token from; one-hot where it is greedy."""
    choice_BV = adjusted(logits_BV, rows)
    weights_BV = _weights(choice_BV, rows)
    for i, row in enumerate(rows):
        if row.sampling.greedy:
            weights_BV[i] = 0
            weights_BV[i, likeliest(choice_BV[i : i + 1])[0]] = 1
    return weights_BV / weights_BV.sum(-1, keepdim=True)


def uniform(seed: int, position: int, stream: int = 0) -> float:
    """A number in [0, 1) that is a function of its arguments: SplitMix64's output function (Steele et al. 2014) over
    each in turn. `stream` gives further independent numbers for one place (a draft's acceptance, say)."""
    state = 0
    for part in (seed, position, stream):
        state = _mix((state ^ part) + 0x9E3779B97F4A7C15)
    return (state >> 11) * 2.0**-53


def _mix(z: int) -> int:
    z %= WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def likeliest(logits_BV: Tensor) -> list[int]:
    """The first of the likeliest tokens, row by row."""
    if logits_BV.device.type == "cpu" and logits_BV.dtype == torch.float32:
        found: list[int] = logits_BV.detach().numpy().argmax(-1).tolist()  # a tenth of the time of torch's
        return found
    return list(logits_BV.argmax(-1).tolist())


def invert(weights_BV: Tensor, numbers: Sequence[float]) -> list[int]:
    """The token of each row at which its cumulated weights pass the number in [0, 1) times their sum. Cumulated are
    blocks of the vocabulary, and then the tokens of one: a sum in float64 at each token takes twice as long."""
    n, tail = weights_BV.shape[1], weights_BV.shape[1] % BLOCK
    sums_BG = weights_BV[:, : n - tail].unflatten(1, (-1, BLOCK)).sum(-1, dtype=torch.float64)
    if tail:
        sums_BG = torch.cat([sums_BG, weights_BV[:, n - tail :].sum(-1, keepdim=True, dtype=torch.float64)], dim=1)
    cumulated_BG = sums_BG.cumsum(-1)
    at_B1 = torch.tensor(numbers, dtype=torch.float64, device=weights_BV.device)[:, None] * cumulated_BG[:, -1:]
    block_B1 = torch.searchsorted(cumulated_BG, at_B1, right=True)
    places_BW = block_B1 * BLOCK + torch.arange(BLOCK, device=weights_BV.device)
    within_BW = weights_BV.gather(1, places_BW.clamp_max(n - 1)).double().masked_fill(places_BW >= n, 0).cumsum(-1)
    left_B1 = at_B1 - (cumulated_BG - sums_BG).gather(1, block_B1)
    below_B1 = within_BW[:, -1:].nextafter(at_B1.new_zeros(()))  # the sums may differ by a rounding
    found_B1 = torch.searchsorted(within_BW, torch.minimum(left_B1, below_B1), right=True)
    return list((block_B1 * BLOCK + found_B1)[:, 0].tolist())


def adjusted(logits_BV: Tensor, rows: Sequence[Row]) -> Tensor:
    """Logits after grammar and penalties; the same tensor where no row has any."""
    busy = [i for i, row in enumerate(rows) if row.guide is not None or row.sampling.penalized]
    if not busy:
        return logits_BV
    logits_BV = logits_BV.clone()
    for i in busy:
        guide = rows[i].guide
        if rows[i].sampling.penalized:
            _penalize(logits_BV[i], rows[i])
        if guide is not None:
            logits_BV[i].masked_fill_(~guide.allowed().to(logits_BV.device), -torch.inf)
    return logits_BV


def _penalize(logits_V: Tensor, row: Row) -> None:
    s = row.sampling
    if s.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(row.history)), device=logits_V.device)
        value = logits_V[seen]
        logits_V[seen] = torch.where(value > 0, value / s.repetition_penalty, value * s.repetition_penalty)
    if s.logit_bias:
        places, biases = zip(*s.logit_bias, strict=True)
        logits_V[torch.tensor(places, device=logits_V.device)] += torch.tensor(biases).to(logits_V)
    output = row.history[row.n_prompt :]
    if output and (s.presence_penalty or s.frequency_penalty):
        tokens, counts = np.unique(np.asarray(output), return_counts=True)
        taken = torch.from_numpy(s.presence_penalty + s.frequency_penalty * counts).to(logits_V)
        logits_V[torch.from_numpy(tokens).to(logits_V.device)] -= taken


def _weights(logits_BV: Tensor, rows: Sequence[Row]) -> Tensor:
    """[B, V]: in proportion to the probabilities drawn from."""
    requests = [row.sampling for row in rows]
    temperature_B1 = _column([max(s.temperature, LEAST_TEMPERATURE) for s in requests], logits_BV)
    scaled_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)) / temperature_B1
    if any(0 < s.top_k < logits_BV.shape[1] for s in requests):
        scaled_BV = _top_k(scaled_BV, [s.top_k for s in requests])
    weights_BV = scaled_BV.softmax(-1)
    if any(s.top_p < 1 for s in requests):
        weights_BV = _top_p(weights_BV, [s.top_p for s in requests])
    if any(s.min_p > 0 for s in requests):
        least_B1 = weights_BV.amax(-1, keepdim=True) * _column([s.min_p for s in requests], weights_BV)
        weights_BV = weights_BV.masked_fill(weights_BV < least_B1, 0.0)
    return weights_BV


def _top_k(logits_BV: Tensor, wanted: list[int]) -> Tensor:
    n = logits_BV.shape[1]
    ks = [k if 0 < k < n else 0 for k in wanted]
    best_BK = logits_BV.topk(max(ks)).values
    last_B1 = best_BK.gather(1, torch.tensor([[max(k - 1, 0)] for k in ks], device=logits_BV.device))
    last_B1[[k == 0 for k in ks]] = -torch.inf
    return logits_BV.masked_fill(logits_BV < last_B1, -torch.inf)


def _top_p(weights_BV: Tensor, wanted: list[float]) -> Tensor:
    if weights_BV.device.type == "cpu":
        last = [_last_needed(weights_V, p) for weights_V, p in zip(weights_BV.numpy(), wanted, strict=True)]
        return weights_BV.masked_fill(weights_BV < _column(last, weights_BV), 0.0)
    sorted_BV = weights_BV.sort(-1, descending=True).values
    p_B1 = _column(wanted, weights_BV).double()
    n_below_B1 = (sorted_BV.cumsum(-1, dtype=torch.float64) < p_B1).sum(-1, keepdim=True)
    last_B1 = sorted_BV.gather(1, n_below_B1.clamp_max(weights_BV.shape[1] - 1))
    return weights_BV.masked_fill((weights_BV < last_B1) & (p_B1 < 1), 0.0)


def _last_needed(weights_V: "np.ndarray[Any, np.dtype[np.float32]]", p: float) -> float:
    """The weight of the last token needed for p, likeliest first. The upper bits of a float tell its size to a 128th:
    only tokens that are alike in those are sorted, as a sort of all takes five times as long as the rest of a draw."""
    size_V = weights_V.view(np.int32) >> 16
    above = np.bincount(size_V, weights_V)[::-1].cumsum()
    i = int(np.searchsorted(above, p))
    if p >= 1 or i == len(above):
        return 0.0
    alike = np.sort(weights_V[size_V == len(above) - 1 - i])[::-1]
    held = (above[i - 1] if i else 0.0) + alike.cumsum(dtype=np.float64)
    return float(alike[min(int(np.searchsorted(held, p)), len(alike) - 1)])


def log_probabilities(
    logits_BV: Tensor, tokens: Sequence[int], alternatives: Sequence[int | None]
) -> list[Logprobs | None]:
    """Of each row's token, and of as many of the likeliest tokens as the row asks for; None where it asks nothing."""
    asked = [i for i, n in enumerate(alternatives) if n is not None]
    told: list[Logprobs | None] = [None] * len(alternatives)
    for i in asked:
        logits_V = logits_BV[i]
        total = float(logits_V.logsumexp(-1))
        best = logits_V.topk(min(alternatives[i] or 0, len(logits_V)))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        told[i] = Logprobs(float(logits_V[tokens[i]]) - total, tuple((token, value - total) for token, value in pairs))
    return told


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]
