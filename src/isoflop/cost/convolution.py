"""Cost of mixers that convolve over the whole sequence: S4D and Hyena.

S4D is counted as the recurrence that it is: for each channel the outer product that writes the d_state real numbers of
its complex states, B u, and the product that reads them, Re(C h): 2 FLOPs each a number, 4 * d_inner * d_state a token
under every convention that counts mixing. Decays and D u are elementwise; the filter that the convolution needs and the
transforms that compute it are means to the same end, and not counted.

Hyena is counted as the direct causal product that the mathematics asks for: for each of the `order` filters and each
channel, 2 FLOPs a visible position (`exact`, `hardware`), or 2 a position of the context, visible or not (`palm`);
transforms do less than that on long sequences. To it come the short depthwise convolution, 2 * d_conv a projected
channel and token, and the matrices of the network that makes the filters, once a position of the sequence (a batch
shares one filter; here, as everywhere, a sequence is counted on its own). A decoded token finds the filters made.
Gates, windows, sines and biases are elementwise.
"""

from itertools import pairwise

from isoflop.architecture import S4D, Hyena
from isoflop.cost.part import Convention, Mixing, Part, dense

FLOAT32 = 4


def s4d_parameters(mixer: S4D, d_model: int) -> Part:
    """Input projection and gated output; log dt and D a channel; A and C, two real numbers each a pair of states."""
    return dense(3 * d_model * mixer.d_inner, 2 * mixer.d_inner + 2 * mixer.d_inner * mixer.d_state)


def s4d_mixing(mixer: S4D, d_model: int, context: int, convention: Convention) -> Mixing:
    """Writing and reading the state; see the module's text."""
    token = 0 if convention == "6nd" else 4 * mixer.d_inner * mixer.d_state
    return Mixing(context * token, token)


def s4d_cache(mixer: S4D, d_model: int, itemsize: int) -> tuple[int, int]:
    """No bytes a token; d_state / 2 complex states a channel, in float32 whatever the cache's type."""
    return 0, mixer.d_inner * mixer.d_state * FLOAT32


def hyena_parameters(mixer: Hyena, d_model: int) -> Part:
    """Projections; short convolution; the network's matrices, biases and frequencies; the skips."""
    short = (mixer.order + 1) * d_model * mixer.d_conv
    sines = 2 * mixer.d_filter * (mixer.filter_layers - 1)
    filters = _network(mixer, d_model) + sines + mixer.order * d_model
    return dense((mixer.order + 2) * d_model**2, short + filters)


def hyena_mixing(mixer: Hyena, d_model: int, context: int, convention: Convention) -> Mixing:
    """Long and short convolutions and the network that makes the filters; see the module's text."""
    if convention == "6nd":
        return Mixing(0, 0)
    pairs = context**2 if convention == "palm" else context * (context + 1) // 2
    short = 2 * (mixer.order + 1) * d_model * mixer.d_conv
    long = 2 * mixer.order * d_model
    return Mixing(
        sequence=long * pairs + context * (short + 2 * _network(mixer, d_model)),
        decode=long * (context + 1) + short,
    )


def hyena_cache(mixer: Hyena, d_model: int, itemsize: int) -> tuple[int, int]:
    """A token's inputs of the long convolutions; the last d_conv inputs of the short one. The filters, which follow
    from the weights and serve every sequence, are not a sequence's."""
    window = (mixer.order + 1) * d_model * mixer.d_conv * itemsize
    return mixer.order * d_model * itemsize, window


def _network(mixer: Hyena, d_model: int) -> int:
    """Parameters of the matrices of the filters' network."""
    hidden = [mixer.d_filter] * (mixer.filter_layers - 1)
    return sum(d_in * d_out for d_in, d_out in pairwise((mixer.d_position, *hidden, mixer.order * d_model)))
