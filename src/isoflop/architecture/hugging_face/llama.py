"""Llama and its kin, dense: Mistral, Qwen 2 and 3, OLMo 2, Phi-3. RMS norms, rotary positions, gated feed-forwards."""

from typing import Any

from isoflop.architecture.decoder import Decoder
from isoflop.architecture.feed_forward import FeedForward
from isoflop.architecture.hugging_face.config import Config
from isoflop.architecture.hugging_face.parts import (
    FULL,
    SLIDING,
    Keys,
    activation_name,
    attention_keys,
    attention_of,
    decoder,
    dense,
    frame,
    heads,
    mlp_of,
    no_windows,
    one_window,
    rope_position,
    window_keys,
    windows_by_kind,
)
from isoflop.architecture.hugging_face.rope import given, max_context, read_rope, write_rope
from isoflop.architecture.mixer import Attention
from isoflop.architecture.norm import Placement, RmsNorm
from isoflop.architecture.position import Dynamic, Rope


def read_llama(config: Config) -> Decoder:
    no_windows(config)
    bias = config.flag("attention_bias", False)
    mixer = Attention(**heads(config, all_of_them=True), qkv_bias=bias, out_bias=bias)
    return rotary(config, [mixer], dense(config, config.flag("mlp_bias", False)), theta=10_000.0)


def read_mistral(config: Config) -> Decoder:
    if "sliding_window" not in config.keys:
        raise config.wrong("the key 'sliding_window' is missing, which for a mistral means a window of 4096")
    return rotary(config, [Attention(**heads(config), window=one_window(config))], dense(config))


def read_qwen2(config: Config) -> Decoder:
    return rotary(config, qwen_mixers(config, qkv_bias=True), dense(config))


def read_qwen3(config: Config) -> Decoder:
    bias = config.flag("attention_bias", False)
    mixers = qwen_mixers(config, own_width=True, qk_norm="head", qkv_bias=bias, out_bias=bias)
    return rotary(config, mixers, dense(config))


def qwen_mixers(config: Config, own_width: bool = False, **more: Any) -> list[Attention]:
    """One a layer; windows from max_window_layers on, or where layer_types says, if they are used at all."""
    n_layers = config.n_layers()
    used = uses_window(config)
    if config.has("layer_types"):
        kinds = config.layer_kinds(n_layers, (FULL, SLIDING) if used else (FULL,))
    else:
        first = config.integer("max_window_layers", 28, least=0) if used else n_layers
        kinds = [SLIDING if i >= first else FULL for i in range(n_layers)]
    sizes = heads(config, own_width=own_width)
    return [Attention(**sizes, **more, window=window) for window in windows_by_kind(config, kinds)]


def uses_window(config: Config) -> bool:
    """Whether Qwen's key `sliding_window` counts, and says anything."""
    used = config.flag("use_sliding_window", False)
    if used and "sliding_window" not in config.keys:
        raise config.wrong("the key 'sliding_window' is missing, which means a window of 4096")
    return used and config.has("sliding_window")


def read_olmo2(config: Config) -> Decoder:
    no_windows(config)
    bias = config.flag("attention_bias", False)
    mixer = Attention(**heads(config, all_of_them=True), qk_norm="all", qkv_bias=bias, out_bias=bias)
    return rotary(config, [mixer], dense(config), placement="output", default_eps=1e-5)


def read_phi3(config: Config) -> Decoder:
    """Its own key original_max_position_embeddings, 4096 where absent, counts before the one within the rope."""
    mixer = Attention(**heads(config, all_of_them=True), window=one_window(config))
    rope_keys = given(config)
    if rope_keys.text("rope_type", rope_keys.text("type", "default")) not in ("default", "longrope", "su"):
        raise rope_keys.wrong("a phi3 turns by the default or by longrope")
    rope = read_rope(config, mixer.d_head, fraction=1.0, original=4096)
    n_layers = config.n_layers()
    norm = RmsNorm(eps=config.number("rms_norm_eps", 1e-5))
    length = config.integer("max_position_embeddings")
    return decoder(config, [mixer] * n_layers, [dense(config)] * n_layers, norm, rope, length)


def rotary(
    config: Config,
    mixers: list[Attention],
    feed_forwards: FeedForward | list[FeedForward],
    theta: float | None = None,
    placement: Placement = "pre",
    default_eps: float = 1e-6,
) -> Decoder:
    """The decoder of a family of rotary attention under RMS norms. One mixer stands for all layers alike."""
    n_layers = config.n_layers()
    ours = feed_forwards if isinstance(feed_forwards, list) else [feed_forwards] * n_layers
    rope = read_rope(config, mixers[0].d_head, theta)
    norm = RmsNorm(eps=config.number("rms_norm_eps", default_eps))
    mixers = mixers if len(mixers) == n_layers else mixers * n_layers
    return decoder(config, mixers, ours, norm, rope, max_context(config, rope), placement=placement)


def write_rotary(d: Decoder) -> Keys:
    """What all of these families share."""
    mlp, a, rope = mlp_of(d), attention_of(d), rope_position(d)
    keys = frame(d) | attention_keys(a, d) | {"rope_parameters": write_rope(rope)}
    keys["hidden_act"] = activation_name(mlp.activation) if mlp else "silu"
    keys["intermediate_size"] = mlp.d_ff if mlp else 1
    return keys | {"max_position_embeddings": written_context(d)}


def written_context(d: Decoder) -> int:
    """max_position_embeddings: where dynamic scaling begins, if there is any; else the context."""
    scaling = d.position.scaling if isinstance(d.position, Rope) else None
    return scaling.original_max_context if isinstance(scaling, Dynamic) else d.max_context


def write_llama(d: Decoder) -> Keys:
    mlp = mlp_of(d)
    return write_rotary(d) | {"attention_bias": attention_of(d).out_bias, "mlp_bias": mlp is not None and mlp.bias}


def write_mistral(d: Decoder) -> Keys:
    return write_rotary(d) | {"sliding_window": attention_of(d).window}


def write_qwen2(d: Decoder) -> Keys:
    windows = window_keys(d)
    return write_rotary(d) | windows | {"use_sliding_window": windows["sliding_window"] is not None}


def write_qwen3(d: Decoder) -> Keys:
    return write_qwen2(d) | {"attention_bias": attention_of(d).out_bias}


def write_olmo2(d: Decoder) -> Keys:
    return write_rotary(d) | {"attention_bias": attention_of(d).out_bias}


def write_phi3(d: Decoder) -> Keys:
    rope = rope_position(d)
    keys = write_mistral(d) | {"rope_parameters": write_rope(rope, partial=True)}
    keys["pad_token_id"] = None  # its class would take 32000, which a small table of tokens does not hold
    original = getattr(rope.scaling, "original_max_context", None)
    return keys if original is None else keys | {"original_max_position_embeddings": original}
