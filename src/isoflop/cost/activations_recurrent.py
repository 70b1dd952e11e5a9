"""Bytes that recurrences and convolutions keep for their backward; kernels `eager-cpu-fp32` (activations.py).

Each mixer is a list of what it keeps: what the tensor is, and its bytes. Names are those of the variables in model/.
Tensors that several operations keep, and views of one tensor, are one entry. Everything is float32 but the sums of logs
of Mamba-2.
"""

import math

from isoflop.architecture import S4D, Hyena, Mamba1, Mamba2

FLOAT32, FLOAT64 = 4, 8
SCAN_CHUNK = 16  # tokens a chunk of Mamba-1's scan, at least
SSD_CHUNK = 64  # tokens a chunk of Mamba-2's, at most

Recurrent = Mamba1 | Mamba2 | S4D | Hyena
Tensors = dict[str, int]


def recurrent_activations(mixer: Recurrent, d_model: int, batch: int, context: int) -> int:
    """Bytes kept of `batch` sequences of `context` tokens, at least two."""
    match mixer:
        case Mamba1():
            kept = _mamba1(mixer, d_model, batch, context)
        case Mamba2():
            kept = _mamba2(mixer, d_model, batch, context)
        case S4D():
            kept = _s4d(mixer, d_model, batch, context)
        case Hyena():
            kept = _hyena(mixer, d_model, batch, context)
    return sum(kept.values())


def _mamba1(m: Mamba1, d_model: int, batch: int, context: int) -> Tensors:
    a_token, maps = batch * context * FLOAT32, m.dt_rank + 2 * m.d_state
    n_chunks = _chunks(context, max(SCAN_CHUNK, math.isqrt(context)))
    return {
        "input": a_token * d_model,
        "xz": a_token * 2 * m.d_inner,
        "convolved, and its SiLU": a_token * 2 * m.d_inner,
        "dt, b, c of low rank": a_token * maps,
        "their norms: normed, a root mean square, weighted": a_token * (2 * maps + 3) * m.inner_norms,
        "dt, and its softplus": a_token * 2 * m.d_inner,
        "decays: exp, and its negative": FLOAT32 * 2 * m.d_inner * m.d_state,
        "the state that each chunk finds": FLOAT32 * batch * n_chunks * m.d_inner * m.d_state,
        "y, the gate's SiLU, their product": a_token * 3 * m.d_inner,
    }


def _mamba2(m: Mamba2, d_model: int, batch: int, context: int) -> Tensors:
    a_token = batch * context * FLOAT32
    return {
        "input": a_token * d_model,
        "zxbcdt": a_token * (m.d_inner + m.d_convolved + m.n_heads),
        "convolved, and its SiLU": a_token * 2 * m.d_convolved,
        "dt, and its softplus": a_token * 2 * m.n_heads,
        "decays: exp, and its negative": FLOAT32 * 2 * m.n_heads,
        **_state_space(m, batch, context),
        "y, the gate's SiLU, their product": a_token * 3 * m.d_inner,
        "the norm's root mean squares": a_token * m.norm_groups,
        "normed, and weighted": a_token * 2 * m.d_inner,
    }


def _state_space(m: Mamba2, batch: int, context: int) -> Tensors:
    """The scan in chunks. The last chunk's own state goes nowhere: with one chunk nothing of states is kept but zeros.
    Where a batched product meets factors that are no plain stack of matrices, it makes and keeps a copy."""
    n_chunks = _chunks(context, SSD_CHUNK)
    length = _chunks(context, n_chunks)
    several, filled_up = n_chunks > 1, n_chunks * length > context
    a_place = batch * n_chunks * length * FLOAT32  # a token, or what fills up the last chunk
    heads_copied = several and m.n_heads > 1
    if m.n_groups > 1 and batch * n_chunks > 1:
        copies = 4 if several else 2  # b and c for the scores inside chunks, b and c for the states between
    else:
        copies = 2 if filled_up else 0
    states = batch * m.d_state * m.d_inner * FLOAT32
    return {
        "x, filled up": a_place * m.d_inner * filled_up,
        "dt, clamped, filled up": a_place * m.n_heads,
        "written": a_place * m.d_inner * (2 if heads_copied else 1),
        "written times until_end": a_place * m.d_inner * several,
        "log; from_start": batch * n_chunks * length * m.n_heads * 2 * FLOAT64,
        "until_end": batch * n_chunks * length * m.n_heads * FLOAT64 * several,
        "both in float32": a_place * m.n_heads * (2 if several else 1),
        "b, c, filled up or copied": a_place * copies * m.n_groups * m.d_state,
        "scores, and their products with decays": a_place * length * (m.n_groups + m.n_heads),
        "states carried on": states * (n_chunks - 1),
        "decays of whole chunks": FLOAT32 * batch * n_chunks * m.n_heads * (n_chunks > 2),
        "entering": states * n_chunks,
        "from_before": a_place * m.d_inner,
    }


def _s4d(m: S4D, d_model: int, batch: int, context: int) -> Tensors:
    """What depends on tokens, and what makes the filter, whatever the batch."""
    a_token, a_pair = batch * context * FLOAT32, m.d_inner * m.d_state // 2 * FLOAT32
    width = math.isqrt(context - 1) + 1
    rows = _chunks(context, width)
    return {
        "input": a_token * d_model,
        "u, y, its GELU": a_token * 3 * m.d_inner,
        "out, before the GLU": a_token * 2 * d_model,
        "taps": FLOAT32 * m.d_inner * context,
        "powers for held, rows, columns: exponents": FLOAT32 * (1 + rows + width),
        "dt, -dt": FLOAT32 * 3 * 2 * m.d_inner,
        "-Re A": a_pair * 3,
        "size, angle, cosine, sine": a_pair * (1 + rows + width) * 4,
        "held: -Re A, Re A, |A|^2, Im 1/A": a_pair * 4,
        "step - 1, 1/A": a_pair * 4,
        "held, weight": a_pair * 4,
        "rows, and weighted": a_pair * rows * 4,
        "columns": a_pair * width * 2,
    }


def _hyena(m: Hyena, d_model: int, batch: int, context: int) -> Tensors:
    """What depends on tokens, and what makes the filters, whatever the batch."""
    a_token, a_position = batch * context * FLOAT32, context * FLOAT32
    return {
        "input": a_token * d_model,
        "projected, and convolved": a_token * 2 * (m.order + 1) * d_model,
        "of each gate: its factor, their product": a_token * 2 * m.order * d_model,
        "features": a_position * m.d_position,
        "of each layer: product, in its frequency, sine": a_position * 3 * (m.filter_layers - 1) * m.d_filter,
        "window": a_position * d_model,
        "taps": a_position * m.order * d_model,
    }


def _chunks(n: int, length: int) -> int:
    return -(-n // length)
