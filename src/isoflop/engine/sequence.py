"""One request under way: its tokens, how many of them the caches know, and what it holds; and what it brings to a
step."""

from array import array
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from isoflop.engine.blocks import Digest, chained
from isoflop.engine.draw import Logprobs, Row
from isoflop.engine.request import Request

NOTHING = -1  # in a table: a page that was given back, out of reach


@dataclass(eq=False, slots=True)
class Sequence:
    """request, row         what was asked, and what the choice of its next token depends on
    arrival              its place in the line, kept when it is preempted
    tokens, limit        prompt and output so far, and how many they may become
    turns                of each rope, RopeTables.limited: keys depend on it, and so do the names of blocks
    n_computed, n_cached how many tokens the caches know, and how many were found there when it first entered
    tables, slot         its block table for each group of layers, in order of the tokens held; the slot of its states
    digests              names of its whole blocks, as far as they were needed
    snapshot             the name of the states last kept of its output
    branch               how many tokens it has in common with one before it
    drafts, odds         guesses that it brings to the next steps, and what they were drawn from (speculate.Proposal)
    judged, accepted     how many guesses were so far
    drafted_for          whether it is guessed for
    guessed_out          all guesses were right, and one more token is said before there are new ones
    told                 an event of it was given out
    scores               log probabilities of its prompt's tokens from the second on, as far as known; None: not asked
    """

    request: Request
    arrival: int
    row: Row
    tokens: list[int]
    limit: int
    turns: tuple[int | None, ...] = ()
    n_computed: int = 0
    n_cached: int = 0
    tables: list["array[int]"] = field(default_factory=list)
    slot: int | None = None
    digests: list[Digest] = field(default_factory=list)
    snapshot: Digest | None = None
    branch: int = 0
    drafts: list[int] = field(default_factory=list)
    odds: Tensor | None = None
    judged: int = 0
    accepted: int = 0
    drafted_for: bool = False
    guessed_out: bool = False
    told: bool = False
    scores: list[Logprobs] | None = None

    @property
    def id(self) -> str:
        return self.request.id

    @property
    def unguessed(self) -> bool:
        """Whether guesses are to be made before more is said: never of the first token of the output."""
        decoding = len(self.tokens) > self.row.n_prompt
        return self.drafted_for and decoding and not self.drafts and not self.guessed_out

    @property
    def unscored(self) -> bool:
        """Whether tokens of its prompt are still to be scored."""
        return self.scores is not None and len(self.scores) < self.row.n_prompt - 1

    @property
    def n_findable(self) -> int:
        """How many of its first tokens may be found in the caches: not the last, none that is to be scored or comes
        after one, and one less where guesses are to be made."""
        most = len(self.tokens) - 1 - self.unguessed
        return min(most, len(self.scores)) if self.scores is not None and self.unscored else most

    def says(self, n: int) -> bool:
        """Whether a token of output follows its next n tokens."""
        return n == self.n_pending and len(self.tokens) < self.limit

    @property
    def n_pending(self) -> int:
        """Tokens that the caches do not know yet."""
        return len(self.tokens) - self.n_computed

    def keep_drafts(self, said: list[int]) -> None:
        """Guesses that the step had no room for stay, where all before them were right; and where there was room for
        all but what is said after the last of them, that comes next and without a guess."""
        n = len(said)
        right = n <= len(self.drafts) and self.drafts[:n] == said
        self.drafts = self.drafts[n:] if right else []
        self.odds = self.odds[n:] if right and self.odds is not None else None
        self.guessed_out = right and not self.drafts

    def digest(self, block: int, page_tokens: int) -> Digest:
        """The name of a whole block of its tokens."""
        while len(self.digests) <= block:
            at = len(self.digests) * page_tokens
            before = self.digests[-1] if self.digests else repr(self.turns).encode()
            self.digests.append(chained(before, self.tokens[at : at + page_tokens]))
        return self.digests[block]


class Work(NamedTuple):
    """What a sequence brings to a step: its next n tokens, then its drafts. `wanted`: logits of the last of them and of
    each draft are wanted."""

    sequence: Sequence
    n: int
    drafts: tuple[int, ...] = ()
    wanted: bool = True

    @property
    def n_tokens(self) -> int:
        return self.n + len(self.drafts)

    @property
    def n_wanted(self) -> int:
        """Of its rows the last so many."""
        return 1 + len(self.drafts) if self.wanted else 0

    @property
    def tokens(self) -> list[int]:
        s = self.sequence
        return [*s.tokens[s.n_computed : s.n_computed + self.n], *self.drafts]

    @property
    def positions(self) -> range:
        return range(self.sequence.n_computed, self.sequence.n_computed + self.n_tokens)
