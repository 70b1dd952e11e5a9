"""Mixtures of experts among Llama's kin: Mixtral, Qwen 2 and 3, OLMoE, gpt-oss, Llama 4.

The weights of the routers' losses belong to a training run, not to the model, and keep our defaults.
"""

from isoflop.architecture.decoder import Decoder
from isoflop.architecture.feed_forward import FeedForward, MixtureOfExperts, SharedExperts
from isoflop.architecture.hugging_face.config import Config
from isoflop.architecture.hugging_face.llama import qwen_mixers, rotary, uses_window, write_qwen2, write_rotary
from isoflop.architecture.hugging_face.parts import (
    FULL,
    SLIDING,
    Keys,
    activation,
    activation_name,
    attention_of,
    decoder,
    dense,
    heads,
    mlp_of,
    no_windows,
    one_window,
    window_keys,
    windows_by_kind,
)
from isoflop.architecture.hugging_face.rope import given, max_context, read_rope
from isoflop.architecture.mixer import Attention, TemperatureTuning
from isoflop.architecture.norm import RmsNorm
from isoflop.architecture.position import NoPosition

CHUNKED = "chunked_attention"


def read_mixtral(config: Config) -> Decoder:
    mixture = MixtureOfExperts(
        n_experts=config.integer("num_local_experts" if config.has("num_local_experts") else "num_experts"),
        top_k=config.integer("num_experts_per_tok"),
        d_ff=config.integer("intermediate_size"),
        activation=activation(config, "hidden_act", "silu", gated=True),
    )
    return rotary(config, [Attention(**heads(config), window=one_window(config))], mixture, default_eps=1e-5)


def read_qwen2_moe(config: Config) -> Decoder:
    if config.flag("use_sliding_window", False) and not config.has("layer_types"):
        raise config.wrong("the key 'layer_types' is missing: which layers have windows changed between versions")
    mixers = qwen_mixers(config, qkv_bias=config.flag("qkv_bias", True))
    shared = SharedExperts(d_ff=config.integer("shared_expert_intermediate_size"), gated=True)
    return rotary(config, mixers, _sparse_layers(config, shared))


def read_qwen3_moe(config: Config) -> Decoder:
    """Windows, where used, are in all layers."""
    used = uses_window(config)
    if config.has("layer_types"):
        config.layer_kinds(config.n_layers(), (SLIDING if used else FULL,))
    window = config.integer("sliding_window") if used else None
    bias = config.flag("attention_bias", False)
    mixer = Attention(**heads(config, own_width=True), qk_norm="head", window=window, qkv_bias=bias, out_bias=bias)
    return rotary(config, [mixer], _sparse_layers(config, None))


def _sparse_layers(config: Config, shared: SharedExperts | None) -> list[FeedForward]:
    """Sparse in every `decoder_sparse_step`-th layer but for those that `mlp_only_layers` lists; the others dense."""
    mixture = MixtureOfExperts(
        n_experts=config.integer("num_experts" if config.has("num_experts") else "num_local_experts"),  # transformers 5
        top_k=config.integer("num_experts_per_tok"),
        d_ff=config.integer("moe_intermediate_size"),
        activation=activation(config, "hidden_act", "silu", gated=True),
        renormalize=config.flag("norm_topk_prob", False),
        shared=shared,
    )
    dense_layers = set(config.integers("mlp_only_layers")) if config.has("mlp_only_layers") else set()
    step = config.integer("decoder_sparse_step", 1)
    sparse = [i not in dense_layers and (i + 1) % step == 0 for i in range(config.n_layers())]
    return [mixture if is_sparse else dense(config) for is_sparse in sparse]


def read_olmoe(config: Config) -> Decoder:
    no_windows(config)
    sizes, bias = heads(config, all_of_them=True), config.flag("attention_bias", False)
    if sizes["n_heads"] * sizes["d_head"] != config.integer("hidden_size"):
        raise config.wrong(f"head_dim = {sizes['d_head']}: an olmoe's heads share hidden_size among them")
    clip = config.number("clip_qkv") if config.has("clip_qkv") else None
    mixer = Attention(**sizes, qk_norm="all", qkv_bias=bias, out_bias=bias, clip_qkv=clip)
    mixture = MixtureOfExperts(
        n_experts=config.integer("num_experts"),
        top_k=config.integer("num_experts_per_tok"),
        d_ff=config.integer("intermediate_size"),
        activation=activation(config, "hidden_act", "silu", gated=True),
        renormalize=config.flag("norm_topk_prob", False),
    )
    return rotary(config, [mixer], mixture, default_eps=1e-5)


def read_gpt_oss(config: Config) -> Decoder:
    """Softmax over the chosen logits alone is our renormalised softmax over all of them."""
    if not given(config).keys:
        raise config.wrong("the key 'rope_parameters' is missing, which for a gpt_oss means YaRN of its own")
    for key, constant in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        config.only(key, constant, why=f"the clamped SwiGLU has {constant}")
    n_layers = config.n_layers()
    alternating = [FULL if i % 2 else SLIDING for i in range(n_layers)]
    kinds = config.layer_kinds(n_layers, (FULL, SLIDING)) if config.has("layer_types") else alternating
    sizes, bias = heads(config, own_width=True), config.flag("attention_bias", True)
    mixture = MixtureOfExperts(
        n_experts=config.integer("num_local_experts" if config.has("num_local_experts") else "num_experts"),
        top_k=config.integer("num_experts_per_tok"),
        d_ff=config.integer("intermediate_size"),
        activation="swiglu-clamped",
        bias=True,
        router_bias=True,
    )
    mixers = [
        Attention(**sizes, window=window, sinks=True, qkv_bias=bias, out_bias=bias)
        for window in windows_by_kind(config, kinds)
    ]
    return rotary(config, mixers, mixture, default_eps=1e-5)


def read_llama4(config: Config) -> Decoder:
    """Layers are local in chunks with rotation or global without it; transformers' four lists may mix these freely."""
    n_layers, sizes = config.n_layers(), heads(config, own_width=True)
    bias = config.flag("attention_bias", False)
    turns = _llama4_turns(config, n_layers)
    kinds = [CHUNKED if turn else FULL for turn in turns]
    kinds = config.layer_kinds(n_layers, (FULL, CHUNKED)) if config.has("layer_types") else kinds
    rope = read_rope(config, sizes["d_head"], layout="interleaved")
    normed = config.flag("use_qk_norm", True)
    mixers = [
        Attention(
            **sizes,
            qkv_bias=bias,
            out_bias=bias,
            qk_norm="unweighted-after" if turn and normed else "none",
            chunk=config.integer("attention_chunk_size") if kind == CHUNKED else None,
            temperature=None if turn else _llama4_temperature(config),
            position=None if turn else NoPosition(),
        )
        for turn, kind in zip(turns, kinds, strict=True)
    ]
    norm, length = RmsNorm(eps=config.number("rms_norm_eps", 1e-5)), max_context(config, rope)
    return decoder(config, mixers, _llama4_feed_forwards(config, n_layers), norm, rope, length)


def _llama4_turns(config: Config, n_layers: int) -> list[int]:
    """1 where a layer rotates: every layer but each no_rope_layer_interval-th, unless no_rope_layers lists them."""
    turns = config.integers("no_rope_layers") if config.has("no_rope_layers") else []
    if not turns:
        interval = config.integer("no_rope_layer_interval", 4)
        return [int((i + 1) % interval != 0) for i in range(n_layers)]
    if len(turns) != n_layers:
        raise config.wrong(f"no_rope_layers has {len(turns)} entries, num_hidden_layers = {n_layers}")
    return turns


def _llama4_temperature(config: Config) -> TemperatureTuning | None:
    key = "attn_temperature_tuning"  # some versions wrote a number for true
    on = bool(config.keys[key]) if isinstance(config.keys.get(key), int) else config.flag(key, True)
    if not on:
        return None
    return TemperatureTuning(period=config.number("floor_scale", 8192.0), coef=config.number("attn_scale", 0.1))


def _llama4_feed_forwards(config: Config, n_layers: int) -> list[FeedForward]:
    kind, d_ff = activation(config, "hidden_act", "silu", gated=True), config.integer("intermediate_size")
    mixture = MixtureOfExperts(
        n_experts=config.integer("num_local_experts"),
        top_k=config.integer("num_experts_per_tok"),
        d_ff=d_ff,
        activation=kind,
        router="sigmoid",
        renormalize=False,
        weigh="input",
        shared=SharedExperts(d_ff=d_ff),
    )
    step = config.integer("interleave_moe_layer_step", 1)
    every = range(step - 1, n_layers, step)
    sparse = set(config.integers("moe_layers")) if config.has("moe_layers") else set(every)
    return [mixture if i in sparse else dense(config, d_ff="intermediate_size_mlp") for i in range(n_layers)]


def mixture_of(d: Decoder) -> MixtureOfExperts:
    """The first mixture of a decoder to be written. Raises ValueError."""
    for layer in d.layers:
        if isinstance(layer.feed_forward, MixtureOfExperts):
            return layer.feed_forward
    raise ValueError("no layer has a mixture of experts")


def write_mixtral(d: Decoder) -> Keys:
    keys = _write_experts(d) | {"sliding_window": attention_of(d).window}
    return keys | {"num_local_experts": keys.pop("num_experts")}


def _write_experts(d: Decoder) -> Keys:
    m = mixture_of(d)
    return write_rotary(d) | {
        "intermediate_size": m.d_ff,
        "hidden_act": activation_name(m.activation),
        "num_experts": m.n_experts,
        "num_experts_per_tok": m.top_k,
    }


def write_qwen2_moe(d: Decoder) -> Keys:
    m = mixture_of(d)
    if m.shared is None:
        raise ValueError("it has no shared experts")
    keys = write_qwen2(d) | _write_sparse(d, m)
    return keys | {"qkv_bias": attention_of(d).qkv_bias, "shared_expert_intermediate_size": m.shared.d_ff}


def write_qwen3_moe(d: Decoder) -> Keys:
    a = attention_of(d)
    windows = {"sliding_window": a.window, "use_sliding_window": a.window is not None}
    return write_rotary(d) | _write_sparse(d, mixture_of(d)) | windows | {"attention_bias": a.out_bias}


def _write_sparse(d: Decoder, m: MixtureOfExperts) -> Keys:
    mlp = mlp_of(d)
    return {
        "num_experts": m.n_experts,
        "num_experts_per_tok": m.top_k,
        "moe_intermediate_size": m.d_ff,
        "intermediate_size": mlp.d_ff if mlp else m.d_ff,
        "hidden_act": activation_name(m.activation),
        "norm_topk_prob": m.renormalize,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [i for i, layer in enumerate(d.layers) if layer.feed_forward != m],
    }


def write_olmoe(d: Decoder) -> Keys:
    a = attention_of(d)
    norm = {"norm_topk_prob": mixture_of(d).renormalize}
    return _write_experts(d) | norm | {"attention_bias": a.out_bias, "clip_qkv": a.clip_qkv}


def write_gpt_oss(d: Decoder) -> Keys:
    keys = _write_experts(d) | window_keys(d, unused=128)
    keys |= {"attention_bias": attention_of(d).out_bias, "hidden_act": "silu"}
    return keys | {"num_local_experts": keys.pop("num_experts")}


def write_llama4(d: Decoder) -> Keys:
    mixers = [layer.mixer for layer in d.layers if isinstance(layer.mixer, Attention)]
    if len(mixers) != d.n_layers:
        raise ValueError("not every layer has attention")
    mlp, first = mlp_of(d), mixers[0]
    sparse = [isinstance(layer.feed_forward, MixtureOfExperts) for layer in d.layers]
    m = mixture_of(d) if any(sparse) else None
    temperature = next((a.temperature for a in mixers if a.temperature is not None), None)
    keys = write_rotary(d) | {
        "attention_bias": first.out_bias,
        "no_rope_layers": [int(not isinstance(a.position, NoPosition)) for a in mixers],
        "layer_types": [FULL if a.chunk is None else CHUNKED for a in mixers],
        "attention_chunk_size": next((a.chunk for a in mixers if a.chunk is not None), 8192),
        "use_qk_norm": any(a.qk_norm != "none" for a in mixers),
        "attn_temperature_tuning": temperature is not None,
        "moe_layers": [i for i, is_sparse in enumerate(sparse) if is_sparse],
        "intermediate_size": m.d_ff if m else 1,
        "intermediate_size_mlp": mlp.d_ff if mlp else 1,
        "num_local_experts": m.n_experts if m else 1,
        "num_experts_per_tok": m.top_k if m else 1,
    }
    if m is not None:
        keys["hidden_act"] = activation_name(m.activation)
    if temperature is not None:
        keys |= {"floor_scale": int(temperature.period), "attn_scale": temperature.coef}
    return keys
