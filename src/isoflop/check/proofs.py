"""Parameters, cache, saved activations, and the behaviour of a twin: closed forms beside counts."""

from collections.abc import Iterator

import torch

from isoflop.architecture import Decoder
from isoflop.check.behaviour import behave
from isoflop.check.line import Line, at_most, equal
from isoflop.check.memory import count_parameters, count_state_bytes
from isoflop.check.products import seeing_everything
from isoflop.check.saved import PARTS, count_saved
from isoflop.cost import cache, parameters
from isoflop.cost.activations import saved_activations
from isoflop.cost.cache import BYTES

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "fp8": torch.float8_e4m3fn}
# Batch and context of saved activations: the last is longer than a block of any kernel.
SHAPES = ((1, 2), (2, 7), (1, 130))


def prove_parameters(decoder: Decoder) -> Iterator[Line]:
    """Tensors of the module on the meta device; `matmul` is proved where weights meet tokens."""
    counted, closed_form = count_parameters(decoder), parameters(decoder)
    yield equal("parameters, total", closed_form.total, counted["total"], "")
    yield equal("parameters, active", closed_form.active, counted["active"], "")
    without_table = counted["active_no_input_embedding"]
    yield equal("parameters, no input embedding", closed_form.active_no_input_embedding, without_table, "")
    yield equal("parameters, non-embedding", closed_form.non_embedding, counted["non_embedding"], "")


def prove_cache(decoder: Decoder, contexts: tuple[int, ...]) -> Iterator[Line]:
    """Bytes of what decoding allocates for one sequence."""
    everything = seeing_everything(decoder)
    for name in BYTES:
        one, two = (count_state_bytes(everything, n, DTYPES[name]) for n in (1, 2))
        closed_form = cache(decoder, 1, name)
        yield equal("cache, a token", closed_form.bytes_per_token, two - one, "B", name)
        yield equal("cache, states", closed_form.state_bytes_per_sequence, 2 * one - two, "B", name)
        for n in contexts:
            counted = count_state_bytes(decoder, n, DTYPES[name])
            yield equal("cache, a sequence", cache(decoder, n, name).bytes_at_context, counted, "B", f"{name}, {n}")


def prove_activations(decoder: Decoder) -> Iterator[Line]:
    """Bytes that autograd keeps for the backward of a loss."""
    for batch, context in SHAPES:
        if context > decoder.max_context:
            continue
        counted, at = count_saved(decoder, batch, context), f"{batch} x {context} tokens"
        closed_form = saved_activations(decoder, batch, context)
        for part in PARTS:
            yield equal("saved activations", getattr(closed_form, part), counted[part], "B", at, part)


def prove_behaviour(twin: Decoder) -> Iterator[Line]:
    """What must hold of the numbers of a small twin."""
    at = f"twin, {twin.n_layers} layers, {twin.max_context} tokens"
    for difference in behave(twin):
        yield at_most(difference.what, difference.most, difference.found, difference.unit, at)
