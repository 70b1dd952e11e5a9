"""Rotary positions: `rope_parameters` of transformers 5, `rope_scaling` and `rope_theta` of the versions before."""

import math
from typing import Any, Literal

from isoflop.architecture.hugging_face.config import Config
from isoflop.architecture.position import (
    Dynamic,
    LinearScaling,
    Llama3Scaling,
    LongRope,
    NtkAware,
    Rope,
    Scaling,
    Yarn,
)

Layout = Literal["half", "interleaved"]


def read_rope(
    config: Config,
    d_head: int,
    theta: float | None = None,
    layout: Layout = "half",
    fraction: float | None = None,
    original: int | None = None,
) -> Rope:
    """The rotation of heads of width d_head.

    `theta` is what an absent rope_theta means, None that it must be there. `fraction`: the same for
    partial_rotary_factor, None where the family cannot rotate a part of each head. `original`: what an absent
    original_max_position_embeddings beside the rope means, where that key is the family's own (Phi-3).
    """
    rope = given(config)
    return rope_of(config, rope, d_head, _theta(config, rope, theta), layout, fraction, original)


def given(config: Config) -> Config:
    """The object that says how positions turn: of the two names the older one counts first, as in transformers."""
    older = config.section("rope_scaling")
    return older if older.keys else config.section("rope_parameters")


def rope_of(
    config: Config,
    rope: Config,
    d_head: int,
    theta: float,
    layout: Layout = "half",
    fraction: float | None = None,
    original: int | None = None,
) -> Rope:
    """As `read_rope`, from the object that `given` finds."""
    part = _fraction(config, rope, fraction)
    if not 0 < part <= 1:
        raise rope.wrong(f"partial_rotary_factor = {part} must lie above 0 and at most at 1")
    if int(d_head * part) % 2:
        raise rope.wrong(f"of heads of width {d_head}, {int(d_head * part)} dimensions would turn: an odd number")
    return Rope(theta=theta, fraction=part, layout=layout, scaling=_scaling(config, rope, original))


def _theta(config: Config, rope: Config, default: float | None) -> float:
    return rope.number("rope_theta") if rope.has("rope_theta") else config.number("rope_theta", default)


def _fraction(config: Config, rope: Config, default: float | None) -> float:
    holder = rope if rope.has("partial_rotary_factor") else config
    part = holder.number("partial_rotary_factor", 1.0 if default is None else default)
    if default is None and part != 1:
        raise config.wrong("partial_rotary_factor: rotating a part of each head is not what this model_type does")
    return part


def _scaling(config: Config, rope: Config, original: int | None) -> Scaling | None:
    kind = rope.text("rope_type", rope.text("type", "default"))
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(factor=rope.number("factor"))
        case "dynamic":
            return Dynamic(factor=rope.number("factor"), original_max_context=_dynamic_original(config, rope))
        case "yarn":
            return _yarn(config, rope)
        case "llama3":
            return Llama3Scaling(
                factor=rope.number("factor"),
                low_freq_factor=rope.number("low_freq_factor"),
                high_freq_factor=rope.number("high_freq_factor"),
                original_max_context=_original(config, rope, original),
            )
        case "longrope" | "su":
            return _longrope(config, rope, original)
    raise rope.wrong(f"scaling of type '{kind[:40]}' cannot be represented")


def _original(config: Config, rope: Config, default: int | None) -> int:
    """Of the key beside the rope and the one within it, the first counts; where they differ, which is meant is
    unclear but in the family that documents it."""
    key = "original_max_position_embeddings"
    if default is not None:
        return config.integer(key, default)
    if config.has(key) and rope.has(key) and config.integer(key) != rope.integer(key):
        raise rope.wrong(f"{key} = {rope.show(key)} contradicts the {config.show(key)} outside")
    holder = rope if rope.has(key) else config
    return holder.integer(key) if holder.has(key) else config.integer("max_position_embeddings")


def _dynamic_original(config: Config, rope: Config) -> int:
    """Transformers begins to scale at max_position_embeddings, whatever other keys say."""
    length = config.integer("max_position_embeddings")
    rope.only("original_max_position_embeddings", length, why=f"dynamic scaling begins at {length}")
    return length


def _factor(config: Config, rope: Config, original: int) -> float:
    factor = rope.number("factor", config.integer("max_position_embeddings") / original)
    if factor <= 0:
        raise rope.wrong(f"factor = {factor} must be above 0")
    return factor


def mscale(factor: float, weight: float = 1.0) -> float:
    """YaRN's temperature as a factor (Peng et al. 2023, arXiv 2309.00071, eq. 22; `weight` is DeepSeek's)."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _yarn(config: Config, rope: Config) -> Yarn:
    original = _original(config, rope, None)
    factor = _factor(config, rope, original)
    weights = rope.number("mscale", 0.0), rope.number("mscale_all_dim", 0.0)
    inferred = mscale(factor, weights[0]) / mscale(factor, weights[1]) if all(weights) else mscale(factor)
    return Yarn(
        factor=factor,
        original_max_context=original,
        attention_factor=rope.number("attention_factor", inferred),
        beta_fast=rope.number("beta_fast", 0.0) or 32.0,
        beta_slow=rope.number("beta_slow", 0.0) or 1.0,
        truncate=rope.flag("truncate", True),
    )


def _longrope(config: Config, rope: Config, default: int | None) -> LongRope:
    original = _original(config, rope, default)
    factor = _factor(config, rope, original)
    if factor > 1 and original < 2:
        raise rope.wrong(f"original_max_position_embeddings = {original} must be at least 2")
    inferred = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    return LongRope(
        short_factors=rope.numbers("short_factor"),
        long_factors=rope.numbers("long_factor"),
        original_max_context=original,
        attention_factor=rope.number("attention_factor", inferred),
    )


def max_context(config: Config, rope: Rope) -> int:
    """max_position_embeddings; times the factor where dynamic scaling, which begins there, stretches it."""
    length = config.integer("max_position_embeddings")
    return int(length * max(1.0, rope.scaling.factor)) if isinstance(rope.scaling, Dynamic) else length


def write_rope(rope: Rope, partial: bool = False) -> dict[str, Any]:
    """rope_parameters, as transformers 5 has them."""
    keys: dict[str, Any] = {"rope_type": "default", "rope_theta": rope.theta}
    if partial:
        keys["partial_rotary_factor"] = rope.fraction
    match rope.scaling:
        case None | NtkAware():  # write.py has taken this one into theta
            return keys
        case LinearScaling(factor=factor):
            return keys | {"rope_type": "linear", "factor": factor}
        case Dynamic(factor=factor):
            return keys | {"rope_type": "dynamic", "factor": factor}
        case Llama3Scaling() as s:
            return (
                keys
                | _long_context("llama3", s.original_max_context)
                | {
                    "factor": s.factor,
                    "low_freq_factor": s.low_freq_factor,
                    "high_freq_factor": s.high_freq_factor,
                }
            )
        case Yarn() as y:
            return (
                keys
                | _long_context("yarn", y.original_max_context)
                | {
                    "factor": y.factor,
                    "attention_factor": y.attention_factor,
                    "beta_fast": y.beta_fast,
                    "beta_slow": y.beta_slow,
                    "truncate": y.truncate,
                }
            )
        case LongRope() as long:
            return (
                keys
                | _long_context("longrope", long.original_max_context)
                | {
                    "attention_factor": long.attention_factor,
                    "short_factor": list(long.short_factors),
                    "long_factor": list(long.long_factors),
                }
            )


def _long_context(kind: str, original: int) -> dict[str, Any]:
    return {"rope_type": kind, "original_max_position_embeddings": original}
