"""Guessing token after token with a model, for many sequences at once. N sequence, K guess, V vocabulary."""

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isoflop.architecture import Attention, Decoder, Mlp
from isoflop.cost.parameters import parameters
from isoflop.engine.draw import Row
from isoflop.engine.sequence import Sequence, Work
from isoflop.engine.speculate import Proposal, guess, rows_after
from isoflop.model import DecoderModel

# What a pass takes on a processor beside its weights, as so many of them: once, for a layer of those that run together
# in one call, and for any other layer.
PASS, JOINED, ALONE = 5e5, 5e4, 1e6


@dataclass
class Roll:
    """`stand` takes the guesses in as if they were said, in place of the sequence itself; `k` of them are wanted."""

    sequence: Sequence
    stand: Sequence
    k: int
    tokens: list[int] = field(default_factory=list)
    odds: list[Tensor] = field(default_factory=list)

    @property
    def row(self) -> Row:
        """Of the next guess."""
        return rows_after(self.sequence.row, self.tokens)[-1]

    @property
    def proposal(self) -> Proposal:
        return Proposal(tuple(self.tokens), torch.stack(self.odds) if self.odds else None)


def roll(forward: Callable[[list[Work]], Tensor], rolls: Many[Roll], step: Callable[[Roll], None]) -> None:
    """Guess until each has its k. `forward` gives the logits [N, V] after what each stand brings; `step` comes before a
    guess is taken in. Stands bring what is pending first."""
    under_way = sorted(rolls, key=lambda r: r.stand.n_pending)
    while under_way:
        logits_NV = forward([Work(r.stand, r.stand.n_pending) for r in under_way])
        tokens, odds = guess(logits_NV, [r.row for r in under_way])
        for r, token, odds_V in zip(under_way, tokens, odds, strict=True):
            r.tokens.append(token)
            r.odds += [] if odds_V is None else [odds_V]
        under_way = [r for r in under_way if len(r.tokens) < r.k]
        for r in under_way:
            r.stand.n_computed = len(r.stand.tokens)
            step(r)
            r.stand.tokens.append(r.tokens[-1])


def relative_cost(draft: DecoderModel, target: Decoder) -> float:
    """Of a pass of the draft, in passes of a target on the same device, in fp32; see docs/decisions.md, "Speculative
    decoding with a trained pair"."""
    if draft.embedding.device.type == "cpu":
        return _processor_time(draft.decoder) / _processor_time(target)
    weights = parameters(draft.decoder).matmul / parameters(target).matmul
    return float(max(weights, draft.decoder.n_layers / target.n_layers))  # small models wait for the starts of kernels


def _processor_time(decoder: Decoder) -> float:
    """Of a pass over one token, as that of so many weights."""
    joined = sum(isinstance(x.mixer, Attention) and isinstance(x.feed_forward, Mlp) for x in decoder.layers)
    return float(parameters(decoder).matmul + PASS + JOINED * joined + ALONE * (decoder.n_layers - joined))
