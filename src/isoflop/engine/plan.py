"""From a budget of bytes to numbers of pages and slots.

Layers that see equally far back share one table of pages a sequence (a `Group`): a page holds page_tokens tokens of
all of them. Pools of different groups are apart, and so are the slots of recurrent states, whose size has nothing to do
with that of a page. Every byte is the cost model's (cost.cache).
"""

from dataclasses import dataclass
from typing import NamedTuple

from isoflop.architecture import Attention, Decoder, Mixer
from isoflop.cost.cache import QUANTIZED, layer_cache


class Reach(NamedTuple):
    """How far back a token sees: a window of that many last tokens, its own chunk of that size, or everything."""

    window: int | None = None
    chunk: int | None = None

    def first(self, position: int) -> int:
        """The first token that the one at `position` sees."""
        if self.window is not None:
            return max(0, position - self.window + 1)
        return position // self.chunk * self.chunk if self.chunk is not None else 0

    def most(self, n_new: int) -> int | None:
        """The most tokens that `n_new` consecutive ones see, themselves among them; None: no bound."""
        if self.window is not None:
            return self.window + n_new - 1
        return None if self.chunk is None else self.chunk + n_new - 1


@dataclass(frozen=True)
class Group:
    """Layers with one reach, and the bytes that a page holds of all of them."""

    reach: Reach
    layers: tuple[int, ...]
    page_bytes: int

    def pages(self, n_tokens: int, n_new: int, page_tokens: int) -> int:
        """The most pages that a sequence of n_tokens holds while it takes in at most n_new of them at a time."""
        whole, most = -(-n_tokens // page_tokens), self.reach.most(n_new)
        return whole if most is None else min(whole, -(-(most - 1) // page_tokens) + 1)


@dataclass(frozen=True)
class Plan:
    """What is allocated: pages of each group, and slots of recurrent states; keys, values and latents in `dtype`,
    the inputs of convolutions in `rest` (cost.cache)."""

    page_tokens: int
    groups: tuple[Group, ...]
    n_pages: tuple[int, ...]
    slot_bytes: int
    n_slots: int
    dtype: str
    rest: str

    @property
    def nbytes(self) -> int:
        pages = sum(n * group.page_bytes for n, group in zip(self.n_pages, self.groups, strict=True))
        return pages + self.n_slots * self.slot_bytes

    def chunk(self, most: int) -> int:
        """How many tokens a sequence may take in at once, `most` or fewer: while it does, all that the first of them
        sees must be there too, which where a window's pages are few leaves no room for many."""
        bounded = [(g, n) for g, n in zip(self.groups, self.n_pages, strict=True) if g.reach.most(1) is not None]
        while most > 1 and any(g.pages(1 << 40, most, self.page_tokens) > n for g, n in bounded):
            most //= 2
        return most


def plan_memory(
    decoder: Decoder,
    budget: int,
    page_tokens: int,
    n_slots: int,
    n_new: int,
    dtype: str | None,
    own: str,
    typical: int | None = None,
) -> Plan:
    """Spend at most `budget` bytes: on `n_slots` slots (at most half of the budget where there are pages too), the rest
    on pages, divided between the groups so that sequences of `typical` tokens (default: min(max_context, 2048)), taken
    in n_new at a time, find as many as they need of each. `own`: the model's type, which is the cache's where `dtype`
    is None, and that of what is not quantized where it is. Raises ValueError where nothing can run."""
    dtype = dtype or own
    rest = own if dtype in QUANTIZED else dtype
    groups = _groups(decoder, page_tokens, dtype, rest)
    slot_bytes = sum(layer_cache(mixer, decoder.d_model, dtype, rest)[1] for _, mixer in _mixers(decoder))
    if slot_bytes:
        n_slots = min(n_slots, max(1, (budget // 2 if groups else budget) // slot_bytes))
    else:
        n_slots = 0
    least = sum(group.page_bytes for group in groups)
    left = budget - n_slots * slot_bytes - least
    if left < 0:
        raise ValueError(f"memory of {budget} bytes: the caches of this model take at least {slot_bytes + least}")
    typical = min(decoder.max_context, typical or 2048)
    wanted = [group.pages(typical, n_new, page_tokens) for group in groups]
    a_sequence = sum(n * group.page_bytes for n, group in zip(wanted, groups, strict=True))
    n_pages = tuple(1 + left * n // a_sequence for n in wanted)
    return Plan(page_tokens, groups, n_pages, slot_bytes, n_slots, dtype, rest)


def _mixers(decoder: Decoder) -> list[tuple[int, Mixer]]:
    return [(i, layer.mixer) for i, layer in enumerate(decoder.layers) if layer.mixer is not None]


def _groups(decoder: Decoder, page_tokens: int, dtype: str, rest: str) -> tuple[Group, ...]:
    members: dict[Reach, dict[int, int]] = {}
    for i, mixer in _mixers(decoder):
        n_bytes, _ = layer_cache(mixer, decoder.d_model, dtype, rest)
        if n_bytes:
            reach = Reach(mixer.window, mixer.chunk) if isinstance(mixer, Attention) else Reach()
            members.setdefault(reach, {})[i] = n_bytes
    return tuple(Group(reach, tuple(layers), page_tokens * sum(layers.values())) for reach, layers in members.items())
