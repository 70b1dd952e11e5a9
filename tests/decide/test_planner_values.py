"""The planner against published figures: which constants give them, and how closely."""

import json
import math
from pathlib import Path

import pytest

from isoflop.architecture.find import find_decoder
from isoflop.cost.cache import cache
from isoflop.cost.parameters import parameters
from isoflop.decide.planner import plan
from isoflop.decide.question import Flops, LawChoice, QualityOf, Question, Served

RUNS = Path(__file__).parents[2].parent / "shared/data/runs"


def asked(goal, law, **others):
    return plan(Question(goal=goal, laws=(LawChoice(name=law),), families=("dense",), count="6nd", **others))


@pytest.mark.parametrize(
    ("law", "n", "d"),
    [
        ("hoffmann-2022-approach-1", 69.3e9, 1.386e12),  # 20 tokens a parameter: Chinchilla itself
        ("muennighoff-2023", 70.0e9, 1.37e12),
        ("besiroglu-2024", 73.2e9, 1.312e12),  # the refit of approach 3
        ("hoffmann-2022", 40.4e9, 2.38e12),  # approach 3 as published: not 70B
        ("sardana-2024", 41.7e9, 2.30e12),
    ],
)
def test_chinchillas_budget(law, n, d):
    best = asked(Flops(5.76e23), law).training_optimal
    assert best.n_params == pytest.approx(n, rel=0.005)
    assert best.tokens == pytest.approx(d, rel=0.005)


@pytest.mark.parametrize(
    ("n", "served", "best_n", "best_d"), [(30e9, 5e12, 16.4e9, 3.27e12), (70e9, 1e13, 41.6e9, 7.92e12)]
)
def test_sardanas_lifetimes(n, served, best_n, best_d):
    """Least 6 N D + 2 N D_inf for the quality of a Chinchilla-optimal model (Sardana et al. 2024)."""
    told = asked(QualityOf(n), "sardana-2024", served=Served(tokens=served))
    assert told.training_optimal.n_params == pytest.approx(n, rel=0.003)
    assert told.lifetime_optimal.n_params == pytest.approx(best_n, rel=0.004)
    assert told.lifetime_optimal.tokens == pytest.approx(best_d, rel=0.004)
    assert told.lifetime_optimal.lifetime < told.training_optimal.lifetime
    assert told.lifetime_optimal.loss == pytest.approx(told.training_optimal.loss, rel=1e-9)
    assert told.recommended.n_params == pytest.approx(best_n, rel=0.02)  # in dimensions that hardware likes


def test_llama_3():
    told = asked(Flops(3.8e25), "llama-3-2024")
    assert told.training_optimal.tokens == pytest.approx(16.1e12, rel=0.003)
    assert told.training_optimal.n_params == pytest.approx(3.8e25 / 6 / 16.1e12, rel=0.003)
    assert told.recommended.loss is None
    assert told.candidates[0].p_best is None
    assert told.near_optimal == []


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("mixtral-8x7b", 47e9, 13e9), ("llama-2-7b", 7e9, 7e9), ("llama-3.1-405b", 405e9, 405e9)],
)
def test_textbook_counts(name, total, active):
    count = parameters(find_decoder(name))
    assert count.total == pytest.approx(total, rel=0.04)
    assert count.active == pytest.approx(active, rel=0.04)


@pytest.mark.parametrize(("name", "times"), [("llama-3.1-8b", 4), ("llama-2-70b", 8), ("llama-2-7b", 1)])
def test_grouped_queries_shrink_the_cache(name, times):
    decoder = find_decoder(name)
    full = 2 * 2 * decoder.n_layers * decoder.layers[0].mixer.n_heads * decoder.layers[0].mixer.d_head
    assert full / cache(decoder, 4096, "bf16").bytes_per_token == times


@pytest.mark.parametrize("n", [7e9, 70e9, 400e9])
def test_twenty_tokens_a_parameter(n):
    best = asked(Flops(120 * n**2), "hoffmann-2022-approach-1").training_optimal
    assert best.n_params == pytest.approx(n, rel=0.002)
    assert best.tokens_per_param == pytest.approx(20, rel=0.004)


def test_lifetime_closed_form():
    """At the optimum the derivatives of 6 N D + 2 N D_inf along equal loss vanish (Sardana et al. 2024, eq. 4)."""
    told = asked(Flops(1e23), "besiroglu-2024", served=Served(tokens=2e12))
    a, b, A, B = 0.347310, 0.367172, 477.826, 2143.417
    for n, d in [(told.lifetime_optimal.n_params, told.lifetime_optimal.tokens)]:
        slope = a * A * n**-a / (b * B * d**-b)  # -dlog D / dlog N at equal loss
        assert 6 * n * d * (1 - slope) + 2 * n * 2e12 == pytest.approx(0, abs=0.004 * 6 * n * d)


def test_the_documents_numbers_are_json():
    told = asked(Flops(1e22), "besiroglu-2024")
    import msgspec

    document = json.loads(msgspec.json.encode(told))
    assert math.isclose(document["recommended"]["train_flops"], 1e22)
