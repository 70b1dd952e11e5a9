"""Drafts looked up in what was said before (Yang et al. 2023, arXiv 2304.04487)."""

from collections.abc import Sequence as Many

from isoflop.engine.sequence import Sequence
from isoflop.engine.speculate import Proposal

Index = dict[tuple[int, ...], int]


class NgramDrafter:
    """Where the last n tokens of prompt and output stood before, latest first, what followed them follows again; n from
    `longest` down to `shortest`. Guesses that reach the end go round: text that repeats itself is guessed whole."""

    cost = 0.0

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams from {shortest} to {longest} tokens: at least 1, and the shortest first")
        self._sizes = range(longest, shortest - 1, -1)
        self._known: dict[str, tuple[Index, int]] = {}

    def propose(self, asked: Many[tuple[Sequence, int]]) -> list[Proposal]:
        """See Drafter."""
        return [self._lookup(sequence, k) for sequence, k in asked]

    def forget(self, sequence: Sequence) -> None:
        """See Drafter."""
        self._known.pop(sequence.id, None)

    def _lookup(self, sequence: Sequence, k: int) -> Proposal:
        tokens, index = sequence.tokens, self._index(sequence)
        for n in self._sizes:
            at = index.get(tuple(tokens[-n:]), 0)
            if at:
                distance = len(tokens) - at
                return Proposal(tuple(tokens[at + i % distance] for i in range(k)))
        return Proposal()

    def _index(self, sequence: Sequence) -> Index:
        """Where what followed an n-gram stands, of all that something followed."""
        tokens = sequence.tokens
        index, known = self._known.get(sequence.id, ({}, 1))
        for at in range(known, len(tokens)):
            index |= {tuple(tokens[at - n : at]): at for n in self._sizes if n <= at}
        self._known[sequence.id] = index, len(tokens)
        return index
