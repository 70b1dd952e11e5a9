"""FLOPs in four conventions: closed forms beside what the modules do, by part, forward, backward and decoded."""

from collections.abc import Iterator
from functools import partial

from isoflop.architecture import Decoder
from isoflop.check.contexts import Contexts
from isoflop.check.line import Line, equal
from isoflop.check.products import PARTS, Counted, count_decoded_token, count_sequence
from isoflop.cost import Flops, PartFlops, flops, flops_by_part, parameters
from isoflop.cost.part import Convention

UNIT = "FLOPs a token"


def prove_flops(decoder: Decoder, contexts: Contexts) -> Iterator[Line]:
    """Every convention at every context, `hardware` with recomputation, and documents packed into one sequence."""
    exact = {n: count_sequence(decoder, n) for n in contexts.sequence}
    for n, counted in exact.items():
        yield equal("parameters, matmul", parameters(decoder).matmul, counted.matmul_parameters, "", f"context {n}")
        yield from _sequence(decoder, "6nd", n, _without_mixing(counted))
        yield from _sequence(decoder, "palm", n, count_sequence(decoder, n, whole=True))
        yield from _sequence(decoder, "exact", n, counted)
        yield from _sequence(decoder, "hardware", n, count_sequence(decoder, n, recompute=True), recompute=True)
    for n in contexts.decode:
        counted = count_decoded_token(decoder, n)
        yield from _decode(decoder, "6nd", n, _without_mixing(counted))
        yield from _decode(decoder, "palm", n, count_decoded_token(decoder, n, whole=True))
        yield from _decode(decoder, "exact", n, counted)
        yield from _decode(decoder, "hardware", n, counted)
    yield from _packed(decoder, [(n, exact[n]) for n in contexts.packed])


def _sequence(decoder: Decoder, c: Convention, n: int, counted: Counted, recompute: bool = False) -> Iterator[Line]:
    """Forward and backward by part, and whole."""
    yield from _by_part(f"FLOPs {c}", f"context {n}", n, flops_by_part(decoder, n, c, recompute), counted, recompute)
    yield from _whole(f"FLOPs {c}", f"context {n}", n, flops(decoder, n, c, recompute), counted)


def _decode(decoder: Decoder, c: Convention, n: int, counted: Counted) -> Iterator[Line]:
    """The token after n others, by part and whole."""
    line = partial(equal, f"FLOPs {c}, decode", unit=UNIT, at=f"after {n}")
    for part, closed_form in flops_by_part(decoder, n, c).items():
        yield line(closed_form.decode_per_token, counted.forward[part], part=part)
    yield line(flops(decoder, n, c).decode_per_token, sum(counted.forward.values()))


def _packed(decoder: Decoder, documents: list[tuple[int, Counted]]) -> Iterator[Line]:
    """Documents that do not see each other cost what each costs alone."""
    lengths = tuple(n for n, _ in documents)
    together = Counted(
        forward={part: sum(counted.forward[part] for _, counted in documents) for part in PARTS},
        backward={part: sum(counted.backward[part] for _, counted in documents) for part in PARTS},
        matmul_parameters=0,
    )
    n, at = sum(lengths), f"documents {', '.join(map(str, lengths))}"
    yield from _by_part("FLOPs exact, packed", at, n, flops_by_part(decoder, n, "exact", packed=lengths), together)
    yield from _whole("FLOPs exact, packed", at, n, flops(decoder, n, "exact", packed=lengths), together)


def _by_part(
    what: str, at: str, n: int, closed: dict[str, PartFlops], counted: Counted, recompute: bool = False
) -> Iterator[Line]:
    for part, closed_form in closed.items():
        forward, backward = counted.forward[part] / n, counted.backward[part] / n
        yield equal(f"{what}, forward", closed_form.forward_per_token, forward, UNIT, at, part)
        if not recompute:  # what is computed again is not told apart from the backward by part
            yield equal(f"{what}, backward", closed_form.backward_per_token, backward, UNIT, at, part)


def _whole(what: str, at: str, n: int, closed_form: Flops, counted: Counted) -> Iterator[Line]:
    forward, backward = sum(counted.forward.values()), sum(counted.backward.values())
    yield equal(f"{what}, forward", closed_form.prefill_per_token, forward / n, UNIT, at)
    yield equal(f"{what}, train", closed_form.train_per_token, (forward + backward) / n, UNIT, at)


def _without_mixing(counted: Counted) -> Counted:
    return counted._replace(forward=counted.forward | {"mixing": 0}, backward=counted.backward | {"mixing": 0})
