"""What must hold of a decoder's numbers, on a small twin that a CPU runs at once (twin.py). B batch, T position, V
vocabulary."""

from typing import NamedTuple

import torch
from torch import Tensor

from isoflop.architecture import S4D, Decoder, Hyena, Mamba1, Mamba2
from isoflop.check.definitions import by_definition
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe

# Largest difference of two logits that should be the same, as a share of the largest logit; float32, other orders of
# summation.
MOST = 1e-4
RECURRENT = (Mamba1, Mamba2, S4D, Hyena)


class Difference(NamedTuple):
    """What was found, in `unit`, and the most it may be."""

    what: str
    found: float
    most: float
    unit: str


def behave(twin: Decoder, seed: int = 0) -> list[Difference]:
    """Run the twin with its first values on random tokens."""
    model = DecoderModel(twin)
    initialize(model, seed, Recipe(lr=1.0, batch=1))
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = torch.randint(twin.vocab_size, (2, twin.max_context), generator=generator)
    with torch.no_grad():
        logits_BTV = model(tokens_BT)
        found = [
            Difference("cached decoding = full forward", _apart(logits_BTV, _decoded(model, tokens_BT)), MOST, ""),
            Difference("a token sees no later one", _leak(model, tokens_BT, logits_BTV), MOST, ""),
        ]
        if any(isinstance(layer.mixer, RECURRENT) for layer in twin.layers):
            with by_definition():
                defined_BTV = model(tokens_BT)
            found.append(Difference("scans = their definitions", _apart(logits_BTV, defined_BTV), MOST, ""))
    without = _without_gradient(model, tokens_BT)
    return [*found, Difference("tensors without finite gradient", without, 0, "tensors")]


def _apart(expected: Tensor, found: Tensor) -> float:
    """Largest difference, as a share of the largest number; infinite where one is not finite."""
    scale = expected.abs().max().clamp_min(1e-30)
    share = float((expected - found).abs().max() / scale)
    return share if share == share else float("inf")


def _decoded(model: DecoderModel, tokens_BT: Tensor) -> Tensor:
    """Logits from a cache: half of the tokens at once, then a chunk, then one by one."""
    n_tokens = tokens_BT.shape[1]
    half = n_tokens // 2
    ends = [end for end in (half, min(half + 3, n_tokens)) if end > 0]
    ends += range(ends[-1] + 1, n_tokens + 1)
    state = model.new_state(len(tokens_BT), n_tokens)
    starts = [0, *ends[:-1]]
    parts = [model(tokens_BT[:, a:b], state) for a, b in zip(starts, ends, strict=True) if b > a]
    return torch.cat(parts, dim=1)


def _leak(model: DecoderModel, tokens_BT: Tensor, logits_BTV: Tensor) -> float:
    """How much the logits of the first half change with the tokens of the second."""
    half = (tokens_BT.shape[1] + 1) // 2
    changed_BT = tokens_BT.clone()
    changed_BT[:, half:] = (changed_BT[:, half:] + 1) % model.decoder.vocab_size
    return _apart(logits_BTV[:, :half], model(changed_BT)[:, :half])


def _without_gradient(model: DecoderModel, tokens_BT: Tensor) -> int:
    model.loss(tokens_BT, tokens_BT.roll(-1, dims=1)).total.backward()
    return sum(p.grad is None or not bool(p.grad.isfinite().all()) for p in model.parameters())
