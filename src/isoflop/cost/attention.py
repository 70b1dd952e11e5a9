"""What attention costs: parameters, scores and weighted sums, and the cache; plain and latent.

Mixing is counted over the keys a token may see: in the `exact` and `hardware` conventions those of its past within the
window or the chunk, itself among them; in `palm` the whole context, whatever the mask (Chowdhery et al. 2022,
arXiv 2204.02311, appendix B). A sink's logit, a softcap, rotations and softmax are elementwise and not counted.

Latent attention (DeepSeek-V2, arXiv 2405.04434) is counted in the form that costs least where it runs:

- training and prefill in the expanded form: the up-projection of the latent (kv_rank to n_heads * (d_nope + d_value))
  is applied once a token; scores are products over d_nope + d_rope, weighted sums over d_value dimensions a head;
- decode in the absorbed form: the keys' half of the up-projection is applied to the new token's query and the values'
  half to its weighted sum of latents, so that each is still multiplied once for the new token and never for a cached
  one; scores are products over kv_rank + d_rope and weighted sums over kv_rank dimensions a head.

Matrices therefore cost 2 * matmul parameters in both; only the mixing differs.
"""

from isoflop.architecture import Attention, LatentAttention, LayerNorm, Norm
from isoflop.cost.part import Mixing, Part, dense


def norm_parameters(norm: Norm, width: int) -> int:
    """Weights, and biases where the norm has them, of one norm of this width."""
    return 2 * width if isinstance(norm, LayerNorm) and norm.bias else width


def attention_parameters(mixer: Attention, d_model: int, norm: Norm) -> Part:
    """Queries, keys, values and output; biases; a norm of queries and of keys of the decoder's kind; sinks."""
    d_query, d_key = mixer.n_heads * mixer.d_head, mixer.n_kv_heads * mixer.d_head
    other = (d_query + 2 * d_key) * mixer.qkv_bias + d_model * mixer.out_bias + mixer.n_heads * mixer.sinks
    if mixer.qk_norm == "head":
        other += 2 * norm_parameters(norm, mixer.d_head)
    if mixer.qk_norm == "all":
        other += norm_parameters(norm, d_query) + norm_parameters(norm, d_key)
    return dense(2 * d_model * (d_query + d_key), other)


def attention_mixing(mixer: Attention, context: int, whole: bool) -> Mixing:
    """Scores and weighted sums; `whole`: every token sees all of the context."""
    a_key = 4 * mixer.n_heads * mixer.d_head
    if whole:
        return Mixing(a_key * context**2, a_key * (context + 1))
    return Mixing(a_key * visible_keys(mixer, context), a_key * keys_of_the_next(mixer, context))


def attention_cache(mixer: Attention, itemsize: int) -> tuple[int, int]:
    """Bytes of one token's keys and values; no state."""
    return 2 * mixer.n_kv_heads * mixer.d_head * itemsize, 0


def visible_keys(mixer: Attention, context: int) -> int:
    """Pairs of a token and a key that it may see, over a sequence of `context` tokens."""
    if mixer.chunk is not None:
        whole_chunks, rest = divmod(context, mixer.chunk)
        return whole_chunks * _triangle(mixer.chunk) + _triangle(rest)
    beyond = 0 if mixer.window is None else max(0, context - mixer.window)
    return _triangle(context - beyond) + beyond * (context - beyond)


def keys_of_the_next(mixer: Attention, context: int) -> int:
    """Keys seen, itself among them, by the token that follows `context` others."""
    if mixer.chunk is not None:
        return context % mixer.chunk + 1
    return context + 1 if mixer.window is None else min(context + 1, mixer.window)


def tokens_kept(mixer: Attention, context: int) -> int:
    """Tokens whose keys and values a cache for `context` tokens holds: at most a window's or a chunk's."""
    most = mixer.window or mixer.chunk
    return context if most is None else min(most, context)


def latent_attention_parameters(mixer: LatentAttention, d_model: int) -> Part:
    """Down- and up-projections of queries and of keys and values, output, the RMS norms of both latents; `bias` is on
    the projections that read the stream into a latent, and on the output."""
    m = mixer
    d_query, d_down = m.n_heads * (m.d_nope + m.d_rope), m.kv_rank + m.d_rope
    queries = d_model * d_query if m.q_rank is None else (d_model + d_query) * m.q_rank
    keys_and_values = d_model * d_down + m.kv_rank * m.n_heads * (m.d_nope + m.d_value)
    norms = m.kv_rank + (m.q_rank or 0)
    biases = (d_down + (m.q_rank or 0) + d_model) * m.bias
    return dense(queries + keys_and_values + m.n_heads * m.d_value * d_model, norms + biases)


def latent_attention_mixing(mixer: LatentAttention, context: int, whole: bool) -> Mixing:
    """Expanded over the sequence, absorbed in decoding; see the module's text."""
    expanded = 2 * mixer.n_heads * (mixer.d_nope + mixer.d_rope + mixer.d_value)
    absorbed = 2 * mixer.n_heads * (2 * mixer.kv_rank + mixer.d_rope)
    keys = context**2 if whole else _triangle(context)
    return Mixing(expanded * keys, absorbed * (context + 1))


def latent_attention_cache(mixer: LatentAttention, itemsize: int) -> tuple[int, int]:
    """Bytes of one token's latent and its rotated key; no state."""
    return (mixer.kv_rank + mixer.d_rope) * itemsize, 0


def _triangle(n: int) -> int:
    return n * (n + 1) // 2
