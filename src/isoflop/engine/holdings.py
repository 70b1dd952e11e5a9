"""Which pages and slots sequences hold: taken before a step, named after it, shared by prefix, copied on write.

Nothing here touches a tensor: what has to be copied or cleared before the next forward is left in `orders`.
"""

from array import array
from collections import OrderedDict
from dataclasses import dataclass, field

from isoflop.engine.blocks import BlockPool, Digest
from isoflop.engine.plan import Plan
from isoflop.engine.sequence import NOTHING, Sequence

REMEMBERED = 1 << 16  # names of blocks, by which prefixes in common are seen where no pages tell of them


@dataclass
class Orders:
    """For the owner of the tensors, each list in its order: pages to copy (group, from, to), and slots to copy (from,
    to), where from None means to clear."""

    pages: list[tuple[int, int, int]] = field(default_factory=list)
    slots: list[tuple[int | None, int]] = field(default_factory=list)


class Holdings:
    """The pools of a plan. `reuse`: whole blocks are named by their contents, and found by them."""

    def __init__(self, plan: Plan, reuse: bool) -> None:
        self.plan, self.reuse = plan, reuse
        self.page_tokens = plan.page_tokens
        self.pages = [BlockPool(n) for n in plan.n_pages]
        self.slots = BlockPool(plan.n_slots)
        self.orders = Orders()
        self.keeps_states = reuse and plan.n_slots > 1
        self._seen: OrderedDict[Digest, None] = OrderedDict()
        self.n_looked_up = self.n_found = self.n_copied = 0

    # ---- a sequence comes and goes

    def can_enter(self, sequence: Sequence, n_new: int, found: int) -> bool:
        """Whether a slot, and pages for all that is left of its tokens (taken in n_new at a time), are there, beside
        those `found` whole blocks which nobody else holds and which it will take out of the cache."""
        if self.plan.slot_bytes and not self.slots.n_available:
            return False
        return all(self._n_wanted(g, sequence, n_new, found) <= pool.n_available for g, pool in enumerate(self.pages))

    def enter(self, sequence: Sequence, found: int) -> None:
        """Take a slot, and share `found` whole blocks of its prefix."""
        sequence.n_computed = found * self.page_tokens
        sequence.tables = []
        for g, pool in enumerate(self.pages):
            first = self._first(g, sequence.n_computed)
            pages = [self._page(g, sequence, block) for block in range(first, found)]
            for page in pages:
                pool.share(page)
            sequence.tables.append(array("q", [NOTHING] * min(first, found) + pages))
        if self.plan.slot_bytes:
            self._enter_slot(sequence, found)
        if self.keeps_states:
            sequence.branch = self._branch(sequence) * self.page_tokens
        self.n_looked_up += len(sequence.tokens)
        self.n_found += sequence.n_computed

    def leave(self, sequence: Sequence) -> None:
        """Give all back; the ends of prefixes are evicted before their beginnings."""
        for pool, table in zip(self.pages, sequence.tables, strict=True):
            for page in reversed(table):
                if page != NOTHING:
                    pool.give(page)
        if sequence.slot is not None:
            self.slots.give(sequence.slot)
        sequence.tables, sequence.slot = [], None

    def fork(self, sequence: Sequence, new: Sequence) -> bool:
        """Let `new` share all that the sequence holds, and have a copy of its states; False where no slot is left."""
        if self.plan.slot_bytes and not self.slots.n_available:
            return False
        new.n_computed = sequence.n_computed
        new.tables = [table[:] for table in sequence.tables]
        for pool, table in zip(self.pages, new.tables, strict=True):
            for page in table:
                if page != NOTHING:
                    pool.share(page)
        if sequence.slot is not None:
            new.slot = self.slots.take()
            self.orders.slots.append((sequence.slot, new.slot))
        return True

    def longest_prefix(self, sequence: Sequence) -> int:
        """How many whole blocks from the start are in the caches, with all that the tokens after them will see; at
        least one token is left to compute (Sequence.n_findable)."""
        if not self.reuse:
            return 0
        most = sequence.n_findable // self.page_tokens
        unbounded = [g for g, group in enumerate(self.plan.groups) if group.reach.most(1) is None]
        if unbounded:
            most = next((b for b in range(most) if not all(self._found(g, sequence, b) for g in unbounded)), most)
        return next((found for found in range(most, 0, -1) if self._stands(sequence, found)), 0)

    # ---- a step

    def reserve(self, sequence: Sequence, n_new: int) -> bool:
        """Have room for n_new more tokens, in pages of its own; False, and nothing changed, where there is none."""
        end = -(-(sequence.n_computed + n_new) // self.page_tokens)
        last = sequence.n_computed // self.page_tokens
        shared = [last < len(t) and p.holders(t[last]) > 1 for p, t in zip(self.pages, sequence.tables, strict=True)]
        for pool, table, copied in zip(self.pages, sequence.tables, shared, strict=True):
            if end - len(table) + copied > pool.n_available:
                return False
        for g, (pool, table) in enumerate(zip(self.pages, sequence.tables, strict=True)):
            if shared[g]:
                self._copy(g, table, last)
            table.extend([pool.take() for _ in range(end - len(table))])
        return True

    def settle(self, sequence: Sequence, n_computed: int) -> None:
        """The caches know n_computed tokens: whole blocks get their names, pages that hold none of them or only some
        out of reach are given back."""
        before, sequence.n_computed = sequence.n_computed, n_computed
        whole = range(before // self.page_tokens, n_computed // self.page_tokens if self.reuse else 0)
        if self.keeps_states:
            self._remember([sequence.digest(block, self.page_tokens) for block in whole])
        for g, (pool, table) in enumerate(zip(self.pages, sequence.tables, strict=True)):
            for block in whole:
                pool.name(table[block], sequence.digest(block, self.page_tokens))
            while len(table) > -(-n_computed // self.page_tokens):
                pool.give(table.pop())
            for block in range(min(self._first(g, n_computed), len(table)) - 1, -1, -1):
                if table[block] == NOTHING:
                    break
                pool.give(table[block])
                table[block] = NOTHING

    def keep_states(self, sequence: Sequence, replaced: bool) -> None:
        """Copy the states, which stand at the end of a whole block, under that block's name; `replaced`: in place of
        what was last kept of this sequence in this way, as prompts are asked for more often than answers."""
        digest = sequence.digest(sequence.n_computed // self.page_tokens - 1, self.page_tokens)
        assert sequence.slot is not None and sequence.n_computed % self.page_tokens == 0
        if replaced and sequence.snapshot is not None:
            self.slots.forget(sequence.snapshot)
        if self.slots.find(digest) is None and self.slots.n_available:
            kept = self.slots.take()
            self.orders.slots.append((sequence.slot, kept))
            self.slots.name(kept, digest)
            self.slots.give(kept)
            sequence.snapshot = digest if replaced else None

    # ---- parts

    def _branch(self, sequence: Sequence) -> int:
        """How many whole blocks the sequence has in common with any before it. States there are worth keeping, as it
        will hardly be the last (Pan et al. 2024, Marconi, arXiv 2411.19379)."""
        most = (len(sequence.tokens) - 1) // self.page_tokens
        digests = (sequence.digest(block, self.page_tokens) for block in range(most))
        return next((block for block, digest in enumerate(digests) if digest not in self._seen), most)

    def _remember(self, digests: list[Digest]) -> None:
        for digest in digests:
            self._seen[digest] = None
            self._seen.move_to_end(digest)
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)

    def _first(self, g: int, position: int) -> int:
        """The first block that a token at `position` looks into."""
        return self.plan.groups[g].reach.first(position) // self.page_tokens

    def _found(self, g: int, sequence: Sequence, block: int) -> bool:
        return self.pages[g].find(sequence.digest(block, self.page_tokens)) is not None

    def _page(self, g: int, sequence: Sequence, block: int) -> int:
        page = self.pages[g].find(sequence.digest(block, self.page_tokens))
        assert page is not None
        return page

    def _stands(self, sequence: Sequence, found: int) -> bool:
        """Whether the states after `found` blocks are kept, and all pages within reach of the next token."""
        if self.plan.slot_bytes and self.slots.find(sequence.digest(found - 1, self.page_tokens)) is None:
            return False
        at = found * self.page_tokens
        bounded = [g for g, group in enumerate(self.plan.groups) if group.reach.most(1) is not None]
        return all(self._found(g, sequence, b) for g in bounded for b in range(self._first(g, at), found))

    def _n_wanted(self, g: int, sequence: Sequence, n_new: int, found: int) -> int:
        """Available pages that it takes on entering, and until all its tokens are known."""
        at, group = found * self.page_tokens, self.plan.groups[g]
        shared = [self._page(g, sequence, block) for block in range(self._first(g, at), found)]
        cached = sum(self.pages[g].holders(page) == 0 for page in shared)
        return cached + max(0, group.pages(len(sequence.tokens), n_new, self.page_tokens) - len(shared))

    def _enter_slot(self, sequence: Sequence, found: int) -> None:
        if not found:
            sequence.slot = self.slots.take()
            self.orders.slots.append((None, sequence.slot))
            return
        digest = sequence.digest(found - 1, self.page_tokens)
        kept = self.slots.find(digest)
        assert kept is not None
        self.slots.share(kept)
        if not self.slots.n_available:  # the states that were kept go on as this sequence's own
            self.slots.forget(digest)
            sequence.slot = kept
            return
        sequence.slot = self.slots.take()
        self.slots.give(kept)
        self.orders.slots.append((kept, sequence.slot))

    def _copy(self, g: int, table: "array[int]", block: int) -> None:
        pool, old = self.pages[g], table[block]
        table[block] = pool.take()
        pool.give(old)
        self.orders.pages.append((g, old, table[block]))
        self.n_copied += 1
