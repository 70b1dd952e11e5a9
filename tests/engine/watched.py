"""What an engine computes, step by step, and what its calls of several layers were given."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from small_engines import greedy

from isoflop.engine.engine import Engine
from isoflop.engine.request import Request
from isoflop.model.kernels import layers as kernels


def logits_of(
    engine: Engine, prompts: Mapping[str, tuple[int, ...]], n_tokens: int, told: Callable[..., None]
) -> list[torch.Tensor]:
    """Of every step that answers the prompts; `told` is called as `kernels.run` is, before each run."""
    seen: list[torch.Tensor] = []
    forward, run = engine.memory.forward, kernels.run

    def remember(*arguments: Any) -> torch.Tensor:
        seen.append(forward(*arguments).clone())
        return seen[-1]

    def tell(*arguments: Any) -> None:
        told(*arguments)
        run(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine.memory, "forward", remember)
        patch.setattr(kernels, "run", tell)
        for id, prompt in prompts.items():
            engine.submit(Request(id, prompt, greedy(n_tokens)))
        while engine.has_work:
            engine.step()
    return seen
