"""Layers by pattern, in formulas and in files."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from isoflop.architecture import Attention, Mlp
from isoflop.architecture.find import load_decoder
from isoflop.architecture.pattern import expand

# A formula as nested data: a block, or parts with a number of repeats.
FORMULAS = st.recursive(
    st.sampled_from(("a", "b", "mamba-2", "x_1")),
    lambda parts: st.tuples(st.lists(parts, min_size=1, max_size=3), st.integers(1, 3)),
    max_leaves=8,
)


def written(formula: object) -> str:
    if isinstance(formula, str):
        return formula
    parts, times = formula
    return "(" + " ".join(map(written, parts)) + ")" + (f"*{times}" if times > 1 else "")


def meant(formula: object) -> list[str]:
    if isinstance(formula, str):
        return [formula]
    parts, times = formula
    return [name for part in parts for name in meant(part)] * times


@given(FORMULAS)
def test_a_formula_means_what_it_says(formula: object) -> None:
    assert expand(written(formula), ("a", "b", "mamba-2", "x_1")) == meant(formula)


def test_repeats_bind_to_what_is_before_them() -> None:
    assert expand("m*3 a (m a)*2", "ma") == list("mmmamama")
    assert expand("  m * 2a", "ma") == list("mma")
    assert expand("m*2*3", "m") == ["m"] * 6
    assert expand("m*0000000000002", "m") == ["m"] * 2


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("b*2", "pattern names the block 'b', which is missing (blocks: attend, m)"),
        ("atend", "pattern names the block 'atend', which is missing; did you mean 'attend'?"),
        ("m )", "pattern 'm )', character 3: ')' closes no '('"),
        ("(m m", "pattern '(m m' has a '(' that is never closed"),
        ("*3", "pattern '*3', character 2: '*3' repeats nothing"),
        ("()*3", "'*3' repeats nothing"),
        ("m*0", "'*0' makes 0 layers; 1 to 10000 make sense"),
        ("(m*5000)*3", "'*3' makes 15000 layers"),
        ("m*6000 m*6000", "character 10: makes 12000 layers; at most 10000 make sense"),
        pytest.param(f"m*{'9' * 5000}", "layers; 1 to 10000 make sense", id="digits"),
        ("m*\u0663", "character 2: '*' is no block"),
        ("m, m", "pattern 'm, m', character 2: ',' is no block, no parenthesis, no '*' with a number"),
        ("m*x", "character 2: '*' is no block"),
        ("", "pattern '' names no layer"),
    ],
)
def test_mistakes_teach(pattern: str, message: str) -> None:
    with pytest.raises(ValueError) as mistake:
        expand(pattern, ("m", "attend"))
    assert message in str(mistake.value) and "\n" not in str(mistake.value)
    assert len(str(mistake.value)) < 500


HEAD = "vocab_size = 10\nd_model = 8\nmax_context = 16\n"
BLOCKS = """
[blocks.a]
mixer = {type = "attention", n_heads = 2, n_kv_heads = 1, d_head = 4}
feed_forward = "none"
[blocks.f]
mixer = "none"
feed_forward = {type = "mlp", d_ff = 8}
"""


def loaded(tmp_path: Path, text: str):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_decoder(path)


def test_a_file(tmp_path: Path) -> None:
    decoder = loaded(tmp_path, HEAD + 'pattern = "(a f)*2 f"' + BLOCKS)
    mixers = [layer.mixer for layer in decoder.layers]
    attention = Attention(n_heads=2, n_kv_heads=1, d_head=4)
    assert mixers == [attention, None, attention, None, None]
    assert decoder.layers[4].feed_forward == Mlp(d_ff=8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (HEAD + 'pattern = "(a f"' + BLOCKS, "pattern '(a f' has a '(' that is never closed"),
        (HEAD + 'pattern = "a*2"' + BLOCKS, "[blocks.f] does not occur in pattern = 'a*2'"),
        (HEAD + 'pattern = "a f"', "the key 'blocks' is missing"),
        (HEAD + BLOCKS, "the key 'pattern' is missing"),
        (HEAD + "pattern = 3" + BLOCKS, "[pattern] expected str, found int 3"),
        (HEAD + 'layers = []\npattern = "a"' + BLOCKS, "either as 'layers' or as 'blocks' with a 'pattern'"),
        (HEAD + 'pattern = "a f"' + BLOCKS.replace("d_ff", "dff"), "[blocks.f.feed_forward] unknown key 'dff'; did"),
        (HEAD + 'pattern = "a f"' + BLOCKS.replace("d_head = 4", "d_head = 1"), "rope needs at least 2 dimensions"),
        (HEAD + 'pattern = "a f"' + BLOCKS.replace('"none"', '"nothing"'), "expected object, found str 'nothing'"),
        (HEAD + 'pattern = "a"\nblocks = 3', "[blocks] expected object, found int 3"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError) as mistake:
        loaded(tmp_path, text)
    line = str(mistake.value)
    assert line.startswith(f"{tmp_path / 'mine.toml'}: ") and message in line and "\n" not in line
