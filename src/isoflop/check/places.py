"""Which part of which layer is running, forward and backward.

Forward, a part is what runs between a module's entry and its exit. Backward, autograd runs a node for every step of the
forward: each node made inside a part is marked as its, whatever the order in which the engine runs them.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

_MARK = "isoflop_part"


class Part(NamedTuple):
    """A part of a layer; outside of the layers (`layer` None) is the head."""

    layer: int | None
    name: str


HEAD = Part(None, "head")


class Places:
    """Follows a model through its modules. Of nested parts the innermost counts."""

    def __init__(self) -> None:
        self._open: list[Part] = []

    def now(self) -> Part:
        """The part that is running."""
        if self._open:
            return self._open[-1]
        node = torch._C._current_autograd_node()
        return HEAD if node is None else node.metadata.get(_MARK, HEAD)

    def run(self, part: Part, function: Callable[..., Any], *args: Any) -> Any:
        """function(*args) as this part, its backward too."""
        self._open.append(part)
        out = function(*args)
        self._leave(part, args, out)
        return out

    @contextmanager
    def watching(self, modules: Iterable[tuple[nn.Module, Part]]) -> Iterator[None]:
        """What these modules do is these parts."""
        handles = []
        for module, part in modules:
            handles.append(module.register_forward_pre_hook(lambda _, args, part=part: self._open.append(part)))
            handles.append(module.register_forward_hook(lambda _, args, out, part=part: self._leave(part, args, out)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self, part: Part, args: Any, out: Any) -> None:
        self._open.pop()
        _mark(_tensors(out), _tensors(args), part)


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _mark(outputs: list[Tensor], inputs: list[Tensor], part: Part) -> None:
    """Mark the nodes that lead from the inputs, or from parameters, to the outputs. What an inner part has marked
    stays."""
    seen = {x.grad_fn for x in inputs if x.grad_fn is not None}
    waiting = [x.grad_fn for x in outputs if x.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        node.metadata.setdefault(_MARK, part)
        waiting.extend(following for following, _ in node.next_functions)
