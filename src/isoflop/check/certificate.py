"""The certificate of an architecture: every closed form beside what was counted on its own modules."""

from typing import Literal

import msgspec

from isoflop.architecture import Decoder
from isoflop.check.contexts import Contexts, contexts_of
from isoflop.check.line import Line
from isoflop.check.products import kinds_of
from isoflop.check.proofs import prove_activations, prove_behaviour, prove_cache, prove_parameters
from isoflop.check.prove_flops import prove_flops
from isoflop.check.twin import shrink
from isoflop.cost import parameters
from isoflop.cost.activations import KERNELS

MOST_PARAMETERS = 10**15  # beyond, and beyond this context, sizes overflow what the meta device can hold
LONGEST_CONTEXT = 2**28


class Certificate(msgspec.Struct, frozen=True):
    """`kinds`: layers that differ; one of each kind was run and counted as often as it occurs. `twin`: the small
    decoder whose numbers were looked at, its digest. `kernels`: what saved activations are those of."""

    architecture: str
    digest: str
    n_layers: int
    kinds: int
    contexts: Contexts
    kernels: Literal["eager-cpu-fp32"]
    twin: str
    holds: bool
    lines: tuple[Line, ...]


def certify(name: str, decoder: Decoder) -> Certificate:
    """Run every proof. Counting happens on the meta device: no size of model needs memory. Raises ValueError for a
    decoder beyond what torch's sizes can express."""
    total = parameters(decoder).total
    if total > MOST_PARAMETERS:
        raise ValueError(f"{name}: {total:.3g} parameters are too many to prove; at most {MOST_PARAMETERS:.0e}")
    if decoder.max_context > LONGEST_CONTEXT:
        raise ValueError(f"{name}: max_context = {decoder.max_context} is too long to prove; at most {LONGEST_CONTEXT}")
    contexts, twin = contexts_of(decoder), shrink(decoder)
    lines = (
        *prove_parameters(decoder),
        *prove_flops(decoder, contexts),
        *prove_cache(decoder, contexts.decode),
        *prove_activations(decoder),
        *prove_behaviour(twin),
    )
    return Certificate(
        architecture=name,
        digest=decoder.digest,
        n_layers=decoder.n_layers,
        kinds=len(kinds_of(decoder)[1]),
        contexts=contexts,
        kernels=KERNELS[0],
        twin=twin.digest,
        holds=all(line.verdict != "fails" for line in lines),
        lines=lines,
    )
