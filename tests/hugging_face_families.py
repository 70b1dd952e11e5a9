"""Small awkward configurations of every family of transformers that can be read: odd numbers of heads, heads wider or
narrower than d_model / n_heads, biases, windows shorter than a dozen tokens, one expert, scaled rotations.

Seeded and free of hypothesis, so that a test names its case by (family, seed) and a script can build it again.
"""

import random
from collections.abc import Callable
from typing import Any

SHORT = 8  # the original context of scaled rotations: sequences of the tests reach beyond it

Keys = dict[str, Any]


def random_config(family: str, seed: int) -> Any:
    """A transformers configuration of this family, a key of `FAMILIES`; equal arguments, equal configurations."""
    import transformers

    rng = random.Random(f"{family} {seed}")
    keys = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None} | FAMILIES[family](rng)
    return transformers.CONFIG_MAPPING[family](**keys)


def random_model(config: Any) -> Any:
    """The causal model of a configuration: plain attention, experts in a loop (the fused ones refuse odd widths)."""
    import transformers

    return transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager"
    )


def _flip(rng: random.Random) -> bool:
    return rng.random() < 0.5


def _maybe(rng: random.Random, value: object) -> Any:
    return value if _flip(rng) else None


def _common(rng: random.Random, eps: str = "rms_norm_eps") -> Keys:
    return {
        "vocab_size": rng.randint(37, 43),
        "max_position_embeddings": rng.choice([32, 40, 64]),
        "num_hidden_layers": rng.randint(2, 4),
        "tie_word_embeddings": _flip(rng),
        eps: rng.choice([1e-3, 1e-5, 1e-6]),
    }


def _attention(rng: random.Random, head_dim: bool, grouped: bool = True) -> Keys:
    """Numbers of heads and widths; with `head_dim`, heads that hidden_size does not determine."""
    n_kv_heads, group, d_head = rng.randint(1, 3), rng.randint(1, 3), rng.choice([4, 6, 8])
    n_heads = n_kv_heads * group
    keys: Keys = {"num_attention_heads": n_heads}
    if grouped:
        keys["num_key_value_heads"] = n_kv_heads
    if head_dim:
        return keys | {"head_dim": d_head, "hidden_size": n_heads * rng.randint(-(-8 // n_heads), 48 // n_heads)}
    return keys | {"hidden_size": n_heads * d_head}


def _dense(rng: random.Random, head_dim: bool = True, **more: Any) -> Keys:
    return _common(rng) | _attention(rng, head_dim) | {"intermediate_size": rng.randint(5, 40)} | more


def _d_head(keys: Keys) -> int:
    return int(keys.get("head_dim") or keys["hidden_size"] // keys["num_attention_heads"])


def _rope(rng: random.Random, dim: int, kinds: tuple[str, ...] = ("default",)) -> Keys:
    """rope_parameters of one of these kinds, for `dim` rotated dimensions."""
    kind = rng.choice(kinds)
    keys: Keys = {"rope_type": kind, "rope_theta": rng.choice([1e3, 1e4, 5e5])}
    if kind in ("linear", "dynamic", "yarn", "llama3"):
        keys["factor"] = rng.choice([2.0, 3.5, 8.0])
    if kind in ("yarn", "llama3", "longrope"):
        keys["original_max_position_embeddings"] = SHORT
    if kind == "llama3":
        keys |= {"low_freq_factor": 1.0, "high_freq_factor": rng.choice([2.0, 4.0])}
    if kind == "yarn":
        keys |= rng.choice([{}, {"beta_fast": 4.0, "beta_slow": 0.5, "truncate": False}, {"attention_factor": 1.25}])
    if kind == "longrope":
        keys |= _long(rng, dim)
    return keys


def _long(rng: random.Random, dim: int) -> Keys:
    short, long = ([round(rng.uniform(low, 4.0), 2) for _ in range(dim // 2)] for low in (1.0, 2.0))
    return {"short_factor": short, "long_factor": long} | rng.choice([{}, {"factor": 4.0}, {"attention_factor": 1.5}])


ALL_KINDS = ("default", "linear", "dynamic", "yarn", "longrope", "llama3")


def _layer_types(rng: random.Random, keys: Keys, other: str = "sliding_attention") -> list[str]:
    return [rng.choice([other, "full_attention"]) for _ in range(keys["num_hidden_layers"])]


def _gpt2(rng: random.Random) -> Keys:
    n_head = rng.randint(1, 5)
    return {
        "vocab_size": rng.randint(37, 43),
        "n_positions": 32,
        "n_embd": n_head * rng.choice([3, 4, 8]),
        "n_layer": rng.randint(2, 4),
        "n_head": n_head,
        "n_inner": _maybe(rng, rng.randint(5, 40)),
        "activation_function": rng.choice(["gelu_new", "gelu", "relu", "silu"]),
        "layer_norm_epsilon": rng.choice([1e-3, 1e-5]),
        "scale_attn_weights": _flip(rng),
        "scale_attn_by_inverse_layer_idx": _flip(rng),
        "tie_word_embeddings": _flip(rng),
    }


def _gpt_neox(rng: random.Random) -> Keys:
    keys = _common(rng, "layer_norm_eps") | _attention(rng, False, grouped=False)
    part = rng.choice([0.5, 1.0])
    rotated = int(_d_head(keys) * part)
    if rotated % 2:
        part, rotated = 1.0, _d_head(keys)
    return keys | {
        "intermediate_size": rng.randint(5, 40),
        "hidden_act": rng.choice(["gelu", "gelu_fast", "relu"]),
        "use_parallel_residual": _flip(rng),
        "attention_bias": _flip(rng),
        "rope_parameters": _rope(rng, rotated, ("default", "linear")) | {"partial_rotary_factor": part},
    }


def _llama(rng: random.Random) -> Keys:
    keys = _dense(rng, attention_bias=_flip(rng), mlp_bias=_flip(rng))
    keys["rope_parameters"] = _rope(rng, keys["head_dim"], ALL_KINDS)
    if keys["rope_parameters"]["rope_type"] == "dynamic":
        keys["max_position_embeddings"] = SHORT
    return keys


def _mistral(rng: random.Random) -> Keys:
    keys = _dense(rng, sliding_window=_maybe(rng, rng.randint(1, 11)))
    return keys | {"rope_parameters": _rope(rng, keys["head_dim"], ("default", "yarn"))}


def _mixtral(rng: random.Random) -> Keys:
    n_experts = rng.randint(1, 5)
    return _mistral(rng) | {"num_local_experts": n_experts, "num_experts_per_tok": rng.randint(1, n_experts)}


def _qwen2(rng: random.Random) -> Keys:
    keys = _dense(rng, head_dim=False)
    keys |= {"rope_parameters": _rope(rng, _d_head(keys), ("default", "yarn"))}
    if _flip(rng):
        return keys
    keys |= {"use_sliding_window": True, "sliding_window": rng.randint(1, 11)}
    return keys | rng.choice([{"max_window_layers": 1}, {"layer_types": _layer_types(rng, keys)}])


def _qwen3(rng: random.Random) -> Keys:
    return _qwen2(rng) | {"head_dim": rng.choice([4, 10]), "attention_bias": _flip(rng)}


def _sparse(rng: random.Random, keys: Keys) -> Keys:
    n_experts = rng.randint(1, 6)
    return {
        "num_experts": n_experts,
        "num_experts_per_tok": rng.randint(1, n_experts),
        "moe_intermediate_size": rng.randint(3, 20),
        "norm_topk_prob": _flip(rng),
        "decoder_sparse_step": rng.choice([1, 1, 2]),
        "mlp_only_layers": [i for i in range(keys["num_hidden_layers"]) if rng.random() < 0.2],
    }


def _qwen2_moe(rng: random.Random) -> Keys:
    keys = _dense(rng, head_dim=False)
    keys |= _sparse(rng, keys) | {"shared_expert_intermediate_size": rng.randint(3, 20), "qkv_bias": _flip(rng)}
    keys |= {"rope_parameters": _rope(rng, _d_head(keys))}
    if _flip(rng):
        return keys
    windows = {"use_sliding_window": True, "sliding_window": rng.randint(1, 11)}
    return keys | windows | {"layer_types": _layer_types(rng, keys)}


def _qwen3_moe(rng: random.Random) -> Keys:
    keys = _dense(rng, attention_bias=_flip(rng))
    keys |= _sparse(rng, keys) | {"rope_parameters": _rope(rng, keys["head_dim"], ("default", "yarn"))}
    return keys | rng.choice([{}, {"use_sliding_window": True, "sliding_window": rng.randint(1, 11)}])


def _olmo2(rng: random.Random) -> Keys:
    keys = _dense(rng, head_dim=False, attention_bias=_flip(rng))
    return keys | {"rope_parameters": _rope(rng, _d_head(keys))}


def _olmoe(rng: random.Random) -> Keys:
    n_experts = rng.randint(1, 6)
    return _olmo2(rng) | {
        "num_experts": n_experts,
        "num_experts_per_tok": rng.randint(1, n_experts),
        "norm_topk_prob": _flip(rng),
        "clip_qkv": _maybe(rng, rng.choice([0.2, 1.0])),
    }


def _gemma(rng: random.Random) -> Keys:
    keys = _dense(rng, attention_bias=_flip(rng), sliding_window=rng.randint(1, 11))
    return keys | {
        "query_pre_attn_scalar": rng.choice([keys["head_dim"], 7]),
        "hidden_activation": rng.choice(["gelu_pytorch_tanh", "gelu", "silu"]),
        "final_logit_softcapping": _maybe(rng, rng.choice([1.5, 30.0])),
    }


def _gemma2(rng: random.Random) -> Keys:
    keys = _gemma(rng) | {"attn_logit_softcapping": _maybe(rng, rng.choice([0.5, 50.0]))}
    keys |= {"rope_parameters": _rope(rng, keys["head_dim"])}
    return keys | rng.choice([{}, {"layer_types": _layer_types(rng, keys)}])


def _gemma3_text(rng: random.Random) -> Keys:
    keys = _gemma(rng)
    full, sliding = _rope(rng, keys["head_dim"], ("default", "linear")), _rope(rng, keys["head_dim"])
    keys["rope_parameters"] = {"full_attention": full, "sliding_attention": sliding}
    return keys | rng.choice([{"sliding_window_pattern": 2}, {"layer_types": _layer_types(rng, keys)}])


def _phi3(rng: random.Random) -> Keys:
    keys = _dense(rng, head_dim=False, sliding_window=_maybe(rng, rng.randint(1, 11)))
    part = 0.5 if _d_head(keys) % 4 == 0 and _flip(rng) else 1.0
    rope = _rope(rng, int(_d_head(keys) * part), ("default", "longrope"))
    keys["rope_parameters"] = rope | {"partial_rotary_factor": part}
    return keys | {"original_max_position_embeddings": SHORT}


def _falcon(rng: random.Random) -> Keys:
    new = _flip(rng)
    keys = _common(rng, "layer_norm_epsilon") | _attention(rng, False)
    n_kv_heads = keys.pop("num_key_value_heads")
    alibi = rng.random() < 0.3
    if alibi:  # powers of two: other slopes are rounded to bfloat16 by transformers
        n_heads = rng.choice([1, 2, 4, 8])
        keys |= {"num_attention_heads": n_heads, "hidden_size": 4 * n_heads}
        n_kv_heads = rng.choice([1, n_heads])
    keys |= {"new_decoder_architecture": new, "alibi": alibi, "bias": _flip(rng)}
    if new:
        keys |= {"num_kv_heads": n_kv_heads, "num_ln_in_parallel_attn": rng.choice([None, 1, 2])}
    else:
        keys |= {"multi_query": _flip(rng), "parallel_attn": _flip(rng)}
    if not alibi:
        keys["rope_parameters"] = _rope(rng, _d_head(keys))
    return keys | {"ffn_hidden_size": _maybe(rng, rng.randint(5, 40)), "activation": rng.choice(["gelu", "relu"])}


def _bloom(rng: random.Random) -> Keys:
    n_head = rng.randint(1, 6)
    return {
        "vocab_size": rng.randint(37, 43),
        "hidden_size": n_head * rng.choice([2, 5, 8]),
        "n_layer": rng.randint(2, 4),
        "n_head": n_head,
        "layer_norm_epsilon": rng.choice([1e-3, 1e-5]),
        "tie_word_embeddings": _flip(rng),
    }


def _mpt(rng: random.Random) -> Keys:
    n_heads = rng.randint(1, 6)
    return {
        "vocab_size": rng.randint(37, 43),
        "d_model": n_heads * rng.choice([2, 5, 8]),
        "n_heads": n_heads,
        "n_layers": rng.randint(2, 4),
        "max_seq_len": 32,
        "layer_norm_epsilon": rng.choice([1e-3, 1e-5]),
        "tie_word_embeddings": _flip(rng),
        "attn_config": {
            "clip_qkv": _maybe(rng, rng.choice([0.2, 1.0])),
            "softmax_scale": _maybe(rng, 0.3),
        },
    }


def _deepseek(rng: random.Random) -> Keys:
    n_heads, n_groups, a_group = rng.randint(1, 5), rng.randint(1, 3), rng.randint(2, 3)
    top_groups = rng.randint(1, n_groups)
    d_rope = rng.choice([2, 4, 6])
    rope = _rope(rng, d_rope, ("default", "yarn"))
    if rope["rope_type"] == "yarn":
        rope.pop("attention_factor", None)
        rope |= rng.choice([{}, {"mscale": 0.7, "mscale_all_dim": 1.0}, {"mscale": 1.0, "mscale_all_dim": 0.707}])
    return _common(rng) | {
        "hidden_size": n_heads * rng.randint(4, 9),
        "intermediate_size": rng.randint(5, 40),
        "num_attention_heads": n_heads,
        "num_key_value_heads": n_heads,
        "q_lora_rank": _maybe(rng, rng.randint(3, 9)),
        "kv_lora_rank": rng.randint(3, 9),
        "qk_nope_head_dim": rng.randint(2, 7),
        "qk_rope_head_dim": d_rope,
        "v_head_dim": rng.randint(2, 7),
        "attention_bias": _flip(rng),
        "n_routed_experts": n_groups * a_group,
        "n_group": n_groups,
        "topk_group": top_groups,
        "num_experts_per_tok": rng.randint(1, top_groups * a_group),
        "moe_intermediate_size": rng.randint(3, 20),
        "n_shared_experts": rng.randint(1, 2),
        "first_k_dense_replace": rng.randint(0, 2),
        "routed_scaling_factor": rng.choice([1.0, 2.5]),
        "rope_parameters": rope,
    }


def _deepseek_v2(rng: random.Random) -> Keys:
    keys = _deepseek(rng) | {"topk_method": rng.choice(["greedy", "group_limited_greedy"])}
    keys |= {"kv_lora_rank": rng.choice([4, 6]), "qk_nope_head_dim": rng.choice([2, 4])}  # its complex view wants pairs
    if keys["first_k_dense_replace"] >= keys["num_hidden_layers"]:
        keys["mlp_bias"] = _flip(rng)
    return keys


def _deepseek_v3(rng: random.Random) -> Keys:
    return _deepseek(rng) | {"norm_topk_prob": _flip(rng), "rope_interleave": _flip(rng)}


def _gpt_oss(rng: random.Random) -> Keys:
    n_experts = rng.randint(1, 5)
    keys = _dense(rng, sliding_window=rng.randint(1, 11), attention_bias=rng.random() < 0.8)
    keys |= {"rope_parameters": _rope(rng, keys["head_dim"], ("default", "yarn"))}
    keys |= rng.choice([{}, {"layer_types": _layer_types(rng, keys)}])
    return keys | {"num_local_experts": n_experts, "num_experts_per_tok": rng.randint(1, n_experts)}


def _llama4_text(rng: random.Random) -> Keys:
    n_experts = rng.randint(1, 5)
    keys = _dense(rng, attention_bias=_flip(rng), intermediate_size_mlp=rng.randint(5, 40))
    keys |= {
        "num_local_experts": n_experts,
        "num_experts_per_tok": rng.randint(1, n_experts),
        "attention_chunk_size": rng.randint(2, 11),
        "floor_scale": rng.randint(1, 7),
        "attn_scale": 0.25,
        "attn_temperature_tuning": _flip(rng),
        "use_qk_norm": _flip(rng),
        "no_rope_layer_interval": rng.choice([2, 4]),
        "interleave_moe_layer_step": rng.choice([1, 2]),
        "rope_parameters": _rope(rng, keys["head_dim"], ("default", "llama3")),
    }
    layers = keys["num_hidden_layers"]
    free = {
        "no_rope_layers": [rng.randint(0, 1) for _ in range(layers)],
        "moe_layers": [i for i in range(layers) if _flip(rng)],
        "layer_types": _layer_types(rng, keys, "chunked_attention"),
    }
    return keys | rng.choice([{}, free])


def _mamba(rng: random.Random) -> Keys:
    return {
        "vocab_size": rng.randint(37, 43),
        "hidden_size": rng.randint(8, 40),
        "state_size": rng.randint(2, 9),
        "num_hidden_layers": rng.randint(2, 4),
        "layer_norm_epsilon": rng.choice([1e-3, 1e-5]),
        "expand": rng.randint(1, 3),
        "conv_kernel": rng.randint(2, 5),
        "use_bias": _flip(rng),
        "use_conv_bias": _flip(rng),
        "time_step_rank": rng.choice(["auto", 1, 5]),
        "tie_word_embeddings": _flip(rng),
    }


def _mamba2(rng: random.Random) -> Keys:
    n_groups, expand, d_head = rng.randint(1, 3), rng.randint(1, 2), rng.choice([2, 3, 4])
    n_heads = n_groups * rng.randint(1, 2) * expand
    keys = _mamba(rng) | {"n_groups": n_groups, "num_heads": n_heads, "head_dim": d_head, "expand": expand}
    keys |= {"hidden_size": n_heads * d_head // expand, "chunk_size": rng.choice([4, 16])}
    return keys | rng.choice([{}, {"time_step_limit": (0.05, 0.8)}])


def _jamba(rng: random.Random) -> Keys:
    n_experts, attention, experts = rng.randint(1, 4), rng.randint(1, 3), rng.randint(1, 2)
    return _dense(rng, head_dim=False) | {
        "num_experts": n_experts,
        "num_experts_per_tok": rng.randint(1, n_experts),
        "attn_layer_period": attention,
        "attn_layer_offset": rng.randrange(attention),
        "expert_layer_period": experts,
        "expert_layer_offset": rng.randrange(experts),
        "mamba_d_state": rng.randint(2, 9),
        "mamba_d_conv": rng.randint(2, 5),
        "mamba_expand": rng.randint(1, 2),
        "mamba_dt_rank": rng.choice(["auto", 1, 5]),
        "mamba_conv_bias": _flip(rng),
        "mamba_proj_bias": _flip(rng),
    }


def _nemotron_h(rng: random.Random) -> Keys:
    keys = _dense(rng)
    del keys["num_hidden_layers"], keys["rms_norm_eps"]
    kinds = ["linear_attention", "full_attention", "mlp", "moe"]
    n_groups, moe_groups, a_group = rng.randint(1, 3), rng.randint(1, 2), rng.randint(2, 3)
    types = rng.sample(kinds, k=4) if _flip(rng) else [rng.choice(kinds) for _ in range(rng.randint(2, 4))]
    return keys | {
        "tie_word_embeddings": False,
        "layers_block_type": types,
        "use_cache": "full_attention" in types,  # its cache asks attention for the length
        "layer_norm_epsilon": rng.choice([1e-3, 1e-5]),
        "mlp_hidden_act": rng.choice(["relu2", "silu", "gelu"]),
        "mlp_bias": "moe" not in types and _flip(rng),
        "use_bias": _flip(rng),
        "use_conv_bias": _flip(rng),
        "ssm_state_size": rng.randint(2, 9),
        "mamba_num_heads": n_groups * rng.randint(1, 2),
        "mamba_head_dim": rng.choice([2, 3, 4]),
        "n_groups": n_groups,
        "conv_kernel": rng.randint(2, 5),
        "chunk_size": rng.choice([4, 16]),
        "time_step_min": rng.choice([0.001, 0.4]),
        "n_routed_experts": moe_groups * a_group,
        "n_group": moe_groups,
        "topk_group": rng.randint(1, moe_groups),
        "num_experts_per_tok": rng.randint(1, a_group),
        "moe_intermediate_size": rng.randint(3, 20),
        "moe_shared_expert_intermediate_size": rng.randint(3, 20),
        "norm_topk_prob": _flip(rng),
        "routed_scaling_factor": rng.choice([1.0, 2.5]),
    }


FAMILIES: dict[str, Callable[[random.Random], Keys]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "olmo2": _olmo2,
    "olmoe": _olmoe,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3_text,
    "phi3": _phi3,
    "falcon": _falcon,
    "bloom": _bloom,
    "mpt": _mpt,
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
    "gpt_oss": _gpt_oss,
    "llama4_text": _llama4_text,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "jamba": _jamba,
    "nemotron_h": _nemotron_h,
}
