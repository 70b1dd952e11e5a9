"""A trained decoder at a longer context: the same layers with their rope scaled. No torch."""

import math
from typing import Literal, get_args

import msgspec

from isoflop.architecture.decoder import Decoder, Layer
from isoflop.architecture.mixer import Attention, LatentAttention
from isoflop.architecture.position import Alibi, Learned, LinearScaling, NtkAware, Rope, Scaling, Yarn
from isoflop.architecture.recurrent import Hyena

# "none" raises max_context alone: what fine-tuning at the longer context does without any scaling.
Method = Literal["linear", "ntk-aware", "yarn", "none"]
METHODS: tuple[Method, ...] = get_args(Method)

replace = msgspec.structs.replace


def extended(decoder: Decoder, context: int, method: Method) -> Decoder:
    """The decoder for sequences of `context` tokens, its rope scaled by s = context / max_context.

    Layers whose window or chunk fits in the old context keep their rope: no distance in them is new. Raises ValueError
    for a context that is not longer, and for positions that cannot be scaled, by name.
    """
    if context <= decoder.max_context:
        raise ValueError(
            f"context = {context} is not longer than the model's own, max_context = {decoder.max_context}; "
            f"give at least {decoder.max_context + 1}"
        )
    _require_scalable(decoder)
    if method == "none":
        return replace(decoder, max_context=context)
    layers = {layer: _extended_layer(layer, decoder, context, method) for layer in set(decoder.layers)}
    position = decoder.position
    if isinstance(position, Rope) and any(_inherits(layer, decoder) for layer in decoder.layers):
        position = replace(position, scaling=scaling(method, decoder.max_context, context))
    return replace(
        decoder, max_context=context, position=position, layers=tuple(layers[layer] for layer in decoder.layers)
    )


def scaling(method: Method, old: int, new: int) -> Scaling:
    """The scaling of a method from context `old` to `new`, s = new / old. YaRN's attention factor is 0.1 ln(s) + 1
    (Peng et al. 2023, arXiv 2309.00071, section 3.4, equation 22)."""
    assert method != "none"
    factor = new / old
    match method:
        case "linear":
            return LinearScaling(factor=factor)
        case "ntk-aware":
            return NtkAware(factor=factor)
        case "yarn":
            return Yarn(factor=factor, original_max_context=old, attention_factor=0.1 * math.log(factor) + 1)


def _extended_layer(layer: Layer, decoder: Decoder, context: int, method: Method) -> Layer:
    """A layer with a rope of its own has it scaled; one that inherits the decoder's and needs no scaling keeps the
    unscaled one as its own."""
    mixer = layer.mixer
    if not isinstance(mixer, Attention) or not isinstance(decoder.rope_of(mixer), Rope):
        return layer
    if _fits(mixer, decoder.max_context):
        return layer if mixer.position is not None else replace(layer, mixer=replace(mixer, position=decoder.position))
    if isinstance(mixer.position, Rope):
        own = replace(mixer.position, scaling=scaling(method, decoder.max_context, context))
        return replace(layer, mixer=replace(mixer, position=own))
    return layer


def _inherits(layer: Layer, decoder: Decoder) -> bool:
    """Whether a layer turns by the decoder's rope and sees beyond the old context."""
    mixer = layer.mixer
    if isinstance(mixer, Attention):
        return mixer.position is None and not _fits(mixer, decoder.max_context)
    return isinstance(mixer, LatentAttention)


def _fits(mixer: Attention, context: int) -> bool:
    reach = mixer.window or mixer.chunk
    return reach is not None and reach <= context


def _require_scalable(decoder: Decoder) -> None:
    if isinstance(decoder.position, Learned):
        raise ValueError(
            f"learned positions cannot be extended: the table has {decoder.max_context} vectors and none for later "
            "tokens; only rope can be scaled"
        )
    if isinstance(decoder.position, Alibi):
        raise ValueError(
            "alibi has no rope to scale: its penalty is defined at any distance, and the model takes longer sequences "
            "as it is; show it with --beside"
        )
    mixers = {layer.mixer for layer in decoder.layers}
    if any(isinstance(mixer, Hyena) for mixer in mixers):
        raise ValueError(f"hyena's filters are as long as max_context = {decoder.max_context} and cannot be extended")
    ropes = {mixer: decoder.rope_of(mixer) for mixer in mixers}
    if not any(ropes.values()):
        kind = msgspec.to_builtins(decoder.position)["type"]
        raise ValueError(f"no layer of the model turns by a rope (position '{kind}'), so there is nothing to scale")
    scaled = next((rope for rope in ropes.values() if rope is not None and rope.scaling is not None), None)
    if scaled is not None:
        kind = msgspec.to_builtins(scaled.scaling)["type"]
        raise ValueError(f"the rope is scaled already ('{kind}'); extend the model that it was made from")
    if all(isinstance(m, Attention) and _fits(m, decoder.max_context) for m, rope in ropes.items() if rope is not None):
        raise ValueError(
            "every rope is in a layer whose window fits the trained context: no distance would be new; the model takes "
            "longer sequences as it is; show it with --beside"
        )
