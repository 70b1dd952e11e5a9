"""The same block twice: ours, and the one it is compared with. B batch, T position, M d_model.

A side has `forward` (no past, nothing kept), `prefill` (a forward that leaves a cache) and `stepper` (the cache filled
with x [B, S, M]; calls that each decode the one token after those).
"""

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn

from isoflop.model import DecoderModel
from isoflop.model.place import Place

Call = Callable[[Tensor], Tensor]


class Side(Protocol):
    module: nn.Module

    def forward(self, n_sequences: int, n_tokens: int) -> Call: ...
    def prefill(self, n_sequences: int, n_tokens: int) -> Call: ...
    def stepper(self, past_BSM: Tensor) -> Call: ...


class Ours:
    """The mixer or feed-forward of a model's first layer."""

    def __init__(self, model: DecoderModel, mixes: bool) -> None:
        self.model, self.mixes = model, mixes
        self.module = model.layers[0].mixer if self.mixes else model.layers[0].feed_forward

    def forward(self, n_sequences: int, n_tokens: int) -> Call:
        if not self.mixes:
            return self.module
        place = self._place(0, n_tokens)
        return lambda x_BTM: self.module(x_BTM, place)

    def prefill(self, n_sequences: int, n_tokens: int) -> Call:
        place = self._place(0, n_tokens)
        return lambda x_BTM: self.module(x_BTM, place, self._state(n_sequences, n_tokens))

    def stepper(self, past_BSM: Tensor) -> Call:
        n_past = past_BSM.shape[1]
        state, place = self._state(len(past_BSM), n_past + 1), self._place(n_past, 1)
        self.module(past_BSM, self._place(0, n_past), state)

        def step(x_B1M: Tensor) -> Tensor:
            if hasattr(state, "length"):
                state.length = n_past
            return self.module(x_B1M, place, state)

        return step

    def _state(self, n_sequences: int, n_tokens: int) -> Any:
        return self.module.new_state(n_sequences, n_tokens, torch.float32, torch.device("cpu"))

    def _place(self, start: int, n_tokens: int) -> Place:
        return Place(start, *self.model.ropes[0](start, n_tokens)) if len(self.model.ropes) else Place(start)


class _Reached(Exception):
    """What their model hands to the module is known."""


class Theirs:
    """A module in the first layer of transformers' model, called with what that model gives it."""

    def __init__(self, model: Any, path: str) -> None:
        self.model, self.module = model, model.get_submodule(path)

    def forward(self, n_sequences: int, n_tokens: int) -> Call:
        return self._call(n_sequences, n_tokens, None)

    def prefill(self, n_sequences: int, n_tokens: int) -> Call:
        call = self._call(n_sequences, n_tokens, self._cache())
        return lambda x_BTM: call(x_BTM, self._cache())

    def stepper(self, past_BSM: Tensor) -> Call:
        cache = self._cache()
        self._call(*past_BSM.shape[:2], cache)(past_BSM)
        call, layer = self._call(len(past_BSM), 1, cache), cache.layers[0]
        kept = dict(vars(layer))

        def step(x_B1M: Tensor) -> Tensor:
            vars(layer).update(kept)  # keys and values of the past alone
            return call(x_B1M)

        return step

    def _cache(self) -> Any:
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    def _call(self, n_sequences: int, n_tokens: int, cache: Any) -> Callable[..., Tensor]:
        """The module as a function of its input, and of another empty cache if one is given."""
        args, given = self._reach(n_sequences, n_tokens, cache)
        named = next((name for name, value in given.items() if value is cache is not None), None)

        def call(x_BTM: Tensor, other: Any = None) -> Tensor:
            kwargs = given if other is None or named is None else {**given, named: other}
            y = self.module(x_BTM, *args, **kwargs)
            return y[0] if isinstance(y, tuple) else y

        return call

    def _reach(self, n_sequences: int, n_tokens: int, cache: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What the model gives the module beside its input."""
        found: dict[str, Any] = {}

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
            found.update(args=args, kwargs=kwargs)
            raise _Reached

        handle = self.module.register_forward_pre_hook(hook, with_kwargs=True)
        caches = {} if cache is None else {self._cache_name(): cache}
        try:
            self.model(torch.zeros(n_sequences, n_tokens, dtype=torch.long), use_cache=cache is not None, **caches)
        except _Reached:
            pass
        finally:
            handle.remove()
        kwargs = {name: value for name, value in found["kwargs"].items() if name != "hidden_states"}
        return found["args"][1:] if "hidden_states" not in found["kwargs"] else found["args"], kwargs

    def _cache_name(self) -> str:
        return "cache_params" if self.model.config.model_type in ("mamba", "mamba2") else "past_key_values"


def trained(side: Side, x_BTM: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Forward and backward: the output, and the input's gradient."""
    x_BTM = x_BTM.detach().requires_grad_()
    call, grad_BTM = side.forward(*x_BTM.shape[:2]), torch.ones_like(x_BTM)
    wanted = [x_BTM, *(p for p in side.module.parameters() if p.requires_grad)]

    def run() -> tuple[Tensor, Tensor]:
        y_BTM = call(x_BTM)
        grads = torch.autograd.grad(y_BTM, wanted, grad_BTM.view_as(y_BTM), allow_unused=True)
        return y_BTM.detach().view_as(x_BTM), grads[0]

    return run


def free(call: Call, x_BTM: Tensor) -> Callable[[], tuple[Tensor]]:
    """The output alone, without gradient."""

    @torch.no_grad()
    def run() -> tuple[Tensor]:
        return (call(x_BTM).view_as(x_BTM),)

    return run
