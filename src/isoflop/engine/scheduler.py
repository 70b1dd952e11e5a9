"""Who computes what in the next step: first come, first served.

A step has a budget of tokens. Sequences under way come first, in the order in which they arrived: one that is being
decoded brings its last token and its drafts, one whose prompt is not known yet brings a chunk of it. Where pages run
out, the youngest gives back all it holds and waits in its old place in the line; its tokens stay, and what is left in
the caches of its blocks is found again. Then those who wait enter, the oldest first, none before one that came earlier:
nobody waits forever, as each who leaves makes room for the first in line, and whoever is first can always fit alone.
Only one that begins as another whose beginning is just being computed waits for that, and others pass it meanwhile.
"""

from bisect import insort

from isoflop.engine.holdings import Holdings
from isoflop.engine.sequence import Sequence, Work

SPARED = 64  # tokens that are worth a step's wait for another sequence to compute them


class Scheduler:
    """`most_running` sequences at once, `tokens_per_step` new tokens a step, at most `chunk` of one sequence."""

    def __init__(self, holdings: Holdings, most_running: int, tokens_per_step: int, chunk: int) -> None:
        self.holdings = holdings
        self.most_running, self.tokens_per_step, self.chunk = most_running, tokens_per_step, chunk
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.n_preempted = 0

    def add(self, sequence: Sequence) -> None:
        """To the line, at the place of its arrival."""
        insort(self.waiting, sequence, key=_arrival)

    def start(self, sequence: Sequence) -> None:
        """Under way at once: it holds what it needs already."""
        insort(self.running, sequence, key=_arrival)

    def remove(self, sequence: Sequence) -> None:
        """Give back what it holds, wherever it is."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self.holdings.leave(sequence)

    def make_room(self, sequence: Sequence, n_new: int) -> bool:
        """Have room for n_new more tokens of a running sequence, made if need be by the youngest; False where that is
        the sequence itself."""
        while not self.holdings.reserve(sequence, n_new):
            youngest = self.running[-1]
            self._preempt(youngest)
            if youngest is sequence:
                return False
        return True

    def schedule(self) -> list[Work]:
        """The next step, those that bring few tokens first; empty only if nobody is there."""
        before = self.n_preempted
        works = self._continue()
        if not works or self.n_preempted == before:  # who enters now would only be turned out again
            works += self._enter(self.tokens_per_step - sum(work.n_tokens for work in works))
        return sorted(works, key=lambda work: work.n_tokens)

    def _continue(self) -> list[Work]:
        works: list[Work] = []
        left, i = self.tokens_per_step, 0
        while i < len(self.running) and left > 0:
            sequence, behind = self.running[i], len(self.running) - i - 1
            work = self._reserved(sequence, max(1, left - behind))  # a prompt leaves a token to each who came later
            if work is not None:
                works.append(work)
                left -= work.n_tokens
                i += 1
        return works

    def _reserved(self, sequence: Sequence, left: int) -> Work | None:
        """What it brings, with room for it, made if need be by the youngest; None where that is the sequence itself."""
        n = self._chunk(sequence, left)
        drafts = tuple(sequence.drafts[: min(left, self.chunk) - n]) if n == sequence.n_pending else ()
        if drafts and not self.holdings.reserve(sequence, n + len(drafts)):
            drafts = ()
        if not self.make_room(sequence, n + len(drafts)):
            return None
        return Work(sequence, n, drafts, sequence.says(n))

    def _preempt(self, sequence: Sequence) -> None:
        self.remove(sequence)
        sequence.n_computed, sequence.snapshot = 0, None
        self.n_preempted += 1
        self.add(sequence)

    def _enter(self, left: int) -> list[Work]:
        works: list[Work] = []
        i = 0
        while i < len(self.waiting) and len(self.running) < self.most_running:
            sequence = self.waiting[i]
            found = self.holdings.longest_prefix(sequence)
            if self._follows(sequence, found):
                i += 1
                continue
            if left <= 0 or not self.holdings.can_enter(sequence, self.chunk, found):
                break
            self.holdings.enter(sequence, found)
            n = self._chunk(sequence, left)
            reserved = self.holdings.reserve(sequence, n)
            assert reserved, "there was room"
            del self.waiting[i]
            self.start(sequence)
            if not sequence.told:
                sequence.n_cached = sequence.n_computed
            works.append(Work(sequence, n, (), sequence.says(n)))
            left -= n
        return works

    def _follows(self, sequence: Sequence, found: int) -> bool:
        """Whether one under way is about to compute blocks that this one, with `found` in the caches, needs next. Where
        there are states, that one is told to keep them where the two part."""
        if not self.holdings.reuse:
            return False
        known = found * self.holdings.page_tokens
        for leader in self.running:
            worth = leader.n_pending >= SPARED
            ahead = self._common(sequence, leader, found) * self.holdings.page_tokens if worth else 0
            if ahead > leader.n_computed and ahead >= known + SPARED:
                if leader.branch <= leader.n_computed:
                    leader.branch = ahead
                return leader.branch <= ahead
        return False

    def _common(self, sequence: Sequence, leader: Sequence, n: int) -> int:
        """How many blocks two sequences have in common, looked for from block n on."""
        size = self.holdings.page_tokens
        most = min(sequence.n_findable, len(leader.tokens)) // size
        while n < most and sequence.digest(n, size) == leader.digest(n, size):
            n += 1
        return n

    def _chunk(self, sequence: Sequence, left: int) -> int:
        """How many of its tokens come next. States are kept at the ends of blocks, so where there are any a chunk ends
        with a block: where it leaves what others began with too, and the last whole one of the prompt at the latest.
        One that comes back after a pause, to be guessed for, has its last token left to be guessed from."""
        pending = sequence.n_pending - (sequence.unguessed and sequence.n_pending > 1)
        n, size = min(pending, left, self.chunk), self.holdings.page_tokens
        if not self.holdings.keeps_states:
            return n
        end = sequence.n_computed + n
        if sequence.n_computed < sequence.branch <= end:
            return sequence.branch - sequence.n_computed
        border = (min(end, len(sequence.tokens) - 1)) // size * size
        return border - sequence.n_computed if border > sequence.n_computed else n


def _arrival(sequence: Sequence) -> int:
    return sequence.arrival
