"""Pieces that the families share: sizes of attention, activations, windows, the frame of a decoder; both directions."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from isoflop.architecture.decoder import Decoder, Layer
from isoflop.architecture.feed_forward import Activation, FeedForward, Mlp
from isoflop.architecture.hugging_face.config import Config
from isoflop.architecture.mixer import Attention, Mixer
from isoflop.architecture.norm import Norm
from isoflop.architecture.position import Position, Rope

Keys = dict[str, Any]
FULL, SLIDING = "full_attention", "sliding_attention"

# Names of transformers' activations (activations.py of transformers) and ours; the first of equals is the one written.
PLAIN: dict[str, Activation] = {
    "gelu": "gelu",
    "gelu_python": "gelu",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
    "gelu_fast": "gelu-tanh",
    "gelu_accurate": "gelu-tanh",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
    "swish": "silu",
}
GATES: dict[Activation, Activation] = {"silu": "swiglu", "gelu": "geglu", "gelu-tanh": "geglu-tanh"}


def activation(config: Config, key: str, default: str, gated: bool) -> Activation:
    """Of a feed-forward, or of its gate."""
    plain = PLAIN.get(config.text(key, default))
    found = GATES.get(plain) if gated and plain else plain
    if found is None:
        known = ", ".join(repr(name) for name, ours in PLAIN.items() if not gated or ours in GATES)
        raise config.wrong(f"{key} = {config.show(key)} cannot be represented, only {known}")
    return found


def activation_name(ours: Activation) -> str:
    """What transformers calls it; the name of its gate, where it is gated."""
    plain = next((plain for plain, gated in GATES.items() if gated == ours), ours)
    return next((name for name, known in PLAIN.items() if known == plain), plain)


def heads(config: Config, all_of_them: bool = False, own_width: bool = False) -> Keys:
    """n_heads, n_kv_heads, d_head. `all_of_them`: an absent num_key_value_heads means as many as heads, as a null one
    always does; else it must be there. `own_width`: an absent head_dim means the family's own, so it must be there."""
    if own_width and "head_dim" not in config.keys:
        raise config.wrong(
            f"the key 'head_dim' is missing, for which a {config.keys['model_type']} has its own default"
        )
    n_heads, key = config.integer("num_attention_heads"), "num_key_value_heads"
    n_kv_heads = n_heads if (all_of_them or key in config.keys) and not config.has(key) else config.integer(key)
    if config.has("head_dim"):
        return {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "d_head": config.integer("head_dim")}
    if config.integer("hidden_size") % n_heads:
        raise config.wrong("the key 'head_dim' is missing and does not follow from hidden_size and num_attention_heads")
    return {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "d_head": config.integer("hidden_size") // n_heads}


def no_windows(config: Config) -> None:
    """Refuse windows in a family whose model has none."""
    config.only("sliding_window", why=f"a {config.keys['model_type']} has no sliding windows")
    if config.has("layer_types"):
        config.layer_kinds(config.n_layers(), (FULL,))


def one_window(config: Config) -> int | None:
    """The window of every layer, where all are alike."""
    if config.has("layer_types"):
        config.layer_kinds(config.n_layers(), (SLIDING if config.has("sliding_window") else FULL,))
    return config.integer("sliding_window") if config.has("sliding_window") else None


def windows_by_kind(config: Config, kinds: Sequence[str]) -> list[int | None]:
    return [config.integer("sliding_window") if kind == SLIDING else None for kind in kinds]


def dense(config: Config, bias: bool = False, key: str = "hidden_act", d_ff: str = "intermediate_size") -> Mlp:
    """A gated feed-forward."""
    return Mlp(d_ff=config.integer(d_ff), activation=activation(config, key, "silu", gated=True), bias=bias)


def decoder(
    config: Config,
    mixers: Sequence[Mixer | None],
    feed_forwards: Sequence[FeedForward | None],
    norm: Norm,
    position: Position,
    max_context: int,
    tied: bool = False,
    parallel: Literal["no", "shared-norm", "own-norms"] = "no",
    width: str = "hidden_size",
    **more: Any,
) -> Decoder:
    """The frame that all families share; `tied` is what an absent tie_word_embeddings means."""
    layers = tuple(
        Layer(mixer=mixer, feed_forward=feed_forward, parallel=parallel)
        for mixer, feed_forward in zip(mixers, feed_forwards, strict=True)
    )
    return Decoder(
        vocab_size=config.integer("vocab_size"),
        d_model=config.integer(width),
        layers=layers,
        max_context=max_context,
        norm=norm,
        position=position,
        tie_embeddings=config.flag("tie_word_embeddings", tied),
        **more,
    )


def frame(d: Decoder, eps: str = "rms_norm_eps", layers: str = "num_hidden_layers") -> Keys:
    """Keys that nearly every family has, of a decoder to be written."""
    return {
        "vocab_size": d.vocab_size,
        "hidden_size": d.d_model,
        layers: d.n_layers,
        "max_position_embeddings": d.max_context,
        eps: d.norm.eps,
        "tie_word_embeddings": d.tie_embeddings,
    }


def attention_of(d: Decoder) -> Attention:
    """The first attention of a decoder to be written, for the sizes that all layers share. Raises ValueError."""
    for layer in d.layers:
        if isinstance(layer.mixer, Attention):
            return layer.mixer
    raise ValueError("no layer has attention")


def mlp_of(d: Decoder) -> Mlp | None:
    """The first dense feed-forward of a decoder to be written."""
    return next((layer.feed_forward for layer in d.layers if isinstance(layer.feed_forward, Mlp)), None)


def rope_position(d: Decoder) -> Rope:
    if not isinstance(d.position, Rope):
        raise ValueError(f"its position is {type(d.position).__name__}, not a rotation")
    return d.position


def attention_keys(a: Attention, d: Decoder, head_dim: bool = True) -> Keys:
    keys = {"num_attention_heads": a.n_heads, "num_key_value_heads": a.n_kv_heads}
    return keys | {"head_dim": a.d_head} if head_dim or a.n_heads * a.d_head != d.d_model else keys


def window_keys(d: Decoder, unused: int | None = None) -> Keys:
    """sliding_window and layer_types; `unused` is written where no layer has a window, for families whose modules ask
    for one all the same."""
    windows = [layer.mixer.window if isinstance(layer.mixer, Attention) else None for layer in d.layers]
    kinds = [FULL if window is None else SLIDING for window in windows]
    return {"sliding_window": next((w for w in windows if w is not None), unused), "layer_types": kinds}


def period(where: Sequence[bool]) -> tuple[int, int]:
    """The least (period, offset) with offset < period for which layer i is meant exactly if i % period == offset."""
    first = next((i for i, here in enumerate(where) if here), len(where))
    for step in range(first + 1, len(where) + 2):
        if all(here == (i % step == first) for i, here in enumerate(where)):
            return step, first
    return len(where) + 1, first


def scale_of(n: float, d_head: int) -> float | None:
    """The scale n^(-1/2), None where that is what heads of width d_head have anyway."""
    return None if n == d_head else n**-0.5


def inverse_square(scale: float) -> int:
    """The whole n nearest to scale^(-2)."""
    return max(1, round(min(1 / (scale * scale), math.inf if scale == 0 else 2**53)))
