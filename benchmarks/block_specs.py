"""Which blocks are compared, and the shapes of their models in transformers. Widths are those of a d_model."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

VOCAB, D_HEAD, MAX_CONTEXT = 64, 64, 4096
Keys = dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """A block: the family of transformers that has it and where (nothing: plain torch is the peer), its keys for a
    d_model beside those that all families have, and which of their implementations run, if not what comes unasked."""

    name: str
    family: str = ""
    path: str = ""
    keys: Callable[[int], Keys] = lambda d: {}
    experts: str = ""
    attention: str = ""

    @property
    def mixes(self) -> bool:
        return not self.path.endswith(("mlp", "ffn", "feed_forward")) and not self.name.startswith("relu2")

    @property
    def attends(self) -> bool:
        return "attn" in self.path

    @property
    def decodes(self) -> bool:
        return self.name != "mamba-2 scan"


def common(d: int) -> Keys:
    """Keys that all families have; those that one does not know it keeps to itself."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": d,
        "intermediate_size": 3 * d,
        "num_hidden_layers": 1,
        "num_attention_heads": max(1, d // D_HEAD),
        "num_key_value_heads": max(1, d // D_HEAD),
        "head_dim": D_HEAD,
        "max_position_embeddings": MAX_CONTEXT,
        "pad_token_id": None,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


ATTENTION, MLP, BACKBONE = "model.layers.0.self_attn", "model.layers.0.mlp", "backbone.layers.0.mixer"


def _rope(theta: float = 10000.0) -> Keys:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": theta}}


def _deepseek(d: int) -> Keys:
    return {
        "q_lora_rank": d // 2,
        "kv_lora_rank": d // 4,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 32,
        "v_head_dim": 64,
        "head_dim": 32,  # of the rotation
        "n_routed_experts": 16,
        "n_group": 4,
        "topk_group": 2,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": d // 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 0,
    }


def _qwen2_moe(d: int) -> Keys:
    return {
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": d // 2,
        "shared_expert_intermediate_size": d,
        "decoder_sparse_step": 1,
    }


def _gpt_oss(d: int) -> Keys:
    experts = {"num_local_experts": 16, "num_experts_per_tok": 4, "intermediate_size": d}
    return {"layer_types": ["full_attention"], **_rope(), **experts}


def _llama4(d: int) -> Keys:
    experts = {"num_local_experts": 8, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1}
    return {**experts, "intermediate_size": 2 * d, "intermediate_size_mlp": 2 * d}


def _olmoe(d: int) -> Keys:
    return {"num_experts": 64, "num_experts_per_tok": 8, "intermediate_size": d // 2}


def _mixtral(d: int) -> Keys:
    return {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 2 * d}


def _mamba2(d: int) -> Keys:
    return {"num_heads": 2 * d // 64, "head_dim": 64, "state_size": 128, "n_groups": 1, "expand": 2}


def _relu2(d: int) -> Keys:
    return {"layers_block_type": ["mlp"], "mlp_hidden_act": "relu2", "tie_word_embeddings": False}


def _mpt(d: int) -> Keys:
    return {"d_model": d, "n_heads": d // D_HEAD, "n_layers": 1, "max_seq_len": MAX_CONTEXT}


def _gpt_neox(d: int) -> Keys:
    return {"hidden_act": "gelu", **_rope()}


SPARSE = (
    ("mixtral", "mixtral", MLP, _mixtral),
    ("qwen2-moe", "qwen2_moe", MLP, _qwen2_moe),
    ("deepseek-moe", "deepseek_v3", MLP, _deepseek),
    ("gpt-oss-moe", "gpt_oss", MLP, _gpt_oss),
    ("olmoe", "olmoe", MLP, _olmoe),
)
SPECS = (
    Spec("mha", "llama", ATTENTION),
    Spec("gqa", "llama", ATTENTION, lambda d: {"num_key_value_heads": d // D_HEAD // 2}),
    Spec("mqa", "llama", ATTENTION, lambda d: {"num_key_value_heads": 1}),
    Spec("qk-norm", "qwen3", ATTENTION),
    Spec("window", "mistral", ATTENTION, lambda d: {"sliding_window": 128}),
    Spec("softcap", "gemma2", ATTENTION, lambda d: {"sliding_window": 128}, attention="eager"),
    Spec("sinks", "gpt_oss", ATTENTION, _gpt_oss),
    Spec("alibi", "mpt", "transformer.blocks.0.attn", _mpt),
    Spec("latent", "deepseek_v3", ATTENTION, _deepseek),
    Spec("mamba-1", "mamba", BACKBONE, lambda d: {"state_size": 16, "expand": 2, "intermediate_size": 2 * d}),
    Spec("mamba-2", "mamba2", BACKBONE, _mamba2),
    Spec("mamba-2 scan"),
    Spec("s4d"),
    Spec("hyena"),
    Spec("swiglu", "llama", MLP),
    Spec("geglu", "gemma2", MLP),
    Spec("relu2", "nemotron_h", "model.layers.0.mixer", _relu2),
    Spec("gelu", "gpt_neox", "gpt_neox.layers.0.mlp", _gpt_neox),
    *(Spec(*block, experts=kind) for block in SPARSE for kind in ("eager", "grouped_mm")),
    Spec("llama4-moe", "llama4_text", "model.layers.0.feed_forward", _llama4),
)
