"""Cost of recurrences of constant state.

Beyond its matrices a recurrent mixer does, a token: the depthwise convolution, 2 * d_conv FLOPs a channel, and the two
products of the recurrence, writing the state (an outer product) and reading it, 2 FLOPs each a state element. Decays
are elementwise. What a chunked scan computes on top is its own affair: `exact` counts the recurrence, and so do `palm`
and `hardware`; `6nd` counts neither convolution nor recurrence.
"""

from isoflop.architecture import Mamba1, Mamba2
from isoflop.cost.part import Convention, Mixing, Part, dense

FLOAT32 = 4


def mamba1_parameters(mixer: Mamba1, d_model: int) -> Part:
    d_inner, d_state, dt_rank = mixer.d_inner, mixer.d_state, mixer.dt_rank
    matmul = d_model * 2 * d_inner + d_inner * (dt_rank + 2 * d_state) + dt_rank * d_inner + d_inner * d_model
    convolution = d_inner * (mixer.d_conv + mixer.conv_bias)
    biases = mixer.proj_bias * (2 * d_inner + d_model) + d_inner
    norms = mixer.inner_norms * (dt_rank + 2 * d_state)
    return dense(matmul, convolution + biases + norms + d_inner * d_state + d_inner)


def mamba2_parameters(mixer: Mamba2, d_model: int) -> Part:
    d_in = mixer.d_inner + mixer.d_convolved + mixer.n_heads
    convolution = mixer.d_convolved * (mixer.d_conv + mixer.conv_bias)
    biases = mixer.proj_bias * (d_in + d_model) + mixer.n_heads
    return dense(d_model * (d_in + mixer.d_inner), convolution + biases + 2 * mixer.n_heads + mixer.d_inner)


def mamba1_mixing(mixer: Mamba1, d_model: int, context: int, convention: Convention) -> Mixing:
    return _mixing(mixer.d_conv * mixer.d_inner, mixer.d_inner * mixer.d_state, context, convention)


def mamba2_mixing(mixer: Mamba2, d_model: int, context: int, convention: Convention) -> Mixing:
    return _mixing(mixer.d_conv * mixer.d_convolved, mixer.d_inner * mixer.d_state, context, convention)


def _mixing(taps: int, state: int, context: int, convention: Convention) -> Mixing:
    token = 0 if convention == "6nd" else 2 * taps + 4 * state
    return Mixing(sequence=context * token, decode=token)


def mamba1_cache(mixer: Mamba1, d_model: int, itemsize: int) -> tuple[int, int]:
    """Bytes a token (none) and of the state: the convolution's window in `itemsize`, the state in float32."""
    return 0, mixer.d_inner * (mixer.d_conv * itemsize + mixer.d_state * FLOAT32)


def mamba2_cache(mixer: Mamba2, d_model: int, itemsize: int) -> tuple[int, int]:
    """Bytes a token (none) and of the state: the convolution's window in `itemsize`, the state in float32."""
    return 0, mixer.d_convolved * mixer.d_conv * itemsize + mixer.d_inner * mixer.d_state * FLOAT32
