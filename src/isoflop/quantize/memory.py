"""What a quantized model holds in memory while it decodes on a CPU, where our kernel keeps the codes in its own order.
E expert (1 where there are none), O d_out, I d_in, G groups of a row."""

from collections.abc import Mapping

from isoflop.architecture import Decoder, LatentAttention
from isoflop.model.kernels.quantized import BAND, STEP
from isoflop.model.quantized import QuantizedWeight
from isoflop.weights.convert import our_shapes


def memory_bytes(decoder: Decoder, itemsize: int, weights: Mapping[str, QuantizedWeight]) -> int:
    """Bytes of all matrices of codes, with the dense copies that latent attention keeps and multiplies by, beside their
    codes as they came; `itemsize` of a number of those. What is in full precision comes on top."""
    shapes, copied = our_shapes(decoder), copied_names(decoder, weights)
    kept = sum(
        kept_bytes(weight, shapes[name][0] if len(shapes.get(name, ())) == 3 else 1)
        for name, weight in weights.items()
        if name not in copied
    )
    return kept + sum(weights[name].nbytes + itemsize * shapes[name][0] * shapes[name][1] for name in copied)


def kept_bytes(weight: QuantizedWeight, n_experts: int) -> int:
    """Bytes of a matrix, or of one for each expert: rows filled up to bands, the columns of a group to whole steps,
    codes of up to 4 bits in half a byte."""
    group = weight.format.group or weight.d_in
    width, rows = group + -group % STEP, weight.d_out // n_experts
    filled, groups = n_experts * (rows + -rows % BAND), weight.scales.shape[1]
    codes: int = filled * groups * width // (2 if weight.format.bits <= 4 else 1)
    beside: int = filled * groups * (weight.scales.element_size() + (weight.zeros is not None))
    shared: int = sum(x.nbytes for x in (weight.order, weight.in_scales) if x is not None)
    return codes + beside + shared


def copied_names(decoder: Decoder, weights: Mapping[str, QuantizedWeight]) -> list[str]:
    """Of what latent attention makes keys and values with: every decoded token reads all of it, in products of other
    shapes."""
    latent = [i for i, layer in enumerate(decoder.layers) if isinstance(layer.mixer, LatentAttention)]
    return [name for i in latent if (name := f"layers.{i}.mixer.kv_up.weight") in weights]
