"""Every family against transformers: its configurations, its modules, its parameters, its defaults."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings

from hugging_face_families import FAMILIES, random_config, random_model
from isoflop.architecture import (
    Attention,
    Decoder,
    Hyena,
    LatentAttention,
    Layer,
    LayerNorm,
    LongRope,
    Mlp,
    NtkAware,
    Rope,
    Sinusoidal,
    Yarn,
)
from isoflop.architecture.find import find_decoder, published_names
from isoflop.architecture.hugging_face import READERS, from_hugging_face, nearest
from isoflop.cost import parameters
from strategies import decoders

transformers.logging.set_verbosity_error()


def of(config: Any) -> Decoder:
    return from_hugging_face(config.to_dict(), "x")


def configured(keys: dict[str, Any]) -> Any:
    """Transformers' configuration of the keys of a file."""
    return transformers.CONFIG_MAPPING[keys["model_type"]](**{k: v for k, v in keys.items() if k != "model_type"})


def test_every_reader_is_tried() -> None:
    assert list(READERS) == list(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_read_and_written_and_read_again(family: str) -> None:
    for seed in range(12):
        decoder = of(random_config(family, seed))
        _, keys = nearest(decoder)
        again = configured(keys)
        assert of(again) == decoder == from_hugging_face(json.loads(again.to_json_string()), "x"), seed
        assert from_hugging_face(json.loads(json.dumps(keys)), "x") == decoder, seed


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_those_of_transformers(family: str) -> None:
    for seed in range(6):
        config = random_config(family, seed)
        with torch.device("meta"):
            models = random_model(config), random_model(configured(nearest(of(config))[1]))
        theirs = [sum(p.numel() for p in model.parameters()) for model in models]
        assert theirs == [parameters(of(config)).total] * 2, seed


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_are_those_of_transformers(family: str) -> None:
    """Scales, windows and rotations, as transformers' own modules hold them."""
    for seed in range(6):
        config = random_config(family, seed)
        decoder = of(config)
        with torch.device("meta"):
            model = random_model(config)
        attentions = [m for m in model.modules() if hasattr(m, "scaling") and hasattr(m, "layer_idx")]
        mixers = [x.mixer for x in decoder.layers if isinstance(x.mixer, Attention | LatentAttention)]
        for theirs, ours in zip(attentions, mixers, strict=bool(attentions)):
            d_head = ours.d_head if isinstance(ours, Attention) else ours.d_nope + ours.d_rope
            assert math.isclose(ours.scale or d_head**-0.5, theirs.scaling, rel_tol=1e-12), seed
            if isinstance(getattr(theirs, "sliding_window", None), int) and isinstance(ours, Attention):
                assert ours.window == (theirs.sliding_window or None), seed
        if family != "gemma3_text":
            _check_rotation(decoder, model)


def _check_rotation(decoder: Decoder, model: Any) -> None:
    tables = [m for m in model.modules() if hasattr(m, "attention_scaling")]
    if not isinstance(decoder.position, Rope):
        return
    scaling = decoder.position.scaling
    factor = scaling.attention_factor if isinstance(scaling, Yarn | LongRope) else 1.0
    assert tables and all(math.isclose(table.attention_scaling, factor, rel_tol=1e-12) for table in tables)
    mixer = decoder.layers[0].mixer
    d_head = mixer.d_head if isinstance(mixer, Attention) else mixer.d_rope
    assert all(len(table.inv_freq) == decoder.position.d_rotated(d_head) // 2 for table in tables)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_absent_key_means_what_transformers_takes(family: str) -> None:
    """Each key left out: refused, or read as the configuration class completes it."""
    for seed in (0, 1):
        whole = random_config(family, seed).to_dict()
        for key in whole:
            keys = json.loads(json.dumps({k: v for k, v in whole.items() if k != key}))
            try:
                ours = from_hugging_face(keys, "x")
            except ValueError as refusal:
                assert str(refusal).startswith("x: ") and "\n" not in str(refusal)
                continue
            if (family, key) != ("deepseek_v3", "num_key_value_heads"):  # which their latent attention misreads
                assert ours == of(configured(keys)), key


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts_before_transformers_5(family: str) -> None:
    """rope_theta and rope_scaling beside the others, and each family's own older names."""
    for seed in range(8):
        config = random_config(family, seed)
        assert from_hugging_face(_older(config.to_dict()), "x") == of(config), seed


def _older(keys: dict[str, Any]) -> dict[str, Any]:
    rope = keys.pop("rope_parameters", None)
    match keys["model_type"]:
        case "gpt_neox":
            keys |= {"rotary_pct": rope.pop("partial_rotary_factor"), "rotary_emb_base": rope.pop("rope_theta")}
        case "gemma3_text":
            keys["rope_local_base_freq"], rope = rope["sliding_attention"]["rope_theta"], rope["full_attention"]
        case "nemotron_h":
            letters = {"linear_attention": "M", "full_attention": "*", "mlp": "-", "moe": "E"}
            keys["hybrid_override_pattern"] = "".join(letters[kind] for kind in keys.pop("layers_block_type"))
        case "bloom":
            keys |= {"n_embed": keys.pop("hidden_size"), "num_attention_heads": keys.pop("n_head")}
        case "mixtral":
            keys["num_experts"] = keys.pop("num_local_experts")
    if rope is not None:
        keys |= {key: rope.pop(key) for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        kind = rope.pop("rope_type")
        keys["rope_scaling"] = {"rope_type" if kind == "llama3" else "type": kind} | rope
    return keys


NONSENSE = [-1, 0, 2.5, "x", [], {}, True, [None], {"full_attention": 3}, 10**400, float("nan"), float("inf"), "9" * 99]


@pytest.mark.parametrize("family", FAMILIES)
def test_nonsense_is_a_value_error_or_a_decoder(family: str) -> None:
    """In every key, and within every object: never another exception, never more than a line."""
    keys = random_config(family, 3).to_dict()
    inner = [(outer, key) for outer, value in keys.items() if isinstance(value, dict) for key in value]
    for outer, key in [(None, key) for key in keys] + inner:
        for value in NONSENSE:
            broken = keys | ({key: value} if outer is None else {outer: keys[outer] | {key: value}})
            try:
                from_hugging_face(broken, "x")
            except ValueError as error:
                assert str(error).startswith("x: ") and "\n" not in str(error) and len(str(error)) < 700


PUBLISHED = json.loads((Path(__file__).parent / "published_configurations.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_are_the_published_models(name: str) -> None:
    """The keys that these models' own config.json files have, written by many versions of transformers."""
    assert from_hugging_face(PUBLISHED[name], name) == find_decoder(name)


@pytest.mark.parametrize("name", published_names())
def test_published_models_are_written(name: str) -> None:
    decoder = find_decoder(name)
    try:
        model_type, keys = nearest(decoder)
    except ValueError as error:
        assert str(error).startswith("no family of transformers ")
        return
    assert parameters(from_hugging_face(keys, model_type)).total == parameters(decoder).total


def test_a_scale_is_written_as_the_weight_that_was_published() -> None:
    _, keys = nearest(find_decoder("deepseek-v2-lite-16b"))
    assert keys["rope_parameters"]["mscale_all_dim"] == 0.707


def _llama(**more: Any) -> Decoder:
    layer = Layer(mixer=Attention(n_heads=2, n_kv_heads=1, d_head=8), feed_forward=Mlp(d_ff=24))
    return Decoder(**{"vocab_size": 40, "d_model": 16, "layers": (layer, layer), "max_context": 64} | more)


def test_ntk_aware_scaling_is_written_as_its_theta() -> None:
    model_type, keys = nearest(_llama(position=Rope(theta=1e4, scaling=NtkAware(factor=4.0))))
    assert model_type == "llama"
    assert keys["rope_parameters"] == {"rope_type": "default", "rope_theta": 1e4 * 4.0 ** (8 / 6)}


HALF, HALF_MLP = Attention(n_heads=2, n_kv_heads=1, d_head=8), Mlp(d_ff=24)
NOT_WRITTEN: list[tuple[dict[str, Any], str]] = [
    ({"embedding_multiplier": 3.0}, r"no family of transformers has embedding_multiplier = 3.0; the nearest is llama"),
    ({"logit_multiplier": 0.5, "head_bias": True}, "has (logit_multiplier = 0.5|head_bias = True), .*nearest is llama"),
    ({"placement": "deep-norm"}, "has placement = 'deep-norm'; the nearest is llama"),
    ({"norm": LayerNorm()}, "no family of transformers has norm = 'layer-norm'; the nearest is llama"),
    ({"position": Sinusoidal()}, "no family of transformers has"),
    ({"layers": (Layer(mixer=Hyena(), feed_forward=None),)}, "has layer.mixer = 'hyena'"),
    ({"layers": (Layer(mixer=HALF, feed_forward=HALF_MLP, parallel="shared-norm"),)}, "parallel = 'shared-norm'"),
]


@pytest.mark.parametrize(("more", "message"), NOT_WRITTEN, ids=[message for _, message in NOT_WRITTEN])
def test_what_no_family_has_is_named(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        nearest(_llama(**more))


@settings(max_examples=60, deadline=None)
@given(decoders())
def test_any_decoder_is_written_exactly_or_refused(decoder: Decoder) -> None:
    try:
        model_type, keys = nearest(decoder)
    except ValueError as error:
        assert str(error).startswith("no family of transformers ") and "\n" not in str(error)
        return
    assert parameters(from_hugging_face(keys, model_type)).total == parameters(decoder).total
