"""DeepSeek-V2 and V3: latent attention, shared and routed experts after the first dense layers."""

import math

from isoflop.architecture.decoder import Decoder
from isoflop.architecture.feed_forward import FeedForward, MixtureOfExperts, SharedExperts
from isoflop.architecture.hugging_face.config import Config
from isoflop.architecture.hugging_face.parts import (
    Keys,
    activation,
    activation_name,
    decoder,
    dense,
    frame,
    mlp_of,
    no_windows,
    rope_position,
)
from isoflop.architecture.hugging_face.rope import given, max_context, mscale, read_rope, write_rope
from isoflop.architecture.hugging_face.sparse import mixture_of
from isoflop.architecture.mixer import LatentAttention
from isoflop.architecture.norm import RmsNorm
from isoflop.architecture.position import Yarn


def read_deepseek_v2(config: Config) -> Decoder:
    config.only("norm_topk_prob", False, why="transformers does not read it and would compute something else")
    config.only("scoring_func", "softmax")
    method = config.text("topk_method", "greedy")
    if method not in ("greedy", "group_limited_greedy"):
        raise config.wrong(f"topk_method = {config.show('topk_method')} cannot be represented")
    grouped = method == "group_limited_greedy"
    mixture = MixtureOfExperts(
        n_experts=config.integer("n_routed_experts"),
        top_k=config.integer("num_experts_per_tok"),
        d_ff=config.integer("moe_intermediate_size"),
        activation=activation(config, "hidden_act", "silu", gated=True),
        renormalize=False,
        routed_scale=config.number("routed_scaling_factor", 1.0),
        n_groups=config.integer("n_group") if grouped else 1,
        top_groups=config.integer("topk_group") if grouped else 1,
        shared=_shared(config),
    )
    bias = config.flag("mlp_bias", False)
    if bias and config.integer("first_k_dense_replace", 0, least=0) < config.n_layers():
        raise config.wrong("mlp_bias = true: biases of the shared experts alone cannot be represented")
    return _deepseek(config, mixture, 0, interleaved=True, bias=bias)


def read_deepseek_v3(config: Config) -> Decoder:
    config.only("scoring_func", "sigmoid")
    config.only("topk_method", "noaux_tc")
    mixture = sigmoid_mixture(config, activation(config, "hidden_act", "silu", gated=True), _shared(config))
    return _deepseek(config, mixture, 3, interleaved=config.flag("rope_interleave", True), bias=False)


def sigmoid_mixture(config: Config, kind: str, shared: SharedExperts | None) -> MixtureOfExperts:
    """DeepSeek-V3's routing, which Nemotron-H took over: a group's score is the sum of its best two. One group alone
    restricts nothing."""
    n_groups = config.integer("n_group")
    return MixtureOfExperts(
        n_experts=config.integer("n_routed_experts"),
        top_k=config.integer("num_experts_per_tok"),
        d_ff=config.integer("moe_intermediate_size"),
        activation=kind,  # type: ignore[arg-type]
        router="sigmoid",
        renormalize=config.flag("norm_topk_prob", True),
        routed_scale=config.number("routed_scaling_factor"),
        selection_bias=True,
        n_groups=n_groups,
        top_groups=config.integer("topk_group"),
        group_score="best" if n_groups == 1 else "best-two",
        shared=shared,
    )


def _shared(config: Config) -> SharedExperts | None:
    if "n_shared_experts" not in config.keys:
        raise config.wrong("the key 'n_shared_experts' is missing, on which the versions of DeepSeek differ")
    count = config.integer("n_shared_experts", 0, least=0)
    return SharedExperts(d_ff=config.integer("moe_intermediate_size") * count) if count else None


def _deepseek(config: Config, mixture: MixtureOfExperts, dense_layers: int, interleaved: bool, bias: bool) -> Decoder:
    """`dense_layers`: what an absent first_k_dense_replace means."""
    no_windows(config)
    config.only("moe_layer_freq", 1, why="only all layers after the first dense ones can be sparse")
    n_layers, n_heads = config.n_layers(), config.integer("num_attention_heads")
    config.only("num_key_value_heads", n_heads, why=f"latent attention has as many as num_attention_heads = {n_heads}")
    layout = "interleaved" if interleaved else "half"
    rope = read_rope(config, config.integer("qk_rope_head_dim"), 10_000.0, layout=layout)  # type: ignore[arg-type]
    first = config.integer("first_k_dense_replace", dense_layers, least=0)
    feed_forwards: list[FeedForward] = [dense(config, bias) if i < first else mixture for i in range(n_layers)]
    norm = RmsNorm(eps=config.number("rms_norm_eps", 1e-6))
    return decoder(config, [_latent(config)] * n_layers, feed_forwards, norm, rope, max_context(config, rope))


def _latent(config: Config) -> LatentAttention:
    if "q_lora_rank" not in config.keys:
        raise config.wrong("the key 'q_lora_rank' is missing; null says that queries have no latent")
    d_nope, d_rope = config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim")
    return LatentAttention(
        n_heads=config.integer("num_attention_heads"),
        kv_rank=config.integer("kv_lora_rank"),
        d_nope=d_nope,
        d_rope=d_rope,
        d_value=config.integer("v_head_dim"),
        q_rank=config.integer("q_lora_rank") if config.has("q_lora_rank") else None,
        scale=_scale(config, d_nope + d_rope),
        bias=config.flag("attention_bias", False),
        norm_eps=1e-6,  # transformers' default, whatever rms_norm_eps says
    )


def _scale(config: Config, d_query: int) -> float | None:
    """With mscale_all_dim, YaRN's temperature multiplies the scores twice, once for the query and once for the key."""
    rope = given(config)
    weight = rope.number("mscale_all_dim", 0.0)
    if not weight or rope.text("rope_type", rope.text("type", "default")) == "default":
        return None
    return scaled(d_query, rope.number("factor"), weight)


def scaled(d_query: int, factor: float, weight: float) -> float:
    return float(d_query**-0.5) * mscale(factor, weight) * mscale(factor, weight)


def write_deepseek_v2(d: Decoder) -> Keys:
    m, keys, mlp = _mixture(d), _write(d), mlp_of(d)
    grouped = m is not None and m.n_groups > 1
    return keys | {"topk_method": "group_limited_greedy" if grouped else "greedy", "mlp_bias": bool(mlp and mlp.bias)}


def write_deepseek_v3(d: Decoder) -> Keys:
    m, rope = _mixture(d), rope_position(d)
    return _write(d) | {"norm_topk_prob": m is None or m.renormalize, "rope_interleave": rope.layout == "interleaved"}


def _mixture(d: Decoder) -> MixtureOfExperts | None:
    return mixture_of(d) if any(isinstance(layer.feed_forward, MixtureOfExperts) for layer in d.layers) else None


def _write(d: Decoder) -> Keys:
    latent = next((layer.mixer for layer in d.layers if isinstance(layer.mixer, LatentAttention)), None)
    if latent is None:
        raise ValueError("no layer has latent attention")
    m, mlp = _mixture(d), mlp_of(d)
    return (
        frame(d)
        | _write_mixture(d, m)
        | {
            "num_attention_heads": latent.n_heads,
            "num_key_value_heads": latent.n_heads,
            "q_lora_rank": latent.q_rank,
            "kv_lora_rank": latent.kv_rank,
            "qk_nope_head_dim": latent.d_nope,
            "qk_rope_head_dim": latent.d_rope,
            "v_head_dim": latent.d_value,
            "attention_bias": latent.bias,
            "intermediate_size": mlp.d_ff if mlp else 1,
            "hidden_act": activation_name(mlp.activation if mlp else m.activation if m else "swiglu"),
            "rope_parameters": write_rope(rope_position(d)) | _write_mscale(d, latent),
        }
    )


def _write_mixture(d: Decoder, m: MixtureOfExperts | None) -> Keys:
    sparse = [isinstance(layer.feed_forward, MixtureOfExperts) for layer in d.layers]
    m = m or MixtureOfExperts(n_experts=2, top_k=1, d_ff=1)
    shared = m.shared.d_ff if m.shared else 0
    if shared % m.d_ff:
        raise ValueError(f"shared experts of width {shared} are no multiple of the routed ones' {m.d_ff}")
    return {
        "n_routed_experts": m.n_experts,
        "num_experts_per_tok": m.top_k,
        "moe_intermediate_size": m.d_ff,
        "n_shared_experts": shared // m.d_ff,
        "routed_scaling_factor": m.routed_scale,
        "n_group": m.n_groups,
        "topk_group": m.top_groups,
        "first_k_dense_replace": sparse.index(True) if any(sparse) else d.n_layers,
    }


def _write_mscale(d: Decoder, latent: LatentAttention) -> Keys:
    """The weight for which `scaled` gives the scale, as short as it can be written; else as near as it comes."""
    scaling = rope_position(d).scaling
    if latent.scale is None or not isinstance(scaling, Yarn) or scaling.factor <= 1:
        return {}
    d_query = latent.d_nope + latent.d_rope
    weight = (math.sqrt(latent.scale * math.sqrt(d_query)) - 1) / (0.1 * math.log(scaling.factor))
    written = [round(weight, digits) for digits in range(1, 16)]
    exact = [w for w in written if scaled(d_query, scaling.factor, w) == latent.scale]
    near = [w for w in written if math.isclose(scaled(d_query, scaling.factor, w), latent.scale, rel_tol=1e-14)]
    return {"mscale_all_dim": (exact + near + [weight])[0]}
