"""Published models: names, refusals, and exact counts against those measured on transformers' own modules."""

import json
from pathlib import Path
from typing import Any

import pytest

from isoflop.architecture.find import find_decoder, published_names
from isoflop.architecture.zoo import Entry, canonical, entries, figure
from isoflop.cost import cache, parameters

TRUTH = Path(__file__).resolve().parents[3] / "shared" / "data" / "truth" / "models.json"
# Totals stated with the published weights, for models that the truth file does not hold.
STATED = {
    "llama-2-13b": 13_015_864_320,
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.2-3b": 3_212_749_824,
    "mistral-7b-v0.3": 7_248_023_552,
    "mixtral-8x22b": 140_620_634_112,
    "qwen3-14b": 14_768_307_200,
    "qwen3-235b-a22b": 235_093_634_560,
    "qwen2.5-72b": 72_706_203_648,
    "gemma-2-27b": 27_227_128_320,
    "gpt2-large-774m": 774_030_080,
    "pythia-410m": 405_334_016,
    "pythia-2.8b": 2_775_208_960,
    "bloom-560m": 559_214_592,
    "bloom-7b1": 7_069_016_064,
}
# What the truth file holds and the language does not express.
BEYOND = {"qwen3-next-80b-a3b", "kimi-linear-48b-a3b", "phi-3.5-moe", "gopher-280b", "chinchilla-70b"}
# Published closed forms leave out the norms of these.
WITHOUT_NORMS = {"palm-540b": 119 * 18432}


def truth() -> dict[str, dict[str, Any]]:
    if not TRUTH.exists():
        pytest.skip(f"no ground truth at {TRUTH}")
    return {model["name"]: model for model in json.loads(TRUTH.read_text())["models"]}


def test_exact_counts_of_every_model_that_can_be_expressed() -> None:
    compared = 0
    for name, model in truth().items():
        if name.lower() in BEYOND:
            continue
        decoder = find_decoder(name)
        found, kept = parameters(decoder), cache(decoder, 1, "bf16")
        if "exact" not in model:
            assert found.total - WITHOUT_NORMS.get(name.lower(), 0) == model["closed_form_total"], name
            continue
        exact, states = model["exact"], model["ssm_state_bytes_per_sequence"]
        assert found.total == exact["total"], name
        assert found.active == exact["active_all"], name
        assert found.active_no_input_embedding == exact["active_excl_input_embedding"], name
        assert found.non_embedding == exact["non_embedding"], name
        assert kept.bytes_per_token == model["kv_cache_bytes_per_token_bf16_no_window"], name
        assert kept.state_bytes_per_sequence == (states["value"] if isinstance(states, dict) else states), name
        compared += 1
    assert compared == 57


def test_what_cannot_be_expressed_is_refused_by_name() -> None:
    assert {name.lower() for name in truth()} >= BEYOND
    for name in BEYOND:
        with pytest.raises(ValueError, match=f"'{name}' cannot be expressed: .+") as refusal:
            find_decoder(name)
        assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", STATED)
def test_stated_totals(name: str) -> None:
    assert parameters(find_decoder(name)).total == STATED[name]


def test_the_zoo_has_an_entry_for_every_preset_and_the_other_way_round() -> None:
    without = {name for name, entry in entries().items() if entry.refused or entry.rumour}
    assert set(published_names()) == set(entries()) - without
    assert all(entries()[name].kind or entries()[name].rumour for name in without)
    names = [*entries(), *(alias for entry in entries().values() for alias in entry.aliases)]
    assert len(names) == len(set(names)) and all(name == name.lower() for name in names)


def test_families_of_the_textbooks() -> None:
    families = (
        "gpt-2 gpt-3 gopher chinchilla llama-2-7b llama-3-8b llama-4-scout llama-4-maverick mistral-7b mixtral-8x7b "
        "deepseek-v2 deepseek-v3 falcon-7b palm bloom mpt-7b mamba-130m mamba2-130m jamba qwen3-8b gemma-3-1b "
        "gpt-oss-20b olmo-2-7b olmoe"
    )
    assert [name for name in families.split() if canonical(name) is None] == []


def agrees(entry: Entry, name: str) -> bool:
    counts = parameters(find_decoder(name))
    total = entry.total is None or figure(entry.total).agrees(counts.total)
    either = (counts.active, counts.active_no_input_embedding)
    return total and (entry.active is None or any(figure(entry.active).agrees(count) for count in either))


def test_a_published_figure_is_the_configurations_or_the_zoo_says_why_not() -> None:
    for name in published_names():
        assert agrees(entries()[name], name) == (not entries()[name].why), name


def test_figures() -> None:
    eight = figure("8.03B")
    assert eight.value == 8.03e9 and eight.agrees(8_030_261_248) and eight.agrees(8_039_999_999)
    assert not eight.agrees(8_040_000_000) and not eight.agrees(8_020_000_000)
    assert figure("70426624").agrees(70426624) and not figure("70426624").agrees(70426625)
    assert figure("1.8T").value == 1.8e12 and figure("124M").agrees(124_439_808)


def test_rumours_are_never_facts() -> None:
    rumours = [name for name, entry in entries().items() if entry.rumour]
    assert "gpt-4" in rumours
    for name in rumours:
        with pytest.raises(ValueError, match=f"'{name}' is closed: its size is a rumour"):
            find_decoder(name)


def test_letter_case_and_aliases_do_not_matter() -> None:
    assert find_decoder("Llama-3.1-8B") == find_decoder("llama-3.1-8b")
    assert find_decoder("DeepSeek-V3") == find_decoder("deepseek-v3-671b")
    assert find_decoder("Mixtral-8x7B-v0.1") == find_decoder("mixtral-8x7b")


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"'lama-3\.1-8b' is neither a file nor a published model; did you mean 'llama"
    ):
        find_decoder("lama-3.1-8b")
    with pytest.raises(ValueError, match=r"nowhere\.toml: there is no such file"):
        find_decoder("nowhere.toml")
