"""GPT-2, GPT-NeoX, Falcon, BLOOM and MPT: layer norms, plain feed-forwards, and every way of knowing the order."""

from typing import Literal

from isoflop.architecture.decoder import Decoder
from isoflop.architecture.feed_forward import Mlp
from isoflop.architecture.hugging_face.config import Config
from isoflop.architecture.hugging_face.parts import (
    Keys,
    activation,
    activation_name,
    attention_of,
    decoder,
    frame,
    mlp_of,
    rope_position,
)
from isoflop.architecture.hugging_face.rope import max_context, read_rope, write_rope
from isoflop.architecture.mixer import Attention
from isoflop.architecture.norm import LayerNorm
from isoflop.architecture.position import Alibi, Learned, Position, Rope

Parallel = Literal["no", "shared-norm", "own-norms"]


def read_gpt2(config: Config) -> Decoder:
    config.only("add_cross_attention", False, why="attention to another sequence cannot be represented")
    d_model, n_head, n_layers = config.integer("n_embd"), config.integer("n_head"), config.n_layers("n_layer")
    d_head = config.quotient("n_embd", by="n_head")
    base = d_head**-0.5 if config.flag("scale_attn_weights", True) else 1.0
    by_layer = config.flag("scale_attn_by_inverse_layer_idx", False)
    scales = [base / (i + 1) if by_layer else base for i in range(n_layers)]
    mixers = [
        Attention(
            n_heads=n_head,
            n_kv_heads=n_head,
            d_head=d_head,
            scale=None if scale == d_head**-0.5 else scale,
            qkv_bias=True,
            out_bias=True,
        )
        for scale in scales
    ]
    kind = activation(config, "activation_function", "gelu_new", gated=False)
    mlp = Mlp(d_ff=config.integer("n_inner", 4 * d_model), activation=kind, bias=True)
    norm = LayerNorm(eps=config.number("layer_norm_epsilon", 1e-5))
    length = config.integer("n_positions")
    return decoder(config, mixers, [mlp] * n_layers, norm, Learned(), length, tied=True, width="n_embd")


def write_gpt2(d: Decoder) -> Keys:
    a, mlp = attention_of(d), _mlp(d)
    scales = [layer.mixer.scale for layer in d.layers if isinstance(layer.mixer, Attention)]
    return {
        "vocab_size": d.vocab_size,
        "n_embd": d.d_model,
        "n_layer": d.n_layers,
        "n_head": a.n_heads,
        "n_inner": mlp.d_ff,
        "n_positions": d.max_context,
        "layer_norm_epsilon": d.norm.eps,
        "activation_function": activation_name(mlp.activation),
        "scale_attn_weights": a.scale is None,
        "scale_attn_by_inverse_layer_idx": len(set(scales)) > 1,
        "tie_word_embeddings": d.tie_embeddings,
    }


def _mlp(d: Decoder) -> Mlp:
    mlp = mlp_of(d)
    if mlp is None:
        raise ValueError("it has no dense feed-forward")
    return mlp


def read_gpt_neox(config: Config) -> Decoder:
    """Before transformers 5, rotary_pct and rotary_emb_base say how positions turn."""
    n_layers, n_heads, bias = (
        config.n_layers(),
        config.integer("num_attention_heads"),
        config.flag("attention_bias", True),
    )
    d_head = config.quotient("hidden_size", by="num_attention_heads")
    theta = config.number("rotary_emb_base", 10_000.0)
    rope = read_rope(config, d_head, theta, fraction=config.number("rotary_pct", 0.25))
    mixer = Attention(n_heads=n_heads, n_kv_heads=n_heads, d_head=d_head, qkv_bias=bias, out_bias=bias)
    kind = activation(config, "hidden_act", "gelu", gated=False)
    mlp = Mlp(d_ff=config.integer("intermediate_size"), activation=kind, bias=True)
    norm = LayerNorm(eps=config.number("layer_norm_eps", 1e-5))
    parallel: Parallel = "own-norms" if config.flag("use_parallel_residual", True) else "no"
    length = max_context(config, rope)
    return decoder(config, [mixer] * n_layers, [mlp] * n_layers, norm, rope, length, parallel=parallel)


def write_gpt_neox(d: Decoder) -> Keys:
    mlp, a = _mlp(d), attention_of(d)
    return frame(d, eps="layer_norm_eps") | {
        "num_attention_heads": a.n_heads,
        "intermediate_size": mlp.d_ff,
        "hidden_act": activation_name(mlp.activation),
        "attention_bias": a.out_bias,
        "use_parallel_residual": _parallel(d) == "own-norms",
        "rope_parameters": write_rope(rope_position(d), partial=True),
    }


def _parallel(d: Decoder) -> Parallel:
    return d.layers[0].parallel


def read_falcon(config: Config) -> Decoder:
    n_layers, n_heads, bias = config.n_layers(), config.integer("num_attention_heads"), config.flag("bias", False)
    d_head = config.quotient("hidden_size", by="num_attention_heads")
    mixer = Attention(n_heads=n_heads, n_kv_heads=_falcon_kv_heads(config), d_head=d_head, qkv_bias=bias, out_bias=bias)
    mlp = Mlp(
        d_ff=config.integer("ffn_hidden_size", 4 * config.integer("hidden_size")),
        activation=activation(config, "activation", "gelu", gated=False),
        bias=bias,
    )
    # Falcon adds its penalty before the scores are scaled.
    alibi = config.flag("alibi", False)
    position: Position = Alibi(scaled=True) if alibi else read_rope(config, d_head, 10_000.0)
    return decoder(
        config,
        [mixer] * n_layers,
        [mlp] * n_layers,
        LayerNorm(eps=config.number("layer_norm_epsilon", 1e-5)),
        position,
        config.integer("max_position_embeddings", 2048),
        tied=True,
        parallel=_falcon_parallel(config),
    )


def _falcon_kv_heads(config: Config) -> int:
    n_heads = config.integer("num_attention_heads")
    if config.flag("new_decoder_architecture", False):
        return config.integer("num_kv_heads", n_heads)
    if config.flag("multi_query", True):
        return 1
    config.only("num_kv_heads", n_heads, why="without multi_query or new_decoder_architecture each head has its own")
    return n_heads


def _falcon_parallel(config: Config) -> Parallel:
    new, parallel = config.flag("new_decoder_architecture", False), config.flag("parallel_attn", True)
    norms = config.integer("num_ln_in_parallel_attn", 2 if new else 1)
    if not new and norms == 1:
        return "shared-norm" if parallel else "no"
    if not new or not parallel or norms > 2:
        raise config.wrong(
            f"num_ln_in_parallel_attn = {norms}: with new_decoder_architecture = {str(new).lower()} and "
            f"parallel_attn = {str(parallel).lower()} transformers itself computes nothing"
        )
    return "own-norms" if norms == 2 else "shared-norm"


def write_falcon(d: Decoder) -> Keys:
    mlp, a, parallel = _mlp(d), attention_of(d), _parallel(d)
    new = parallel != "no" and (parallel == "own-norms" or a.n_kv_heads not in (1, a.n_heads))
    keys = frame(d, eps="layer_norm_epsilon") | {
        "num_attention_heads": a.n_heads,
        "ffn_hidden_size": mlp.d_ff,
        "activation": activation_name(mlp.activation),
        "bias": mlp.bias,
        "alibi": isinstance(d.position, Alibi),
        "new_decoder_architecture": new,
        "multi_query": a.n_kv_heads == 1,
        "parallel_attn": parallel != "no",
    }
    if new:
        keys |= {"num_kv_heads": a.n_kv_heads, "num_ln_in_parallel_attn": 2 if parallel == "own-norms" else 1}
    if isinstance(d.position, Rope):
        keys["rope_parameters"] = write_rope(d.position)
    return keys


def read_bloom(config: Config) -> Decoder:
    """Its configuration names no context: seq_length, where the file has it, is what the model was trained at."""
    config.only("apply_residual_connection_post_layernorm", False, why="a residual stream of normed values cannot be")
    width = "hidden_size" if config.has("hidden_size") else "n_embed"
    heads = "n_head" if config.has("n_head") else "num_attention_heads"
    n_layers = config.n_layers("n_layer" if config.has("n_layer") else "num_hidden_layers")
    n_heads, d_model = config.integer(heads), config.integer(width)
    mixer = Attention(
        n_heads=n_heads, n_kv_heads=n_heads, d_head=config.quotient(width, by=heads), qkv_bias=True, out_bias=True
    )
    mlp = Mlp(d_ff=4 * d_model, activation="gelu-tanh", bias=True)
    norm = LayerNorm(eps=config.number("layer_norm_epsilon", 1e-5))
    return decoder(
        config,
        [mixer] * n_layers,
        [mlp] * n_layers,
        norm,
        Alibi(),
        config.integer("seq_length", 2048),
        tied=True,
        width=width,
        embedding_norm=True,
    )


def write_bloom(d: Decoder) -> Keys:
    return {
        "vocab_size": d.vocab_size,
        "hidden_size": d.d_model,
        "n_layer": d.n_layers,
        "n_head": attention_of(d).n_heads,
        "layer_norm_epsilon": d.norm.eps,
        "tie_word_embeddings": d.tie_embeddings,
        "seq_length": d.max_context,
    }


def read_mpt(config: Config) -> Decoder:
    """Transformers reads fewer keys than the code that MPT came with; where the two would differ we refuse."""
    attention = config.section("attn_config")
    _refuse_mpt(config, attention)
    n_heads, n_layers, d_model = config.integer("n_heads"), config.n_layers("n_layers"), config.integer("d_model")
    mixer = Attention(
        n_heads=n_heads,
        n_kv_heads=n_heads,
        d_head=config.quotient("d_model", by="n_heads"),
        clip_qkv=attention.number("clip_qkv", 0.0) or None,
        scale=attention.number("softmax_scale") if attention.has("softmax_scale") else None,
    )
    mlp = Mlp(d_ff=4 * d_model, activation="gelu")
    norm = LayerNorm(eps=config.number("layer_norm_epsilon", 1e-5), bias=False)
    length = config.integer("max_seq_len")
    return decoder(config, [mixer] * n_layers, [mlp] * n_layers, norm, Alibi(), length, tied=True, width="d_model")


def _refuse_mpt(config: Config, attention: Config) -> None:
    unread = "transformers does not read it and would compute something else"
    config.only("no_bias", True, why=unread)
    config.only("expansion_ratio", 4, why=unread)
    config.only("logit_scale", why=unread)
    config.only("norm_type", "low_precision_layernorm", "layernorm", why=unread)
    attention.only("alibi", True, why=unread)
    attention.only("alibi_bias_max", 8, why=unread)
    attention.only("rope", False, why=unread)
    attention.only("qk_ln", False, why=unread)
    attention.only("qk_gn", False, why=unread)
    attention.only("prefix_lm", False, why=unread)
    attention.only("attn_uses_sequence_id", False, why=unread)
    attention.only("attn_type", "multihead_attention", why=unread)


def write_mpt(d: Decoder) -> Keys:
    a = attention_of(d)
    return {
        "vocab_size": d.vocab_size,
        "d_model": d.d_model,
        "n_layers": d.n_layers,
        "n_heads": a.n_heads,
        "max_seq_len": d.max_context,
        "layer_norm_epsilon": d.norm.eps,
        "tie_word_embeddings": d.tie_embeddings,
        "attn_config": {
            "clip_qkv": a.clip_qkv,
            "softmax_scale": a.scale,
        },
    }
