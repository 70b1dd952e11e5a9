"""Mamba, Mamba-2, and their hybrids with attention: Jamba, Nemotron-H. None of them has positions.

Mamba's and Mamba-2's configurations name no context, for they have no limit; max_position_embeddings, if a file has it,
is taken, else 2^20.
"""

import math
from typing import TypeVar

from isoflop.architecture.decoder import Decoder, Layer
from isoflop.architecture.feed_forward import FeedForward, MixtureOfExperts, Mlp, SharedExperts
from isoflop.architecture.hugging_face.config import Config, special_float
from isoflop.architecture.hugging_face.deepseek import sigmoid_mixture
from isoflop.architecture.hugging_face.parts import (
    FULL,
    Keys,
    activation,
    activation_name,
    attention_keys,
    decoder,
    dense,
    frame,
    heads,
    no_windows,
    period,
)
from isoflop.architecture.mixer import Attention, Mixer
from isoflop.architecture.norm import RmsNorm
from isoflop.architecture.position import NoPosition
from isoflop.architecture.recurrent import Mamba1, Mamba2

M = TypeVar("M", Mamba1, Mamba2, Attention, Mlp, MixtureOfExperts)

UNLIMITED = 2**20
LINEAR = "linear_attention"
KINDS = {"mamba": LINEAR, "attention": FULL}  # Nemotron-H's names before transformers 5, where they differ
PATTERN = {"M": LINEAR, "*": FULL, "-": "mlp", "E": "moe"}


def read_mamba(config: Config) -> Decoder:
    config.only("hidden_act", "silu", "swish")
    mixer = Mamba1(
        d_inner=_whole(config, "expand", 2.0),
        d_state=config.integer("state_size"),
        dt_rank=_dt_rank(config, "time_step_rank"),
        d_conv=config.integer("conv_kernel", 4),
        conv_bias=config.flag("use_conv_bias", True),
        proj_bias=config.flag("use_bias", False),
    )
    return _recurrent(config, mixer, tied=True)


def read_mamba2(config: Config) -> Decoder:
    """The norm before the output is over each group."""
    config.only("hidden_act", "silu", "swish")
    n_heads, d_head, n_groups = config.integer("num_heads"), config.integer("head_dim"), config.integer("n_groups", 8)
    inner = _whole(config, "expand", 2.0)
    if inner != n_heads * d_head:
        raise config.wrong(f"expand * hidden_size = {inner} is not num_heads * head_dim = {n_heads * d_head}")
    low, high = _limit(config)
    mixer = Mamba2(
        n_heads=n_heads,
        d_head=d_head,
        d_state=config.integer("state_size"),
        n_groups=n_groups,
        d_conv=config.integer("conv_kernel", 4),
        conv_bias=config.flag("use_conv_bias", True),
        proj_bias=config.flag("use_bias", False),
        norm_groups=n_groups,
        norm_eps=config.number("layer_norm_epsilon", 1e-5),
        dt_min=low,
        dt_max=high,
    )
    return _recurrent(config, mixer, tied=False)


def _whole(config: Config, key: str, default: float) -> int:
    """A multiple of hidden_size, cut to a whole number as transformers does."""
    return int(config.number(key, default) * config.integer("hidden_size"))


def _dt_rank(config: Config, key: str) -> int:
    automatic = config.keys.get(key, "auto") == "auto"
    return math.ceil(config.integer("hidden_size") / 16) if automatic else config.integer(key)


def _limit(config: Config) -> tuple[float, float | None]:
    """time_step_limit: what dt is clamped to; infinity limits nothing."""
    given = config.keys.get("time_step_limit")
    if given is None:
        return 0.0, None
    if not isinstance(given, list | tuple) or len(given) != 2:
        raise config.wrong("time_step_limit must be a list of two numbers")
    high = special_float(given[1])
    pair = Config(config.source, {"time_step_limit": [given[0], 1.0 if high == math.inf else high]})
    low, limit = pair.numbers("time_step_limit")
    return low, None if high == math.inf else limit


def _recurrent(config: Config, mixer: Mixer, tied: bool) -> Decoder:
    n_layers = config.n_layers()
    norm = RmsNorm(eps=config.number("layer_norm_epsilon", 1e-5))
    length = config.integer("max_position_embeddings", UNLIMITED)
    return decoder(config, [mixer] * n_layers, [None] * n_layers, norm, NoPosition(), length, tied=tied)


def read_jamba(config: Config) -> Decoder:
    config.only("sliding_window", why="a jamba has no sliding windows")
    config.only("mamba_inner_layernorms", True)
    config.only("hidden_act", "silu", "swish", why="it is also the Mamba layers' own, which have SiLU")
    attention = Attention(**heads(config))
    mamba = Mamba1(
        d_inner=config.integer("mamba_expand", 2) * config.integer("hidden_size"),
        d_state=config.integer("mamba_d_state", 16),
        dt_rank=_dt_rank(config, "mamba_dt_rank"),
        d_conv=config.integer("mamba_d_conv", 4),
        conv_bias=config.flag("mamba_conv_bias", True),
        proj_bias=config.flag("mamba_proj_bias", False),
        inner_norms=True,
        norm_eps=config.number("rms_norm_eps", 1e-6),
    )
    every = dense(config)
    some = _jamba_mixture(config) if config.integer("num_experts") > 1 else every
    attends, sparse = _periodic(config, "attn_layer", 8, 4), _periodic(config, "expert_layer", 2, 1)
    mixers: list[Mixer] = [attention if here else mamba for here in attends]
    feeds: list[FeedForward] = [some if here else every for here in sparse]
    norm = RmsNorm(eps=config.number("rms_norm_eps", 1e-6))
    return decoder(config, mixers, feeds, norm, NoPosition(), config.integer("max_position_embeddings", 262_144))


def _jamba_mixture(config: Config) -> MixtureOfExperts:
    return MixtureOfExperts(
        n_experts=config.integer("num_experts"),
        top_k=config.integer("num_experts_per_tok", 2),
        d_ff=config.integer("intermediate_size"),
        renormalize=False,
    )


def _periodic(config: Config, name: str, every: int, first: int) -> list[bool]:
    """Layers i with i % period == offset."""
    step, offset = config.integer(f"{name}_period", every), config.integer(f"{name}_offset", first, least=0)
    if offset >= step:
        raise config.wrong(f"{name}_offset = {offset} must be smaller than {name}_period = {step}")
    return [i % step == offset for i in range(config.n_layers())]


def read_nemotron_h(config: Config) -> Decoder:
    """Each layer is a mixer or a feed-forward. Transformers keeps dt above time_step_min, not time_step_limit."""
    no_windows(Config(config.source, {key: value for key, value in config.keys.items() if key != "layer_types"}))
    config.only("attention_bias", False, why="transformers does not read it and would compute something else")
    config.only("tie_word_embeddings", False, why="transformers does not tie a nemotron_h")
    config.only("moe_latent_size")
    config.only("mamba_hidden_act", "silu", "swish")
    kinds = _nemotron_kinds(config)
    parts = {kind: _nemotron_part(config, kind) for kind in set(kinds)}
    if config.flag("mlp_bias", False) and "moe" in parts:
        raise config.wrong("mlp_bias = true: biases of the shared experts alone cannot be represented")
    mixers: list[Mixer | None] = []
    feeds: list[FeedForward | None] = []
    for kind in kinds:
        part = parts[kind]
        is_feed = isinstance(part, Mlp | MixtureOfExperts)
        mixers.append(None if is_feed else part)  # type: ignore[arg-type]
        feeds.append(part if is_feed else None)  # type: ignore[arg-type]
    norm = RmsNorm(eps=config.number("layer_norm_epsilon", 1e-5))
    return decoder(config, mixers, feeds, norm, NoPosition(), config.integer("max_position_embeddings"))


def _nemotron_kinds(config: Config) -> list[str]:
    key = "layers_block_type" if config.has("layers_block_type") else "layer_types"
    if config.has(key):
        kinds = [KINDS.get(kind, kind) for kind in config.names(key)]
    else:
        key = "hybrid_override_pattern"
        kinds = [PATTERN.get(letter, letter) for letter in config.text(key)]
    if not 1 <= len(kinds) <= 10_000:
        raise config.wrong(f"{key} has {len(kinds)} layers; between 1 and 10000 make sense")
    return Config(config.source, {key: kinds}).layer_kinds(len(kinds), tuple(PATTERN.values()), key)


def _nemotron_part(config: Config, kind: str) -> Mixer | FeedForward:
    if kind == FULL:
        return Attention(**heads(config, own_width=True))
    if kind == LINEAR:
        return _nemotron_mamba(config)
    ours = activation(config, "mlp_hidden_act", "relu2", gated=False)
    if kind == "mlp":
        return Mlp(d_ff=config.integer("intermediate_size"), activation=ours, bias=config.flag("mlp_bias", False))
    return sigmoid_mixture(config, ours, SharedExperts(d_ff=config.integer("moe_shared_expert_intermediate_size")))


def _nemotron_mamba(config: Config) -> Mamba2:
    def key(name: str, older: str) -> str:
        return older if older in config.keys else name

    n_groups = config.integer(key("n_groups", "mamba_n_groups"))
    return Mamba2(
        n_heads=config.integer("mamba_num_heads"),
        d_head=config.integer("mamba_head_dim"),
        d_state=config.integer("ssm_state_size"),
        n_groups=n_groups,
        d_conv=config.integer(key("conv_kernel", "mamba_d_conv"), 4),
        conv_bias=config.flag(key("use_conv_bias", "mamba_conv_bias"), True),
        proj_bias=config.flag("use_bias", False),
        norm_groups=n_groups,
        norm_eps=config.number("layer_norm_epsilon", 1e-5),
        dt_min=config.number(key("time_step_min", "mamba_dt_min"), 0.001),
    )


def write_mamba(d: Decoder) -> Keys:
    m = _needed(_first(d, Mamba1), "a Mamba mixer")
    return frame(d, eps="layer_norm_epsilon") | {
        "expand": _expand(m.d_inner, d.d_model),
        "state_size": m.d_state,
        "time_step_rank": m.dt_rank,
        "conv_kernel": m.d_conv,
        "use_conv_bias": m.conv_bias,
        "use_bias": m.proj_bias,
    }


def _expand(d_inner: int, d_model: int) -> int:
    if d_inner % d_model:
        raise ValueError(f"d_inner = {d_inner} is no multiple of d_model = {d_model}")
    return d_inner // d_model


def _first(d: Decoder, kind: type[M]) -> M | None:
    parts = (part for layer in d.layers for part in (layer.mixer, layer.feed_forward))
    return next((part for part in parts if isinstance(part, kind)), None)


def _needed(part: M | None, name: str) -> M:
    if part is None:
        raise ValueError(f"no layer has {name}")
    return part


def write_mamba2(d: Decoder) -> Keys:
    m = _needed(_first(d, Mamba2), "a Mamba-2 mixer")
    return (
        frame(d, eps="layer_norm_epsilon")
        | {
            "expand": _expand(m.d_inner, d.d_model),
            "num_heads": m.n_heads,
            "head_dim": m.d_head,
            "state_size": m.d_state,
            "n_groups": m.n_groups,
            "conv_kernel": m.d_conv,
            "use_conv_bias": m.conv_bias,
            "use_bias": m.proj_bias,
        }
        | _write_limits(m)
    )


def _write_limits(m: Mamba2) -> Keys:
    """Nothing where dt is free; infinity as JSON of transformers 5 has it."""
    if m.dt_min == 0 and m.dt_max is None:
        return {}
    return {"time_step_limit": [m.dt_min, {"__float__": "Infinity"} if m.dt_max is None else m.dt_max]}


def write_jamba(d: Decoder) -> Keys:
    """Whatever kind of part no layer has gets sizes that then count for nothing."""
    m = _first(d, Mamba1) or Mamba1(d_inner=d.d_model, d_state=1, dt_rank=1)
    a = _first(d, Attention) or Attention(n_heads=1, n_kv_heads=1, d_head=d.d_model)
    experts = _first(d, MixtureOfExperts)
    feed_forward = experts or _needed(_first(d, Mlp), "a feed-forward")
    attends = period([isinstance(layer.mixer, Attention) for layer in d.layers])
    sparse = period([isinstance(layer.feed_forward, MixtureOfExperts) for layer in d.layers])
    return (
        frame(d)
        | attention_keys(a, d, head_dim=False)
        | {
            "intermediate_size": feed_forward.d_ff,
            "num_experts": experts.n_experts if experts else 1,
            "num_experts_per_tok": experts.top_k if experts else 1,
            "attn_layer_period": attends[0],
            "attn_layer_offset": attends[1],
            "expert_layer_period": sparse[0],
            "expert_layer_offset": sparse[1],
            "mamba_expand": _expand(m.d_inner, d.d_model),
            "mamba_d_state": m.d_state,
            "mamba_dt_rank": m.dt_rank,
            "mamba_d_conv": m.d_conv,
            "mamba_conv_bias": m.conv_bias,
            "mamba_proj_bias": m.proj_bias,
        }
    )


def write_nemotron_h(d: Decoder) -> Keys:
    """As `write_jamba`."""
    m = _first(d, Mamba2) or Mamba2(n_heads=1, d_head=1, d_state=1)
    a = _first(d, Attention) or Attention(n_heads=1, n_kv_heads=1, d_head=1)
    mlp, experts = _first(d, Mlp), _first(d, MixtureOfExperts)
    keys = frame(d, eps="layer_norm_epsilon") | attention_keys(a, d)
    del keys["num_hidden_layers"]
    if experts is not None:
        keys |= _write_nemotron_mixture(experts)
    kind = mlp.activation if mlp else experts.activation if experts else "relu2"
    return keys | {
        "layers_block_type": [_kind(layer) for layer in d.layers],
        "intermediate_size": mlp.d_ff if mlp else 1,
        "mlp_hidden_act": activation_name(kind),
        "mlp_bias": mlp is not None and mlp.bias,
        "mamba_num_heads": m.n_heads,
        "mamba_head_dim": m.d_head,
        "ssm_state_size": m.d_state,
        "n_groups": m.n_groups,
        "conv_kernel": m.d_conv,
        "use_conv_bias": m.conv_bias,
        "use_bias": m.proj_bias,
        "time_step_min": m.dt_min,
        "use_cache": any(isinstance(layer.mixer, Attention) for layer in d.layers),  # its cache asks attention
    }


def _kind(layer: Layer) -> str:
    if layer.mixer is not None and layer.feed_forward is not None:
        raise ValueError("each layer of a nemotron_h is a mixer or a feed-forward alone")
    if layer.mixer is not None:
        return FULL if isinstance(layer.mixer, Attention) else LINEAR
    return "mlp" if isinstance(layer.feed_forward, Mlp) else "moe"


def _write_nemotron_mixture(m: MixtureOfExperts) -> Keys:
    if m.shared is None:
        raise ValueError("a nemotron_h has shared experts beside the routed ones")
    return {
        "n_routed_experts": m.n_experts,
        "num_experts_per_tok": m.top_k,
        "moe_intermediate_size": m.d_ff,
        "moe_shared_expert_intermediate_size": m.shared.d_ff,
        "norm_topk_prob": m.renormalize,
        "routed_scaling_factor": m.routed_scale,
        "n_group": m.n_groups,
        "topk_group": m.top_groups,
    }
