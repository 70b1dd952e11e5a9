"""How tensors of theirs make one parameter of ours. M d_model, F d_ff, E expert, H query head, K key/value head,
D d_head.

A `How` knows the places that an element of one has in the other, as pairs of views, and so serves both directions:
copying from right to left imports, from left to right exports.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from isoflop.architecture import Attention, Mixer

Shape = tuple[int, ...]
Pairs = Callable[[Tensor, Tensor], list[tuple[Tensor, Tensor]]]  # (ours, theirs) -> views that hold the same numbers


class Link(NamedTuple):
    """One tensor of theirs that has a part in one parameter of ours: ours = theirs + shift, view by view."""

    theirs: str
    shape: Shape
    pairs: Pairs
    shift: float = 0.0


@dataclass(frozen=True)
class Same:
    """One tensor; `shift` is added to it (Gemma's norms multiply by 1 + weight)."""

    name: str
    shift: float = 0.0

    def links(self, shape: Shape, mixer: Mixer | None) -> list[Link]:
        return [Link(self.name, shape, lambda ours, theirs: [(ours, theirs)], self.shift)]


@dataclass(frozen=True)
class Turned:
    """One matrix (or stack of matrices) with rows for columns; a vector as it is."""

    name: str

    def links(self, shape: Shape, mixer: Mixer | None) -> list[Link]:
        if len(shape) == 1:
            return Same(self.name).links(shape, mixer)
        return [Link(self.name, _turned(shape), lambda ours, theirs: [(ours.mT, theirs)])]


@dataclass(frozen=True)
class Kernel:
    """A depthwise convolution's [C, width], theirs [C, 1, width]."""

    name: str

    def links(self, shape: Shape, mixer: Mixer | None) -> list[Link]:
        return [Link(self.name, (shape[0], 1, shape[1]), lambda ours, theirs: [(ours, theirs.squeeze(1))])]


@dataclass(frozen=True)
class GateUp:
    """Rows of the gate, then rows of the up projection, [2 F, M]."""

    gate: str
    up: str

    def links(self, shape: Shape, mixer: Mixer | None) -> list[Link]:
        return _rows((self.gate, self.up), (shape[0] // 2,) * 2, shape)


@dataclass(frozen=True)
class QueryKeyValue:
    """Rows of all queries, all keys, all values, [(H + 2 K) D, M]."""

    q: str
    k: str
    v: str

    def links(self, shape: Shape, mixer: Mixer | None) -> list[Link]:
        assert isinstance(mixer, Attention)
        return _rows((self.q, self.k, self.v), _heads(mixer), shape)


@dataclass(frozen=True)
class Grouped:
    """One tensor of K groups, each the rows of its H / K queries, then of its key, then of its value."""

    name: str

    def links(self, shape: Shape, mixer: Mixer | None) -> list[Link]:
        assert isinstance(mixer, Attention)
        a = mixer

        def pairs(ours: Tensor, theirs: Tensor) -> list[tuple[Tensor, Tensor]]:
            parts = ours.split(_heads(a))
            q, k, v = theirs.unflatten(0, (a.n_kv_heads, -1, a.d_head)).split((a.n_heads // a.n_kv_heads, 1, 1), dim=1)
            return [
                (part.unflatten(0, (a.n_kv_heads, -1, a.d_head)), view)
                for part, view in zip(parts, (q, k, v), strict=True)
            ]

        return [Link(self.name, shape, pairs)]


@dataclass(frozen=True)
class Alternating:
    """One tensor whose last dimension alternates gate and up, where ours has all of the gate first."""

    name: str

    def links(self, shape: Shape, mixer: Mixer | None) -> list[Link]:
        return [
            Link(
                self.name,
                shape,
                lambda ours, theirs: [(ours.unflatten(-1, (2, -1)), theirs.unflatten(-1, (-1, 2)).mT)],
            )
        ]


@dataclass(frozen=True)
class PerExpert:
    """A stack [E, in, out] whose experts are matrices of their own, [out, in]; `{e}` in the name is the expert."""

    name: str

    def links(self, shape: Shape, mixer: Mixer | None) -> list[Link]:
        return [_expert(self.name, e, shape, slice(None)) for e in range(shape[0])]


@dataclass(frozen=True)
class GateUpPerExpert:
    """A stack [E, M, 2 F] whose experts' gates and ups are matrices of their own, [F, M]."""

    gate: str
    up: str

    def links(self, shape: Shape, mixer: Mixer | None) -> list[Link]:
        width = shape[2] // 2
        gate, up = slice(0, width), slice(width, None)
        each = [(_expert(self.gate, e, shape, gate), _expert(self.up, e, shape, up)) for e in range(shape[0])]
        return [link for both in each for link in both]


How = Same | Turned | Kernel | GateUp | QueryKeyValue | Grouped | Alternating | PerExpert | GateUpPerExpert


def _turned(shape: Shape) -> Shape:
    return (*shape[:-2], shape[-1], shape[-2])


def _heads(a: Attention) -> tuple[int, int, int]:
    return a.n_heads * a.d_head, a.n_kv_heads * a.d_head, a.n_kv_heads * a.d_head


def _rows(names: tuple[str, ...], sizes: tuple[int, ...], shape: Shape) -> list[Link]:
    """Tensors that lie one under the other."""
    links, start = [], 0
    for name, size in zip(names, sizes, strict=True):
        links.append(_rows_from(name, start, size, shape))
        start += size
    return links


def _rows_from(name: str, start: int, size: int, shape: Shape) -> Link:
    return Link(name, (size, *shape[1:]), lambda ours, theirs: [(ours[start : start + size], theirs)])


def _expert(name: str, e: int, shape: Shape, columns: slice) -> Link:
    n_columns = len(range(*columns.indices(shape[2])))
    return Link(name.format(e=e), (n_columns, shape[1]), lambda ours, theirs: [(ours[e, :, columns].mT, theirs)])
