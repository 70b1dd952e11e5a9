"""config.json: what can be expressed becomes exactly that; anything else is refused by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from isoflop.architecture import MixtureOfExperts, Mlp
from isoflop.architecture.find import find_decoder
from isoflop.architecture.hugging_face import from_hugging_face, load_hugging_face
from isoflop.cost import parameters

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "num_attention_heads": 8,
    "num_hidden_layers": 3,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 101,
}
SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
    "rope_type": "llama3",
}
MIXTRAL = LLAMA | {
    "model_type": "mixtral",
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "sliding_window": None,
}
QWEN3 = LLAMA | {"model_type": "qwen3", "head_dim": 16, "attention_bias": False, "sliding_window": None}
QWEN3_MOE = QWEN3 | {
    "model_type": "qwen3_moe",
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 32,
    "norm_topk_prob": True,
    "decoder_sparse_step": 2,
    "mlp_only_layers": [1],
    "num_hidden_layers": 6,
}
CONFIGS = {
    "llama": LLAMA,
    "llama without grouped queries": {k: v for k, v in LLAMA.items() if k not in ("num_key_value_heads", "rope_theta")},
    "llama 3.1": LLAMA | {"rope_scaling": SCALING, "head_dim": 32, "tie_word_embeddings": True},
    "mistral": LLAMA | {"model_type": "mistral", "sliding_window": None},
    "mixtral": MIXTRAL,
    "qwen3": QWEN3,
    "qwen3_moe": QWEN3_MOE,
}


@pytest.mark.parametrize("name", CONFIGS)
def test_counts_equal_transformers(name: str, tmp_path: Path) -> None:
    import transformers

    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name]))
    with torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(tmp_path)
        theirs = transformers.AutoModelForCausalLM.from_config(config)
    ours = load_hugging_face(tmp_path)
    assert parameters(ours).total == sum(p.numel() for p in theirs.parameters())
    assert ours.position.theta == config.rope_parameters["rope_theta"]
    assert ours.norm.eps == config.rms_norm_eps
    assert ours == find_decoder(str(tmp_path)) == find_decoder(str(tmp_path / "config.json"))
    # As transformers writes it again, with keys of its own version:
    config.save_pretrained(tmp_path / "again")
    assert load_hugging_face(tmp_path / "again") == ours


def test_the_published_llama_is_read_back() -> None:
    config = LLAMA | {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "max_position_embeddings": 131072,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "num_key_value_heads": 8,
        "rope_scaling": SCALING,
        "vocab_size": 128256,
    }
    assert from_hugging_face(config, "x") == find_decoder("llama-3.1-8b")


def test_sparse_and_dense_layers() -> None:
    """Every second layer but the one that is named: of layers 0 to 5 that leaves 3 and 5."""
    kinds = [type(layer.feed_forward) for layer in from_hugging_face(QWEN3_MOE, "x").layers]
    assert kinds == [Mlp, Mlp, Mlp, MixtureOfExperts, Mlp, MixtureOfExperts]
    assert not from_hugging_face(QWEN3_MOE | {"norm_topk_prob": False}, "x").layers[3].feed_forward.renormalize


GEMMA3: dict[str, Any] = LLAMA | {
    "model_type": "gemma3_text",
    "head_dim": 8,
    "hidden_activation": "gelu_pytorch_tanh",
    "sliding_window": 16,
    "rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}},
}
FALCON: dict[str, Any] = {k: v for k, v in LLAMA.items() if k != "rope_theta"} | {"model_type": "falcon"}
MPT: dict[str, Any] = {
    "model_type": "mpt",
    "vocab_size": 50,
    "d_model": 8,
    "n_heads": 2,
    "n_layers": 1,
    "max_seq_len": 9,
}
LATENT: dict[str, Any] = LLAMA | {
    "model_type": "deepseek_v2",
    "num_key_value_heads": 8,
    "q_lora_rank": None,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
}
HYBRID: dict[str, Any] = LLAMA | {
    "model_type": "nemotron_h",
    "head_dim": 8,
    "hybrid_override_pattern": "*-",
    "layer_norm_epsilon": 1e-5,
}
GPT2 = {"model_type": "gpt2", "vocab_size": 9, "n_embd": 8, "n_head": 2, "n_layer": 2, "n_positions": 9}


def without(config: dict[str, Any], key: str) -> dict[str, Any]:
    return {k: v for k, v in config.items() if k != key}


def rope(**keys: object) -> dict[str, Any]:
    return LLAMA | {"rope_scaling": keys}


REFUSED: list[tuple[dict[str, Any], str]] = [
    (LLAMA | {"model_type": "phimoe"}, "model_type 'phimoe' routes by sparsemixer"),
    (LLAMA | {"model_type": "qwen3_next"}, "model_type 'qwen3_next' mixes by gated delta rule"),
    (LLAMA | {"model_type": "kimi_linear"}, "model_type 'kimi_linear' mixes by a delta rule"),
    (LLAMA | {"model_type": "gemma3"}, "model_type 'gemma3' sees pictures too"),
    (
        LLAMA | {"model_type": "novel" * 99},
        r"'novelnovel[novel]*' is not among those .*readable: gpt2, gpt_neox, llama,",
    ),
    (LLAMA | {"sliding_window": 64}, "sliding_window = 64: a llama has no sliding windows"),
    (LLAMA | {"model_type": "mistral"}, "the key 'sliding_window' is missing"),
    (LLAMA | {"model_type": "mistral", "sliding_window": 0}, "sliding_window = 0 must be a whole number of at least 1"),
    (
        QWEN3 | {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": "4"},
        'sliding_window = "4" must be a whole number',
    ),
    (without(QWEN3, "sliding_window") | {"use_sliding_window": True}, "the key 'sliding_window' is missing"),
    (QWEN3 | {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types: 'sliding_attention' cannot"),
    (QWEN3 | {"layer_types": ["full_attention"]}, "layer_types names 1 layers, num_hidden_layers = 3"),
    (QWEN3 | {"layer_types": [3]}, "layer_types must be a list of names"),
    (LLAMA | {"hidden_act": "relu"}, "hidden_act = \"relu\" cannot be represented, only 'gelu'"),
    (LLAMA | {"hidden_act": "quick_gelu"}, 'hidden_act = "quick_gelu" cannot be represented'),
    (rope(rope_type="yarn", factor=-4.0), "rope_scaling: factor = -4.0 must be above 0"),
    (rope(rope_type="proportional"), "scaling of type 'proportional' cannot be represented"),
    (rope(type="mrope"), "scaling of type 'mrope' cannot be represented"),
    (rope(type="dynamic", factor=2.0, original_max_position_embeddings=8), "dynamic scaling begins at 512"),
    (rope(type="longrope", short_factor=[1], long_factor="1"), 'long_factor = "1" must be a list of numbers'),
    (rope(type="longrope", short_factor=[1], long_factor=[1]), "1 entries; d_head = 8 has 4 rotated pairs"),
    (rope(rope_type="linear"), "rope_scaling: the key 'factor' is missing"),
    (LLAMA | {"rope_scaling": SCALING | {"factor": "8"}}, 'rope_scaling: factor = "8" must be a number'),
    (LLAMA | {"rope_scaling": [4]}, r"rope_scaling = \[...\] must be an object"),
    (LLAMA | {"partial_rotary_factor": 0.5}, "rotating a part of each head is not what this model_type does"),
    (LLAMA | {"head_dim": 7}, "of heads of width 7, 7 dimensions would turn: an odd number"),
    (LLAMA | {"auto_map": {"AutoModel": "x"}}, "auto_map: the model is code of its own"),
    (LLAMA | {"hidden_size": "64"}, 'hidden_size = "64" must be a whole number'),
    (LLAMA | {"hidden_size": True}, "hidden_size = true must be a whole number"),
    (LLAMA | {"hidden_size": 10**400}, r"hidden_size = 1000*\.\.\. must be a whole number of at least 1 and at most 2"),
    (LLAMA | {"hidden_size": 65}, "the key 'head_dim' is missing and does not follow"),
    (LLAMA | {"num_attention_heads": 0}, "num_attention_heads = 0 must be a whole number of at least 1"),
    (LLAMA | {"num_key_value_heads": 3}, "n_heads = 8 is not a multiple of n_kv_heads = 3"),
    (LLAMA | {"num_hidden_layers": 10**9}, "num_hidden_layers = 1000000000: at most 10000 layers make sense"),
    (LLAMA | {"rope_theta": "x"}, 'rope_theta = "x" must be a number'),
    (LLAMA | {"rms_norm_eps": float("nan")}, "rms_norm_eps = NaN must be a number, finite"),
    (LLAMA | {"rms_norm_eps": -1}, "eps = -1.0 must be above 0"),
    (MIXTRAL | {"num_experts_per_tok": 5}, "top_k = 5 exceeds n_experts = 4"),
    (without(LLAMA, "vocab_size"), "the key 'vocab_size' is missing"),
    (without(QWEN3, "head_dim"), "the key 'head_dim' is missing"),
    (without(MIXTRAL, "rope_theta"), "the key 'rope_theta' is missing"),
    (QWEN3_MOE | {"mlp_only_layers": ["1"]}, "mlp_only_layers must be a list of whole numbers"),
    (QWEN3_MOE | {"model_type": "qwen2_moe", "use_sliding_window": True}, "the key 'layer_types' is missing"),
    (GEMMA3 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0: a gemma3_text does not cap scores"),
    (GEMMA3 | {"use_bidirectional_attention": True}, "only causal attention"),
    (GEMMA3 | {"rope_parameters": {"rope_theta": 1e4}}, "has neither 'full_attention' nor 'sliding_attention'"),
    (FALCON | {"new_decoder_architecture": True, "parallel_attn": False}, "transformers itself computes nothing"),
    (FALCON | {"multi_query": False, "num_kv_heads": 2}, "num_kv_heads = 2: .* each head has its own"),
    (MPT | {"no_bias": False}, "no_bias = false: transformers does not read it"),
    (MPT | {"attn_config": {"qk_ln": True}}, "attn_config: qk_ln = true: transformers does not read it"),
    (MPT | {"attn_config": {"alibi_bias_max": 4}}, "alibi_bias_max = 4: transformers does not read it"),
    (MPT | {"d_model": 9}, "d_model = 9 is not a multiple of n_heads = 2"),
    (LATENT | {"mlp_bias": True}, "mlp_bias = true: biases of the shared experts alone"),
    (LATENT | {"topk_method": "noaux_tc"}, 'topk_method = "noaux_tc" cannot be represented'),
    (LATENT | {"num_key_value_heads": 2}, "latent attention has as many as num_attention_heads = 8"),
    (LATENT | {"model_type": "deepseek_v3", "scoring_func": "softmax"}, 'scoring_func = "softmax": cannot'),
    (without(LATENT, "q_lora_rank"), "the key 'q_lora_rank' is missing"),
    (HYBRID | {"hybrid_override_pattern": "M?"}, r"hybrid_override_pattern: '\?' cannot be represented"),
    (HYBRID | {"hybrid_override_pattern": "*" * 10_001}, "hybrid_override_pattern has 10001 layers"),
    (HYBRID | {"tie_word_embeddings": True}, "transformers does not tie a nemotron_h"),
    (GPT2 | {"add_cross_attention": True}, "add_cross_attention = true: attention to another sequence"),
    (GPT2 | {"n_layer": 2.5}, "n_layer = 2.5 must be a whole number"),
    ({"model_type": "bloom", "apply_residual_connection_post_layernorm": True}, "residual stream of normed values"),
    ({"model_type": "mamba", "hidden_act": "gelu"}, 'hidden_act = "gelu": cannot be represented'),
    ({"vocab_size": 3}, "the key 'model_type' is missing"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_what_cannot_be_represented(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as refusal:
        from_hugging_face(config, "m/config.json")
    assert str(refusal.value).startswith("m/config.json: ") and "\n" not in str(refusal.value)


@pytest.mark.parametrize("key", LLAMA)
@pytest.mark.parametrize("value", [None, -1, 0, 1.5, "x", [], {}, True])
def test_nonsense_is_a_value_error_or_a_decoder(key: str, value: object) -> None:
    """Never another exception."""
    try:
        from_hugging_face(LLAMA | {key: value}, "x")
    except ValueError as error:
        assert str(error).startswith("x: ")


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    with pytest.raises(ValueError, match=r"config\.json: there is no such file"):
        load_hugging_face(tmp_path)
    for text, message in (
        ("{", "is not valid JSON"),
        ("[]", "is not the configuration"),
        ("[" * 10**5, "not valid JSON"),
        ('{"model_type": ' + "9" * 5000 + "}", "not valid JSON"),
        (" " * (16 * 2**20 + 1), "larger than 16 MiB"),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_hugging_face(tmp_path)
