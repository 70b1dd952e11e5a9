"""Who holds which block of memory: a free list, reference counts, and a cache of what blocks contain.

A block is a number below n_blocks: a page of keys and values, or a slot of recurrent states. It is free, held (by one
or several sequences), or cached: held by nobody, but its contents have a name by which they can be found again, until
the room is needed; the block that has been cached the longest is evicted first.
"""

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence

Digest = bytes


class BlockPool:
    """All blocks of one kind."""

    def __init__(self, n_blocks: int) -> None:
        self.n_blocks = n_blocks
        self.n_evicted = 0
        self._free = list(range(n_blocks - 1, -1, -1))
        self._holders = [0] * n_blocks
        self._name_of: dict[int, Digest] = {}
        self._named: dict[Digest, int] = {}
        self._cached: OrderedDict[int, None] = OrderedDict()

    @property
    def n_available(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free) + len(self._cached)

    @property
    def n_held(self) -> int:
        return self.n_blocks - self.n_available

    @property
    def n_cached(self) -> int:
        return len(self._cached)

    def holders(self, block: int) -> int:
        return self._holders[block]

    def take(self) -> int:
        """A block for one holder, of unknown contents. Only where `n_available` is not 0."""
        assert self.n_available, "no block is left"
        block = self._free.pop() if self._free else self._evict()
        self._holders[block] = 1
        return block

    def share(self, block: int) -> None:
        """One holder more, of a held or a cached block."""
        if self._holders[block] == 0:
            del self._cached[block]
        self._holders[block] += 1

    def give(self, block: int) -> None:
        """One holder less; the last leaves a block cached if it has a name, else free."""
        assert self._holders[block] > 0, f"block {block} is held by nobody"
        self._holders[block] -= 1
        if self._holders[block]:
            return
        if block in self._name_of:
            self._cached[block] = None
        else:
            self._free.append(block)

    def name(self, block: int, digest: Digest) -> None:
        """Say what a held block contains. Where another block has the name, or this block has one, nothing changes."""
        assert self._holders[block] > 0
        if digest not in self._named and block not in self._name_of:
            self._named[digest], self._name_of[block] = block, digest

    def find(self, digest: Digest) -> int | None:
        """The block of that name."""
        return self._named.get(digest)

    def forget(self, digest: Digest) -> None:
        """Take a name away, if any block has it: one that nobody holds becomes free."""
        block = self._named.pop(digest, None)
        if block is None:
            return
        del self._name_of[block]
        if self._holders[block] == 0:
            del self._cached[block]
            self._free.append(block)

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._named[self._name_of.pop(block)]
        self.n_evicted += 1
        return block


def chained(before: Digest, tokens: Sequence[int]) -> Digest:
    """The name of a block's contents: its tokens after all those before it."""
    return hashlib.blake2b(before + struct.pack(f"{len(tokens)}q", *tokens), digest_size=16).digest()
