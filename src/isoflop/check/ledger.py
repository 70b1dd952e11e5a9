"""A book of the products that a model makes, by layer and part, forward and backward.

Forward, a part is what runs between a module's entry and its exit. Backward, autograd runs a node for every step of the
forward: each node made inside a part is marked as its, so that its products are booked there, in whatever order the
engine runs them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from isoflop.check.operators import ATTENTION, GROUPED, flops_of
from isoflop.model import DecoderModel

_MARK = "isoflop_part"


class Place(NamedTuple):
    """Where a product belongs; outside of the layers (`layer` None) is the head."""

    layer: int | None
    part: str


HEAD = Place(None, "head")


class Entry(NamedTuple):
    """A weight that tokens were multiplied with: its numbers, its groups (experts; 1 for a plain matrix), and how many
    rows it met."""

    place: Place
    numel: int
    groups: int
    rows: int


class Ledger(TorchDispatchMode):
    """While it is entered, FLOPs of every operator are booked in `forward` or `backward` (while `in_backward`), and
    each weight that enters a matrix product of the forward in `weights`. `whole`: attention as if every token saw
    all of the context."""

    def __init__(self, model: DecoderModel, whole: bool) -> None:
        super().__init__()
        self.forward: Counter[Place] = Counter()
        self.backward: Counter[Place] = Counter()
        self.weights: dict[int, Entry] = {}
        self.whole, self.in_backward = whole, False
        self._open: list[Place] = []
        self._parameters = {p.untyped_storage()._cdata: p for p in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        n = flops_of(func._overloadpacket, args, out, self.whole)
        if n:
            place = self._place()
            if func._overloadpacket in ATTENTION:
                place = place._replace(part="mixing")
            (self.backward if self.in_backward else self.forward)[place] += n
            if not self.in_backward:
                self._enter_weight(place, func._overloadpacket, args)
        return out

    def run(self, place: Place, function: Callable[..., Any], *args: Any) -> Any:
        """function(*args), its products booked at a place, those of its backward too."""
        self._open.append(place)
        out = function(*args)
        self._open.pop()
        _mark(_tensors(out), _tensors(args), place)
        return out

    def current(self, part: str) -> Place:
        """This part of the layer that is running."""
        return self._place()._replace(part=part)

    @contextmanager
    def watching(self, modules: Iterable[tuple[nn.Module, Place]]) -> Iterator[None]:
        """Book what these modules do at their places."""
        handles = []
        for module, place in modules:
            handles.append(module.register_forward_pre_hook(self._on_entry(place)))
            handles.append(module.register_forward_hook(self._on_exit(place)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_entry(self, place: Place) -> Callable[..., None]:
        return lambda module, args: self._open.append(place)

    def _on_exit(self, place: Place) -> Callable[..., None]:
        def leave(module: nn.Module, args: Any, out: Any) -> None:
            self._open.pop()
            _mark(_tensors(out), _tensors(args), place)

        return leave

    def _place(self) -> Place:
        if self._open:
            return self._open[-1]
        node = torch._C._current_autograd_node()
        return HEAD if node is None else node.metadata.get(_MARK, HEAD)

    def _enter_weight(self, place: Place, function: Any, args: Any) -> None:
        """The factor that is a parameter, if one is."""
        factors = [x for x in args if isinstance(x, Tensor)]
        for x in factors:
            parameter = self._parameters.get(x.untyped_storage()._cdata)
            if parameter is not None and x.dim() > 1:
                groups = len(parameter) if function is GROUPED else 1
                self.weights[x.untyped_storage()._cdata] = Entry(place, parameter.numel(), groups, factors[0].shape[0])


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _mark(outputs: list[Tensor], inputs: list[Tensor], place: Place) -> None:
    """Mark the nodes between: those that lead from the inputs to the outputs or from parameters to them. What an inner
    part has marked stays."""
    seen = {x.grad_fn for x in inputs if x.grad_fn is not None}
    waiting = [x.grad_fn for x in outputs if x.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        node.metadata.setdefault(_MARK, place)
        waiting.extend(following for following, _ in node.next_functions)
