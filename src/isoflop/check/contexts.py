"""At which lengths an architecture is checked."""

import msgspec

from isoflop.architecture import S4D, Attention, Decoder, Hyena, Mamba1, Mamba2

SHORT = (1, 7, 64)
RECURRENT = (Mamba1, Mamba2, S4D, Hyena)


class Contexts(msgspec.Struct, frozen=True):
    """Lengths of whole sequences; of the pasts of decoded tokens; of documents packed into one sequence."""

    sequence: tuple[int, ...]
    decode: tuple[int, ...]
    packed: tuple[int, ...]


def contexts_of(decoder: Decoder) -> Contexts:
    """Short ones, those around every window and chunk, and the longest; whole sequences only short ones where a
    mixer's definition is run a token at a time."""
    longest = decoder.max_context
    spans = {m.window or m.chunk for m in _mixers(decoder) if isinstance(m, Attention)} - {None}
    around = {span + step for span in spans if span is not None for step in (-1, 0, 1)}
    every = sorted(n for n in {*SHORT, *around, longest} if 1 <= n <= longest)
    stepwise = any(isinstance(m, RECURRENT) for m in _mixers(decoder))
    short = tuple(n for n in every if n <= max(SHORT))
    return Contexts(
        sequence=short if stepwise else tuple(every),
        decode=tuple(sorted({n if n < longest else n - 1 for n in every} - {0})),
        packed=short,
    )


def _mixers(decoder: Decoder) -> set[object]:
    return {layer.mixer for layer in decoder.layers}
