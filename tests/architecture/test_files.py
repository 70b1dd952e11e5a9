"""Descriptions from plain data: every mistake is one line that says what, where, and what would be valid."""

import copy
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings

from isoflop.architecture import Decoder, Family, Layer
from isoflop.architecture.files import from_dict, load_toml
from isoflop.architecture.find import find_decoder, load_decoder
from strategies import decoders

GOOD: dict[str, Any] = {
    "vocab_size": 10,
    "d_model": 8,
    "max_context": 8,
    "position": {"type": "rope"},
    "layers": [
        {
            "mixer": {"type": "attention", "n_heads": 2, "n_kv_heads": 1, "d_head": 4},
            "feed_forward": {"type": "mlp", "d_ff": 8},
        },
        {
            "mixer": {"type": "attention", "n_heads": 2, "n_kv_heads": 2, "d_head": 4},
            "feed_forward": {"type": "mixture-of-experts", "n_experts": 4, "top_k": 2, "d_ff": 8},
        },
    ],
}
DELETE = object()

MISTAKES = [
    (["vocabsize"], 3, "unknown key 'vocabsize'; did you mean 'vocab_size'? (valid: "),
    (["vocab_size"], DELETE, "the key 'vocab_size' is missing"),
    (["vocab_size"], "ten", "[vocab_size] expected int, found str 'ten'"),
    (["vocab_size"], True, "[vocab_size] expected int, found bool True"),
    (["d_model"], 1.5, "[d_model] expected int, found float 1.5"),
    (["d_model"], 0, "d_model = 0 must be above 0"),
    (["d_model"], 10**5000, "d_model = about 1.000e+5000 must be at most 2^53"),
    (["d_model"], -(10**5000), "d_model = about -1.000e+5000 must be above 0"),
    (["tie_embeddings"], 10**5000, "[tie_embeddings] expected bool, found int about 1.000e+5000"),
    (["d_model"], "x" * 10**4, "[d_model] expected int, found str 'xxx"),
    (["layers", 0, "mixer", "type"], "x" * 10**4, "[layers.0.mixer.type] 'xxx"),
    (["x" * 10**4], 1, "unknown key 'xxx"),
    (["embedding_multiplier"], float("inf"), "embedding_multiplier = inf must be finite"),
    (["layers"], 3, "[layers] expected array, found int 3"),
    (["layers"], [], "layers is empty; a decoder has at least one layer"),
    (["layers", 1, "mixer"], 3, "[layers.1.mixer] expected object, found int 3"),
    (["layers", 1, "mixer", "n_head"], 2, "[layers.1.mixer] unknown key 'n_head'; did you mean 'n_heads'?"),
    (
        ["layers", 1, "mixer", "type"],
        "atention",
        "[layers.1.mixer.type] 'atention' is not valid; did you mean 'attention'?",
    ),
    (["layers", 1, "mixer", "n_kv_heads"], 3, "[layers.1.mixer] n_heads = 2 is not a multiple of n_kv_heads = 3; "),
    (["layers", 1, "mixer", "d_head"], 1, "rope needs at least 2 dimensions of a head to turn; d_head = 1 leaves none"),
    (["layers", 1, "feed_forward", "type"], DELETE, "[layers.1.feed_forward] the key 'type' is missing"),
    (
        ["layers", 1, "feed_forward", "type"],
        "mixture",
        "[layers.1.feed_forward.type] 'mixture' is not valid; did you mean 'mixture-of-experts'? "
        "(valid: mlp, mixture-of-experts)",
    ),
    (["layers", 1, "feed_forward", "topk"], 1, "[layers.1.feed_forward] unknown key 'topk'; did you mean 'top_k'?"),
    (
        ["layers", 1, "feed_forward", "top_k"],
        9,
        "[layers.1.feed_forward] top_k = 9 exceeds n_experts = 4; the nearest valid top_k is 4",
    ),
    (
        ["layers", 0, "feed_forward", "activation"],
        "swigluu",
        "[layers.0.feed_forward.activation] 'swigluu' is not valid; did you mean 'swiglu'? (valid: ",
    ),
    (["position", "thetta"], 1.0, "[position] unknown key 'thetta'; did you mean 'theta'?"),
    (["position", "theta"], -3.0, "[position] theta = -3.0 must be above 0"),
    (["position", "scaling"], {"type": "yarm"}, "[position.scaling.type] 'yarm' is not valid; did you mean 'yarn'?"),
    (
        ["position", "scaling"],
        {"type": "llama3", "factr": 3},
        "[position.scaling] unknown key 'factr'; did you mean 'factor'?",
    ),
]


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    data = copy.deepcopy(GOOD)
    holder: Any = data
    for step in path[:-1]:
        holder = holder[step]
    if value is DELETE:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return data


def test_the_good_one_is_good() -> None:
    assert from_dict(GOOD, Decoder, "x").n_layers == 2


@pytest.mark.parametrize(("path", "value", "message"), MISTAKES, ids=[m[2] for m in MISTAKES])
def test_mistakes(path: list[Any], value: Any, message: str) -> None:
    with pytest.raises(ValueError) as mistake:
        from_dict(changed(path, value), Decoder, "x.toml")
    assert str(mistake.value).startswith(f"x.toml: {message}")
    assert "\n" not in str(mistake.value)
    assert len(str(mistake.value)) < 1000


class Named(msgspec.Struct, forbid_unknown_fields=True):
    families: dict[str, Family]


@pytest.mark.parametrize(
    ("family", "message"),
    [
        (
            {"type": "dens"},
            "[families.my.one.type] 'dens' is not valid; did you mean 'dense'? (valid: dense, experts, ",
        ),
        ({"type": "dense", "d_hed": 3}, "[families.my.one] unknown key 'd_hed'; did you mean 'd_head'?"),
        ({"type": "dense", "d_head": -3}, "[families.my.one] d_head = -3 must be above 0"),
        ({"type": "experts", "top_k": 99}, "[families.my.one] top_k = 99 exceeds n_experts = 8; "),
        ({"type": "dense", "aspect": "x"}, "[families.my.one.aspect] expected float, found str 'x'"),
        (3, "[families.my.one] expected object, found int 3"),
    ],
)
def test_mistakes_under_names_of_the_users_own(family: Any, message: str) -> None:
    data = {"families": {"good": {"type": "dense"}, "my.one": family, "also good": {"type": "experts"}}}
    with pytest.raises(ValueError) as mistake:
        from_dict(data, Named, "x.toml")
    assert str(mistake.value).startswith(f"x.toml: {message}")


@settings(max_examples=50)
@given(decoders())
def test_there_and_back(decoder: Decoder) -> None:
    again = from_dict(msgspec.to_builtins(decoder), Decoder, "x")
    assert again == decoder and again.digest == decoder.digest


LAYER = """
[layers.mixer]
type = "attention"
n_heads = 2
n_kv_heads = 1
d_head = 4
[layers.feed_forward]
type = "mlp"
d_ff = 8
"""
HEAD = "vocab_size = 10\nd_model = 8\nmax_context = 8\n"


def written(folder: Path, text: str) -> Path:
    path = folder / "decoder.toml"
    path.write_text(text)
    return path


def test_layers_may_repeat(tmp_path: Path) -> None:
    wider = LAYER.replace("d_ff = 8", "d_ff = 16")
    path = written(tmp_path, f"{HEAD}[[layers]]\nrepeat = 3\n{LAYER}[[layers]]\n{wider}[[layers]]\nrepeat = 2\n{LAYER}")
    found = load_decoder(path)
    assert [layer.feed_forward.d_ff for layer in found.layers] == [8, 8, 8, 16, 8, 8]
    longhand = written(tmp_path, HEAD + "".join(f"[[layers]]\n{x}" for x in (LAYER, LAYER, LAYER, wider, LAYER, LAYER)))
    assert load_toml(longhand, Decoder) == found
    assert "repeat" not in Layer.__struct_fields__


@pytest.mark.parametrize("repeat", ["0", "-1", "1.5", "true", '"x"', "10001"])
def test_impossible_repeats(tmp_path: Path, repeat: str) -> None:
    path = written(tmp_path, f"{HEAD}[[layers]]\n{LAYER}[[layers]]\nrepeat = {repeat}\n{LAYER}")
    with pytest.raises(ValueError, match=r"decoder\.toml: \[layers\.1\] repeat = .* between 1 and 10000"):
        load_decoder(path)


def test_repeats_that_are_too_many_together(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD + f"[[layers]]\nrepeat = 10000\n{LAYER}" * 2)
    with pytest.raises(ValueError, match=r"decoder\.toml: layers and their repeats make 20000 layers; at most 10000"):
        load_decoder(path)


def test_errors_count_the_files_own_entries(tmp_path: Path) -> None:
    path = written(tmp_path, f"{HEAD}[[layers]]\nrepeat = 30\n{LAYER}[[layers]]\n{LAYER.replace('d_ff', 'dff')}")
    with pytest.raises(ValueError, match=r"\[layers\.1\.feed_forward\] unknown key 'dff'; did you mean 'd_ff'"):
        load_decoder(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vocab_size = ", "is not valid TOML"),
        ("layers = 3", "the key 'vocab_size' is missing|expected array"),
        ("layers = [3]", r"\[layers\.0\] expected object"),
        pytest.param("vocab_size = " + "[" * 10**5, "nested too deeply", id="deep"),
        pytest.param("vocab_size = " + "9" * 10**4, "is not valid TOML", id="digits"),
        pytest.param("a" + ".a" * 10**5 + " = 1", "a key of more than 64 parts", id="key"),
        pytest.param("a = { " + ' . "\\".b"' * 10**5 + " = 1 }", "a key of more than 64 parts", id="quoted-key"),
        pytest.param("# " + "x" * 2**22, "is larger than 4 MiB", id="large"),
    ],
)
def test_files_that_say_nothing(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_decoder(written(tmp_path, text))


def test_files_that_are_none(tmp_path: Path) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    for path, message in (
        (tmp_path / "nowhere.toml", "there is no such file"),
        (tmp_path, "is not a TOML file"),
        (binary, "is not a TOML file"),
    ):
        with pytest.raises(ValueError, match=message):
            load_decoder(path)


def test_a_path_with_a_slash_is_no_published_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "llama-2-7b"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for name in ("./llama-2-7b", str(folder)):
        with pytest.raises(ValueError, match=r"config\.json: the key 'model_type' is missing"):
            find_decoder(name)
    assert find_decoder("llama-2-7b").d_model == 4096


def test_a_configuration_is_a_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json: is not a plain file"):
        find_decoder(str(tmp_path))
