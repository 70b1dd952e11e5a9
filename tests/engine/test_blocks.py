"""The block allocator against a model of itself."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from isoflop.engine.blocks import BlockPool, chained

NAMES = [bytes([i]) for i in range(6)]


class Pool(RuleBasedStateMachine):
    """`held`: every hold, one entry each; `names`: what named blocks contain; `cached`: blocks with a name that nobody
    holds, longest first. Free is what is neither held nor cached."""

    @initialize(n_blocks=st.integers(1, 5))
    def start(self, n_blocks: int) -> None:
        self.pool, self.n_blocks = BlockPool(n_blocks), n_blocks
        self.held: list[int] = []
        self.names: dict[bytes, int] = {}
        self.cached: list[int] = []

    @precondition(lambda self: len(set(self.held)) < self.n_blocks)
    @rule()
    def take(self) -> None:
        free = set(range(self.n_blocks)) - set(self.held) - set(self.cached)
        block = self.pool.take()
        if free:
            assert block in free
        else:
            assert block == self.cached.pop(0)
            self.names = {name: at for name, at in self.names.items() if at != block}
        self.held.append(block)

    @rule(name=st.sampled_from(NAMES))
    def find_and_share(self, name: bytes) -> None:
        block = self.pool.find(name)
        assert block == self.names.get(name)
        if block is not None:
            self.pool.share(block)
            self.held.append(block)
            self.cached = [at for at in self.cached if at != block]

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        block = data.draw(st.sampled_from(self.held))
        self.pool.give(block)
        self.held.remove(block)
        if block not in self.held and block in self.names.values():
            self.cached.append(block)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), name=st.sampled_from(NAMES))
    def name(self, data: st.DataObject, name: bytes) -> None:
        block = data.draw(st.sampled_from(self.held))
        self.pool.name(block, name)
        if name not in self.names and block not in self.names.values():
            self.names[name] = block

    @rule(name=st.sampled_from(NAMES))
    def forget(self, name: bytes) -> None:
        self.pool.forget(name)
        block = self.names.pop(name, None)
        self.cached = [at for at in self.cached if at != block]

    @invariant()
    def counts(self) -> None:
        assert self.pool.n_held == len(set(self.held))
        assert self.pool.n_cached == len(self.cached)
        assert self.pool.n_available == self.n_blocks - self.pool.n_held
        assert all(self.pool.holders(block) == self.held.count(block) for block in range(self.n_blocks))
        assert all(self.pool.find(name) == self.names.get(name) for name in NAMES)


TestPool = Pool.TestCase
TestPool.settings = settings(max_examples=60, stateful_step_count=40)


def test_names_depend_on_all_that_came_before() -> None:
    first, other = chained(b"", (1, 2)), chained(b"", (1, 3))
    assert len({first, other, chained(b"salt", (1, 2)), chained(first, (1, 2)), chained(other, (1, 2))}) == 5
    assert chained(first, (4,)) == chained(chained(b"", (1, 2)), (4,))
