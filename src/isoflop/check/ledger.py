"""A book of the products that a model makes, by layer and part, forward and backward."""

from collections import Counter
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from isoflop.check.operators import ATTENTION, GROUPED, flops_of
from isoflop.check.places import Part, Places


class Entry(NamedTuple):
    """A weight that tokens were multiplied with: its numbers, its groups (experts; 1 for a plain matrix), and how many
    rows it met."""

    part: Part
    numel: int
    groups: int
    rows: int


class Ledger(TorchDispatchMode):  # type: ignore[misc]
    """While it is entered, FLOPs of every operator are booked in `forward` or `backward` (while `in_backward`), and
    each weight that enters a matrix product of the forward in `weights`. `whole`: attention as if every token saw
    all of the context."""

    def __init__(self, model: nn.Module, whole: bool) -> None:
        super().__init__()
        self.forward: Counter[Part] = Counter()
        self.backward: Counter[Part] = Counter()
        self.weights: dict[int, Entry] = {}
        self.whole, self.in_backward = whole, False
        self.places = Places()
        self._parameters = {p.untyped_storage()._cdata: p for p in model.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        n = flops_of(func._overloadpacket, args, out, self.whole)
        if n:
            part = self.places.now()
            if func._overloadpacket in ATTENTION:
                part = part._replace(name="mixing")
            (self.backward if self.in_backward else self.forward)[part] += n
            if not self.in_backward:
                self._enter_weight(part, func._overloadpacket, args)
        return out

    def as_mixing(self, function: Any, *args: Any) -> Any:
        """function(*args), its products and those of its backward booked as mixing of the layer that is running."""
        return self.places.run(self.places.now()._replace(name="mixing"), function, *args)

    def _enter_weight(self, part: Part, function: Any, args: Any) -> None:
        """The factor that is a parameter, if one is."""
        factors = [x for x in args if isinstance(x, Tensor)]
        for x in factors:
            storage = x.untyped_storage()._cdata
            parameter = self._parameters.get(storage)
            if parameter is not None and x.dim() > 1:
                groups = len(parameter) if function is GROUPED else 1
                self.weights[storage] = Entry(part, parameter.numel(), groups, factors[0].shape[0])
