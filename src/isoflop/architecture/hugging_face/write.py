"""A decoder as the configuration of a transformers family, for those who load it there.

A family's writer says how it would put a decoder; whether that is the same function is then decided by reading it back.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

from isoflop.architecture.decoder import Decoder, Layer
from isoflop.architecture.feed_forward import MixtureOfExperts
from isoflop.architecture.hugging_face import deepseek, gemma, gpt, llama, sparse, state_space
from isoflop.architecture.hugging_face.read import from_hugging_face
from isoflop.architecture.mixer import Attention, LatentAttention
from isoflop.architecture.position import NtkAware, Position, Rope

P = TypeVar("P", bound=Position)

# In the order tried: of two families that compute the same, the simpler or more widely known one is written.
WRITERS: dict[str, Callable[[Decoder], dict[str, Any]]] = {
    "llama": llama.write_llama,
    "mistral": llama.write_mistral,
    "qwen3": llama.write_qwen3,
    "qwen2": llama.write_qwen2,
    "mixtral": sparse.write_mixtral,
    "qwen3_moe": sparse.write_qwen3_moe,
    "qwen2_moe": sparse.write_qwen2_moe,
    "olmo2": llama.write_olmo2,
    "olmoe": sparse.write_olmoe,
    "phi3": llama.write_phi3,
    "gemma2": gemma.write_gemma2,
    "gemma3_text": gemma.write_gemma3,
    "gpt2": gpt.write_gpt2,
    "gpt_neox": gpt.write_gpt_neox,
    "falcon": gpt.write_falcon,
    "bloom": gpt.write_bloom,
    "mpt": gpt.write_mpt,
    "deepseek_v3": deepseek.write_deepseek_v3,
    "deepseek_v2": deepseek.write_deepseek_v2,
    "gpt_oss": sparse.write_gpt_oss,
    "llama4_text": sparse.write_llama4,
    "mamba": state_space.write_mamba,
    "mamba2": state_space.write_mamba2,
    "jamba": state_space.write_jamba,
    "nemotron_h": state_space.write_nemotron_h,
}


def nearest(decoder: Decoder) -> tuple[str, dict[str, Any]]:
    """The model_type and the keys of the family that computes exactly what this decoder does.

    Numbers that the keys imply may differ in the last digits of a double. How a router is balanced in training is no
    part of it. Raises ValueError naming what the nearest family lacks.
    """
    wanted = _function_of(decoder)
    misses: list[tuple[int, str, list[str]]] = []
    for model_type, writer in WRITERS.items():
        try:
            keys = {"model_type": model_type} | writer(wanted)
            written = from_hugging_face(keys, model_type)
        except ValueError:  # not even nearly
            continue
        differences = _differences(wanted, written)
        if not differences:
            return model_type, keys
        misses.append((len(differences), model_type, differences))
    if not misses:
        raise ValueError("no family of transformers is near this decoder's layers")
    _, model_type, differences = min(misses, key=lambda miss: miss[0])
    raise ValueError(f"no family of transformers has {', '.join(differences[:3])}; the nearest is {model_type}")


def _function_of(decoder: Decoder) -> Decoder:
    """The decoder with what does not change its function put one way."""
    changed: dict[Layer, Layer] = {layer: _layer(decoder, layer) for layer in set(decoder.layers)}
    d_head = next((_d_turned(layer) for layer in decoder.layers if _d_turned(layer)), 0)
    return msgspec.structs.replace(
        decoder,
        layers=tuple(changed[layer] for layer in decoder.layers),
        position=_plain(decoder.position, d_head),
    )


def _d_turned(layer: Layer) -> int:
    match layer.mixer:
        case Attention(d_head=d_head):
            return d_head
        case LatentAttention(d_rope=d_rope):
            return d_rope
    return 0


def _layer(decoder: Decoder, layer: Layer) -> Layer:
    mixer, feed_forward = layer.mixer, layer.feed_forward
    if isinstance(mixer, Attention) and isinstance(mixer.position, Rope):
        mixer = msgspec.structs.replace(mixer, position=_plain(mixer.position, mixer.d_head))
    if isinstance(feed_forward, MixtureOfExperts):
        fields = ("balance_coef", "sequence_balance_coef", "z_coef", "bias_update_rate")
        usual = MixtureOfExperts(n_experts=1, top_k=1, d_ff=1)
        feed_forward = msgspec.structs.replace(feed_forward, **{key: getattr(usual, key) for key in fields})
    return msgspec.structs.replace(layer, mixer=mixer, feed_forward=feed_forward)


def _plain(position: P, d_head: int) -> P:
    """NTK-aware scaling is a larger theta by another name."""
    if not isinstance(position, Rope) or not isinstance(position.scaling, NtkAware):
        return position
    d = position.d_rotated(d_head)
    if d == 2:
        return position
    theta = position.theta * position.scaling.factor ** (d / (d - 2))
    return msgspec.structs.replace(position, theta=theta, scaling=None)


def _differences(wanted: Decoder, written: Decoder) -> list[str]:
    """The fields in which two decoders differ, each as `name = value wanted`."""
    found: dict[str, None] = {}
    _compare("", msgspec.to_builtins(wanted), msgspec.to_builtins(written), found)
    return list(found)


def _compare(path: str, wanted: Any, written: Any, found: dict[str, None]) -> None:
    if wanted == written or (isinstance(wanted, float) and _close(wanted, written)):
        return
    if isinstance(wanted, dict) and isinstance(written, dict) and wanted.get("type") == written.get("type"):
        for key in {**wanted, **written}:
            _compare(f"{path}.{key}" if path else key, wanted.get(key), written.get(key), found)
    elif isinstance(wanted, list | tuple) and path == "layers" and len(wanted) == len(written):
        for one, other in zip(wanted, written, strict=True):
            _compare("layer", one, other, found)
    else:
        found[f"{path} = {_short(wanted)}"] = None


def _close(wanted: float, written: Any) -> bool:
    """Equal but for rounding: the same scale can be computed in more than one order."""
    return isinstance(written, float) and math.isclose(wanted, written, rel_tol=1e-13)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"'{value.get('type', '{...}')}'"
    text = repr(value)
    return text if len(text) <= 40 else text[:40] + "..."
