"""Guessing token after token with a model, for many sequences at once. N sequence, K guess, V vocabulary."""

from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass, field

import torch
from torch import Tensor

from isoflop.architecture import Decoder
from isoflop.cost.parameters import parameters
from isoflop.engine.batch import Work
from isoflop.engine.draw import Row
from isoflop.engine.sequence import Sequence
from isoflop.engine.speculate import Proposal, guess, rows_after


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


def relative_cost(draft: Decoder, target: Decoder) -> float:
    """Of a pass of the draft, in passes of the target: by their weights, or by their layers if that is more, as small
    models wait for the starts of kernels and not for their weights."""
    weights = parameters(draft).matmul / parameters(target).matmul
    return float(max(weights, draft.n_layers / target.n_layers))
