"""Gemma 2 and 3: norms before and after each part, soft caps, windows; in Gemma 3 a rotation for each kind of layer.

Their RMS norms multiply by 1 + w where ours multiply by the stored weight: 1 + w is what we store.
"""

import math

from isoflop.architecture.decoder import Decoder
from isoflop.architecture.feed_forward import Mlp
from isoflop.architecture.hugging_face.config import Config
from isoflop.architecture.hugging_face.parts import (
    FULL,
    SLIDING,
    Keys,
    activation,
    activation_name,
    attention_keys,
    attention_of,
    decoder,
    frame,
    heads,
    inverse_square,
    mlp_of,
    rope_position,
    scale_of,
    window_keys,
)
from isoflop.architecture.hugging_face.rope import max_context, read_rope, rope_of, write_rope
from isoflop.architecture.mixer import Attention
from isoflop.architecture.norm import RmsNorm
from isoflop.architecture.position import Rope


def read_gemma2(config: Config) -> Decoder:
    softcap = _cap(config, "attn_logit_softcapping", 50.0)
    return _gemma(config, read_rope(config, heads(config, own_width=True)["d_head"]), None, 2, softcap, 30.0)


def read_gemma3(config: Config) -> Decoder:
    config.only("attn_logit_softcapping", why="a gemma3_text does not cap scores")
    everywhere, local = _gemma3_ropes(config, heads(config, own_width=True)["d_head"])
    pattern = "sliding_window_pattern" if config.has("sliding_window_pattern") else "_sliding_window_pattern"
    return _gemma(config, everywhere, local, config.integer(pattern, 6), None, None)


def _gemma3_ropes(config: Config, d_head: int) -> tuple[Rope, Rope]:
    """Of full and of sliding layers. Before transformers 5, rope_scaling is of the full layers alone."""
    nested = config.section("rope_parameters")
    older = config.section("rope_scaling")
    if nested.keys and not nested.has(FULL) and not nested.has(SLIDING):
        raise nested.wrong(f"has neither '{FULL}' nor '{SLIDING}'")
    full, sliding = nested.section(FULL), nested.section(SLIDING)
    full = full._replace(keys=full.keys | older.keys)
    full.only("truncate", True, why="a gemma3_text rounds YaRN's borders")
    theta = full.number("rope_theta", config.number("rope_theta", 1_000_000.0))
    local = sliding.number("rope_theta", config.number("rope_local_base_freq", 10_000.0))
    return rope_of(config, full, d_head, theta), rope_of(config, sliding, d_head, local)


def _cap(config: Config, key: str, default: float | None) -> float | None:
    """A soft cap; here null says that there is none, and an absent key means the default."""
    return default if key not in config.keys else config.number(key) if config.has(key) else None


def _gemma(
    config: Config, rope: Rope, local: Rope | None, every: int, softcap: float | None, logit_cap: float | None
) -> Decoder:
    """`local`: the rotation of sliding layers, where it is not `rope`; `every` n-th layer is full unless listed."""
    config.only("use_bidirectional_attention", False, why="only causal attention can be represented")
    n_layers, sizes, bias = config.n_layers(), heads(config), config.flag("attention_bias", False)
    alternating = [SLIDING if (i + 1) % every else FULL for i in range(n_layers)]
    kinds = config.layer_kinds(n_layers, (FULL, SLIDING)) if config.has("layer_types") else alternating
    mixers = [
        Attention(
            **sizes,
            qk_norm="none" if local is None else "head",
            scale=scale_of(config.integer("query_pre_attn_scalar", 256), sizes["d_head"]),
            softcap=softcap,
            window=config.integer("sliding_window", 4096) if kind == SLIDING else None,
            qkv_bias=bias,
            out_bias=bias,
            position=local if kind == SLIDING and local != rope else None,
        )
        for kind in kinds
    ]
    kind = activation(config, "hidden_activation", "gelu_pytorch_tanh", gated=True)
    mlp = Mlp(d_ff=config.integer("intermediate_size"), activation=kind)
    return decoder(
        config,
        mixers,
        [mlp] * n_layers,
        RmsNorm(eps=config.number("rms_norm_eps", 1e-6)),
        rope,
        max_context(config, rope),
        tied=True,
        placement="sandwich",
        embedding_multiplier=math.sqrt(config.integer("hidden_size")),
        logit_softcap=_cap(config, "final_logit_softcapping", logit_cap),
    )


def write_gemma2(d: Decoder) -> Keys:
    return _write(d) | {
        "attn_logit_softcapping": attention_of(d).softcap,
        "rope_parameters": write_rope(rope_position(d)),
    }


def write_gemma3(d: Decoder) -> Keys:
    rope = rope_position(d)
    mixers = [layer.mixer for layer in d.layers if isinstance(layer.mixer, Attention)]
    local = next((a.position for a in mixers if isinstance(a.position, Rope)), rope)
    return _write(d) | {"rope_parameters": {FULL: write_rope(rope), SLIDING: write_rope(local)}}


def _write(d: Decoder) -> Keys:
    a, mlp = attention_of(d), mlp_of(d)
    if mlp is None:
        raise ValueError("it has no dense feed-forward")
    return (
        frame(d)
        | attention_keys(a, d)
        | window_keys(d, unused=4096)
        | {
            "intermediate_size": mlp.d_ff,
            "hidden_activation": activation_name(mlp.activation),
            "attention_bias": a.out_bias,
            "query_pre_attn_scalar": a.d_head if a.scale is None else inverse_square(a.scale),
            "final_logit_softcapping": d.logit_softcap,
        }
    )
