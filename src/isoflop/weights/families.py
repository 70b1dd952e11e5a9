"""The names of every family of transformers that we exchange weights with: one table each, for import and export.

Left, a parameter of ours (within a layer where the table is a layer's), without its last step (`weight`, `bias`) where
theirs ends in the same; right, how theirs make it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from isoflop.architecture import Attention, Decoder, LatentAttention, Mamba1, Mamba2, MixtureOfExperts, Mlp
from isoflop.weights.link import (
    Alternating,
    GateUp,
    GateUpPerExpert,
    Grouped,
    How,
    Kernel,
    Link,
    PerExpert,
    QueryKeyValue,
    Same,
    Shape,
    Turned,
)

Table = Mapping[str, How]


@dataclass(frozen=True)
class Names:
    """A family. `base` opens every name but the head's, and may be left out of a file; `layer` that of a layer's
    tensors. `ignored` are patterns of tensors that hold no weights: masks, angles of rotation."""

    base: str
    layer: str
    ends: Table
    norms: Table
    mixers: Mapping[type, Table]
    feed_forwards: Mapping[type, Table] = field(default_factory=dict)
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)

    @property
    def head(self) -> str:
        """Their name of the output table, where it is not tied."""
        head = self.ends["head"]
        assert isinstance(head, Same)
        return f"{head.name}.weight"


def links_of(names: Names, decoder: Decoder, shapes: dict[str, Shape]) -> dict[str, list[Link]]:
    """For each of our tensors, the tensors of theirs that make it. Raises ValueError where the family has no name for
    one."""
    return {ours: _links(names, decoder, ours, shape) for ours, shape in shapes.items()}


def _links(names: Names, decoder: Decoder, ours: str, shape: Shape) -> list[Link]:
    found = re.fullmatch(r"layers\.(\d+)\.(.*)", ours)
    if not found:
        return _find(names.ends, ours).links(shape, None)
    i, inner = int(found[1]), found[2]
    layer, prefix = decoder.layers[i], names.layer.format(i=i)
    table = names.norms
    if inner.startswith("mixer."):
        table = names.mixers.get(type(layer.mixer), {})
    if inner.startswith("feed_forward."):
        table = names.feed_forwards.get(type(layer.feed_forward), {})
    return [link._replace(theirs=prefix + link.theirs) for link in _find(table, inner).links(shape, layer.mixer)]


def _find(table: Table, ours: str) -> How:
    if ours in table:
        return table[ours]
    stem, _, last = ours.rpartition(".")
    if stem not in table:
        raise ValueError(f"this family has no tensor for our '{ours}'")
    return _ending(table[stem], f".{last}")


def _ending(how: How, end: str) -> How:
    """The same with `end` after every name."""
    names: dict[str, Any] = {key: value + end for key, value in vars(how).items() if isinstance(value, str)}
    return type(how)(**(vars(how) | names))


def _ends(base: str, embedding: str, norm: str, head: str = "lm_head") -> dict[str, How]:
    return {"embedding": Same(f"{base}{embedding}.weight"), "norm": Same(base + norm), "head": Same(head)}


PRE = {"mixer_norm": Same("input_layernorm"), "feed_forward_norm": Same("post_attention_layernorm")}
OUTPUT = {"mixer_norm": Same("post_attention_layernorm"), "feed_forward_norm": Same("post_feedforward_layernorm")}


def _attention(at: str = "self_attn.") -> dict[str, How]:
    return {
        "mixer.qkv": QueryKeyValue(f"{at}q_proj", f"{at}k_proj", f"{at}v_proj"),
        "mixer.out": Same(f"{at}o_proj"),
        "mixer.q_norm": Same(f"{at}q_norm"),
        "mixer.k_norm": Same(f"{at}k_norm"),
        "mixer.sinks": Same(f"{at}sinks"),
    }


def _mlp(at: str = "mlp.", ours: str = "feed_forward.") -> dict[str, How]:
    return {
        f"{ours}gate_up": GateUp(f"{at}gate_proj", f"{at}up_proj"),
        f"{ours}up": Same(f"{at}up_proj"),
        f"{ours}down": Same(f"{at}down_proj"),
    }


def _experts(
    at: str = "mlp.",
    router: str = "gate",
    shared: str = "shared_expert",
    each: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj"),
) -> dict[str, How]:
    gate, up, down = (f"{at}experts.{{e}}.{name}.weight" for name in each)
    table: dict[str, How] = {
        "feed_forward.router": Same(at + router),
        "feed_forward.selection_bias": Same(f"{at}{router}.e_score_correction_bias"),
        "feed_forward.gate_up": GateUpPerExpert(gate, up),
        "feed_forward.up": PerExpert(up),
        "feed_forward.down": PerExpert(down),
        "feed_forward.shared_gate": Same(f"{at}shared_expert_gate"),
    }
    return table | _mlp(f"{at}{shared}.", "feed_forward.shared.")


def _mamba(at: str) -> dict[str, How]:
    """Both kinds of Mamba name their parts alike."""
    return {
        "mixer.xz": Same(f"{at}in_proj"),
        "mixer.zxbcdt": Same(f"{at}in_proj"),
        "mixer.convolution.kernel": Kernel(f"{at}conv1d.weight"),
        "mixer.convolution.bias": Same(f"{at}conv1d.bias"),
        "mixer.dtbc": Same(f"{at}x_proj"),
        "mixer.dt": Same(f"{at}dt_proj"),
        "mixer.A_log": Same(f"{at}A_log"),
        "mixer.D": Same(f"{at}D"),
        "mixer.norm_weight": Same(f"{at}norm.weight"),
        "mixer.out": Same(f"{at}out_proj"),
        "mixer.dt_norm": Same(f"{at}dt_layernorm"),
        "mixer.b_norm": Same(f"{at}b_layernorm"),
        "mixer.c_norm": Same(f"{at}c_layernorm"),
    }


MAMBA_1 = _mamba("mixer.") | {"mixer.dt_bias": Same("mixer.dt_proj.bias")}
MAMBA_2 = _mamba("mixer.") | {"mixer.dt_bias": Same("mixer.dt_bias")}

LLAMA = Names(
    base="model.",
    layer="model.layers.{i}.",
    ends=_ends("model.", "embed_tokens", "norm"),
    norms=PRE,
    mixers={Attention: _attention()},
    feed_forwards={Mlp: _mlp(), MixtureOfExperts: _experts()},
)
MIXTRAL = replace(
    LLAMA,
    feed_forwards={MixtureOfExperts: _experts("block_sparse_moe.", each=("w1", "w3", "w2"))},
)
OLMO_2 = replace(LLAMA, norms=OUTPUT)
GEMMA = replace(
    LLAMA,
    ends={**LLAMA.ends, "norm": Same("model.norm", shift=1.0)},
    norms={
        "mixer_norm": Same("input_layernorm", shift=1.0),
        "mixer_out_norm": Same("post_attention_layernorm", shift=1.0),
        "feed_forward_norm": Same("pre_feedforward_layernorm", shift=1.0),
        "feed_forward_out_norm": Same("post_feedforward_layernorm", shift=1.0),
    },
    mixers={
        Attention: _attention()
        | {
            "mixer.q_norm": Same("self_attn.q_norm", shift=1.0),
            "mixer.k_norm": Same("self_attn.k_norm", shift=1.0),
        }
    },
)
PHI_3 = replace(
    LLAMA,
    mixers={Attention: {"mixer.qkv": Same("self_attn.qkv_proj"), "mixer.out": Same("self_attn.o_proj")}},
    feed_forwards={Mlp: {"feed_forward.gate_up": Same("mlp.gate_up_proj"), "feed_forward.down": Same("mlp.down_proj")}},
)
DEEPSEEK = replace(
    LLAMA,
    mixers={
        LatentAttention: {
            "mixer.q": Same("self_attn.q_proj"),
            "mixer.q_down": Same("self_attn.q_a_proj"),
            "mixer.q_norm": Same("self_attn.q_a_layernorm"),
            "mixer.q_up": Same("self_attn.q_b_proj"),
            "mixer.kv_down": Same("self_attn.kv_a_proj_with_mqa"),
            "mixer.kv_norm": Same("self_attn.kv_a_layernorm"),
            "mixer.kv_up": Same("self_attn.kv_b_proj"),
            "mixer.out": Same("self_attn.o_proj"),
        }
    },
    feed_forwards={Mlp: _mlp(), MixtureOfExperts: _experts(shared="shared_experts")},
)
GPT_OSS = replace(
    LLAMA,
    feed_forwards={
        MixtureOfExperts: {
            "feed_forward.router": Same("mlp.router"),
            "feed_forward.gate_up": Alternating("mlp.experts.gate_up_proj"),
            "feed_forward.gate_up_bias": Alternating("mlp.experts.gate_up_proj_bias"),
            "feed_forward.down": Same("mlp.experts.down_proj"),
            "feed_forward.down_bias": Same("mlp.experts.down_proj_bias"),
        }
    },
)
LLAMA_4 = replace(
    LLAMA,
    feed_forwards={
        Mlp: _mlp("feed_forward."),
        MixtureOfExperts: {
            "feed_forward.router": Same("feed_forward.router"),
            "feed_forward.gate_up": Same("feed_forward.experts.gate_up_proj"),
            "feed_forward.down": Same("feed_forward.experts.down_proj"),
        }
        | _mlp("feed_forward.shared_expert.", "feed_forward.shared."),
    },
)
GPT_2 = Names(
    base="transformer.",
    layer="transformer.h.{i}.",
    ends=_ends("transformer.", "wte", "ln_f") | {"positions": Same("transformer.wpe.weight")},
    norms={"mixer_norm": Same("ln_1"), "feed_forward_norm": Same("ln_2")},
    mixers={Attention: {"mixer.qkv": Turned("attn.c_attn"), "mixer.out": Turned("attn.c_proj")}},
    feed_forwards={Mlp: {"feed_forward.up": Turned("mlp.c_fc"), "feed_forward.down": Turned("mlp.c_proj")}},
    ignored=(r".*\.attn\.(masked_)?bias",),
)
_FOUR = {"feed_forward.up": Same("mlp.dense_h_to_4h"), "feed_forward.down": Same("mlp.dense_4h_to_h")}
GPT_NEOX = Names(
    base="gpt_neox.",
    layer="gpt_neox.layers.{i}.",
    ends=_ends("gpt_neox.", "embed_in", "final_layer_norm", "embed_out"),
    norms=PRE,
    mixers={Attention: {"mixer.qkv": Grouped("attention.query_key_value"), "mixer.out": Same("attention.dense")}},
    feed_forwards={Mlp: _FOUR},
    ignored=(r".*\.attention\.(masked_)?bias", r".*rotary_emb\.inv_freq"),
)
BLOOM = Names(
    base="transformer.",
    layer="transformer.h.{i}.",
    ends=_ends("transformer.", "word_embeddings", "ln_f")
    | {"embedding_norm": Same("transformer.word_embeddings_layernorm")},
    norms=PRE,
    mixers={
        Attention: {"mixer.qkv": Grouped("self_attention.query_key_value"), "mixer.out": Same("self_attention.dense")}
    },
    feed_forwards={Mlp: _FOUR},
    ignored=(r".*rotary_emb\.inv_freq", r".*\.self_attention\.maybe_rotary\.inv_freq"),
)
FALCON_TWO_NORMS = replace(BLOOM, norms={"mixer_norm": Same("ln_attn"), "feed_forward_norm": Same("ln_mlp")})
MPT = Names(
    base="transformer.",
    layer="transformer.blocks.{i}.",
    ends=_ends("transformer.", "wte", "norm_f"),
    norms={"mixer_norm": Same("norm_1"), "feed_forward_norm": Same("norm_2")},
    mixers={Attention: {"mixer.qkv": Same("attn.Wqkv"), "mixer.out": Same("attn.out_proj")}},
    feed_forwards={Mlp: _mlp("ffn.")},
)
MAMBA = Names(
    base="backbone.",
    layer="backbone.layers.{i}.",
    ends=_ends("backbone.", "embeddings", "norm_f"),
    norms={"mixer_norm": Same("norm")},
    mixers={Mamba1: MAMBA_1, Mamba2: MAMBA_2},
)
JAMBA = replace(
    LLAMA,
    ends=_ends("model.", "embed_tokens", "final_layernorm"),
    norms={"mixer_norm": Same("input_layernorm"), "feed_forward_norm": Same("pre_ff_layernorm")},
    mixers={Attention: _attention(), Mamba1: _mamba("mamba.") | {"mixer.dt_bias": Same("mamba.dt_proj.bias")}},
    feed_forwards={Mlp: _mlp("feed_forward."), MixtureOfExperts: _experts("feed_forward.", "router")},
)
NEMOTRON_H = replace(
    MAMBA,
    norms={"mixer_norm": Same("norm"), "feed_forward_norm": Same("norm")},
    mixers={Attention: _attention("mixer."), Mamba2: MAMBA_2},
    feed_forwards={Mlp: _mlp("mixer."), MixtureOfExperts: _experts("mixer.", shared="shared_experts")},
    ignored=(r"mtp\..*",),
)

FAMILIES: dict[str, Names] = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "mixtral": MIXTRAL,
    "qwen2": LLAMA,
    "qwen3": LLAMA,
    "qwen2_moe": LLAMA,
    "qwen3_moe": LLAMA,
    "olmo2": OLMO_2,
    "olmoe": LLAMA,
    "gemma2": GEMMA,
    "gemma3_text": GEMMA,
    "phi3": PHI_3,
    "gpt2": GPT_2,
    "gpt_neox": GPT_NEOX,
    "falcon": BLOOM,
    "bloom": BLOOM,
    "mpt": MPT,
    "deepseek_v2": DEEPSEEK,
    "deepseek_v3": DEEPSEEK,
    "gpt_oss": GPT_OSS,
    "llama4_text": LLAMA_4,
    "mamba": MAMBA,
    "mamba2": MAMBA,
    "jamba": JAMBA,
    "nemotron_h": NEMOTRON_H,
}


# The class of transformers that holds a family.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen2_moe": "Qwen2MoeForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "olmo2": "Olmo2ForCausalLM",
    "olmoe": "OlmoeForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "gpt_neox": "GPTNeoXForCausalLM",
    "falcon": "FalconForCausalLM",
    "bloom": "BloomForCausalLM",
    "mpt": "MptForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "gpt_oss": "GptOssForCausalLM",
    "llama4_text": "Llama4ForCausalLM",
    "mamba": "MambaForCausalLM",
    "mamba2": "Mamba2ForCausalLM",
    "jamba": "JambaForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
}


def names_of(model_type: str, decoder: Decoder) -> Names:
    """The table of a family; a Falcon with two norms in parallel has other names than one with one."""
    if model_type == "falcon" and decoder.layers[0].parallel == "own-norms":
        return FALCON_TWO_NORMS
    return FAMILIES[model_type]
