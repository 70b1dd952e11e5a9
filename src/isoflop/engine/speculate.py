"""Speculative decoding: what a drafter is, and how what it guesses is judged (Leviathan et al. 2023, arXiv 2211.17192;
Chen et al. 2023, arXiv 2302.01318). R row of logits, N drawn row, K drafted token, V vocabulary.

A drafted token d that was drawn from q is said with probability min(1, p(d) / q(d)), where p is what the model itself
would draw from there; else a token of max(0, p - q) / sum is. So each token is one of p, whatever q is. A drafter that
draws nothing (q is 1 at its guess) needs no other rule than: draw from p, and see whether that was guessed.

Chance is a function of the request's seed and the token's place in it (draw.uniform): one number for what the drafter
draws, one to judge it, one for what is said in its place. A request's guesses are made where its own history says so
and nowhere else, and guesses that a step has no room for wait for the next; so it says the same in any company.
"""

from collections.abc import Sequence as Many
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from isoflop.cost.serving import Speculation
from isoflop.engine.draw import (
    Drawn,
    Row,
    adjusted,
    invert,
    likeliest,
    log_probabilities,
    probabilities,
    sample,
    uniform,
)
from isoflop.engine.sequence import Sequence

DRAFTED, JUDGED = 1, 2  # streams of numbers beside that of draws
AGAIN = 64  # tokens after which a request whose guesses did not pay is guessed for once more


class Proposal(NamedTuple):
    """Guesses at the tokens that follow, and the distributions they were drawn from, [K, V]; None: from none."""

    tokens: tuple[int, ...] = ()
    odds_KV: Tensor | None = None


class Drafter(Protocol):
    """Guesses what comes next."""

    @property
    def cost(self) -> float:
        """Of a guess, about: in passes of the model over one token."""
        ...

    def propose(self, asked: Many[tuple[Sequence, int]]) -> list[Proposal]:
        """For each sequence and k, at most k tokens that may follow `sequence.tokens`. They must depend on nothing but
        these, k, and the request."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        ...


class Guess(NamedTuple):
    """A drafted token, and the distribution it was drawn from, [V]."""

    token: int
    odds_V: Tensor


def say(logits_RV: Tensor, rows: Many[Row], guesses: Many[Guess | None]) -> list[Drawn]:
    """What each row says: the guess, if it is accepted, and never if it is not. Where there is none, what is drawn."""
    said: dict[int, Drawn] = {}
    plain = [i for i, guess in enumerate(guesses) if guess is None]
    guessed = [(i, guess) for i, guess in enumerate(guesses) if guess is not None]
    if plain:
        chosen = logits_RV if not guessed else logits_RV[plain]
        said |= zip(plain, sample(chosen, [rows[i] for i in plain]), strict=True)
    if guessed:
        at = [i for i, _ in guessed]
        judged = _judge(logits_RV[at], [rows[i] for i in at], [guess for _, guess in guessed])
        said |= zip(at, judged, strict=True)
    return [said[i] for i in range(len(rows))]


def _judge(logits_NV: Tensor, rows: Many[Row], guesses: Many[Guess]) -> list[Drawn]:
    p_NV, q_NV = probabilities(logits_NV, rows), torch.stack([guess.odds_V for guess in guesses])
    tokens = [guess.token for guess in guesses]
    at_N1 = torch.tensor(tokens, device=p_NV.device)[:, None]
    p_N, q_N = p_NV.gather(1, at_N1)[:, 0].tolist(), q_NV.gather(1, at_N1)[:, 0].tolist()
    numbers = [uniform(row.seed, len(row.history), JUDGED) for row in rows]
    wrong = [i for i, (p, q, u) in enumerate(zip(p_N, q_N, numbers, strict=True)) if not u * q < p]
    if wrong:
        rest_NV = (p_NV[wrong] - q_NV[wrong]).clamp_min(0)
        rest_NV = torch.where(rest_NV.sum(-1, keepdim=True) > 0, rest_NV, p_NV[wrong])  # p = q, but for rounding
        instead = invert(rest_NV, [uniform(rows[i].seed, len(rows[i].history)) for i in wrong])
        for i, token in zip(wrong, instead, strict=True):
            tokens[i] = token
    told = log_probabilities(logits_NV, tokens, [row.sampling.logprobs for row in rows])
    return [Drawn(token, logprobs) for token, logprobs in zip(tokens, told, strict=True)]


def guess(logits_NV: Tensor, rows: Many[Row]) -> tuple[list[int], list[Tensor | None]]:
    """What a drafter with such logits guesses for each row, and what it drew that from: a distribution shaped as the
    request shapes the model's own, temperature, filters, penalties and all; None where the likeliest is taken."""
    odds: list[Tensor | None] = [None] * len(rows)
    drawn = [i for i, row in enumerate(rows) if not row.sampling.greedy]
    tokens = likeliest(adjusted(logits_NV, rows)) if len(drawn) < len(rows) else [0] * len(rows)
    if drawn:
        chosen_NV = logits_NV[drawn] if len(drawn) < len(rows) else logits_NV
        odds_NV = probabilities(chosen_NV, [rows[i] for i in drawn])
        numbers = [uniform(rows[i].seed, len(rows[i].history), DRAFTED) for i in drawn]
        for i, token, odds_V in zip(drawn, invert(odds_NV, numbers), odds_NV, strict=True):
            tokens[i], odds[i] = token, odds_V
    return tokens, odds


def rows_after(row: Row, drafts: Many[int]) -> list[Row]:
    """The row of a sequence's next token, and of the one after each of the drafts."""
    if not drafts:  # nor is a history copied that may be long
        return [row]
    known = list(row.history)
    return [row, *(replace(row, history=[*known, *drafts[: i + 1]]) for i in range(len(drafts)))]


def worth(sequence: Sequence, most: int, cost: float, row_cost: float) -> int:
    """How many guesses to ask for, at most `most`: as many as gain the most if the share of guesses that were right so
    far stays, a guess costs `cost`, and a further row of a pass `row_cost`, in passes over one token. None, but for a
    single one now and then, where they do not pay."""
    share = (sequence.accepted + 3) / (sequence.judged + 4)  # as if three of four had been right before
    gains = [speed_up(k, share, cost, 1 + k * row_cost) for k in range(1, most + 1)]
    best = max(range(most), key=gains.__getitem__, default=-1)
    if best >= 0 and gains[best] > 1:
        return best + 1
    return int(most > 0 and (len(sequence.tokens) - sequence.row.n_prompt) % AGAIN == 0)


def speed_up(drafted: int, acceptance: float, draft: float, verify: float) -> float:
    """Tokens in the time of one without drafts, as cost.serving predicts it."""
    return Speculation(drafted, min(acceptance, 1 - 1e-9)).speed_up(draft, verify)
