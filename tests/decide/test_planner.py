"""Properties of plans: budgets, demands, limits, families, determinism, the command that asks again."""

import math
import shlex

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.architecture.find import load_decoder
from isoflop.cost.parameters import parameters
from isoflop.decide.answer import NoPlan
from isoflop.decide.planner import plan
from isoflop.decide.question import (
    FAMILIES,
    Deadline,
    DeviceHours,
    Dollars,
    Flops,
    LawChoice,
    QualityOf,
    Question,
    Served,
    TargetLoss,
)
from isoflop.decide.shapes import of_size, shape_named
from isoflop.decide.vary import tornado, varied
from isoflop.hardware import GIB
from isoflop.laws.discrepancy import posterior

BUDGETS = st.floats(19, 26).map(lambda power: 10.0**power)
SOME = settings(max_examples=12, deadline=None)


def dense(goal, **others):
    return plan(Question(goal=goal, families=("dense",), **others))


@SOME
@given(BUDGETS, st.floats(1.1, 30), st.sampled_from(FAMILIES), st.sampled_from([0.0, 1e11, 1e13]))
def test_more_budget_is_never_worse(flops, times, family, served):
    questions = [
        Question(goal=Flops(c), families=(family,), served=Served(tokens=served)) for c in (flops, flops * times)
    ]
    less, more = (plan(question) for question in questions)
    assert more.recommended.loss.value <= less.recommended.loss.value
    assert more.training_optimal.loss <= less.training_optimal.loss
    assert less.recommended.train_flops == pytest.approx(flops)


@SOME
@given(st.floats(1.9, 2.6), st.floats(10, 13), st.floats(1.2, 100))
def test_more_served_never_makes_a_model_larger(loss, power, times):
    less, more = (
        dense(TargetLoss(loss), served=Served(tokens=tokens)).lifetime_optimal
        for tokens in (10.0**power, 10.0**power * times)
    )
    assert more.n_params <= less.n_params * (1 + 1e-6)
    assert more.tokens >= less.tokens * (1 - 1e-6)


@SOME
@given(st.floats(1e21, 1e25), st.floats(9, 15), st.sampled_from(FAMILIES))
def test_recommended_is_the_cheapest_of_its_loss(flops, power, family):
    """The place on the training budget is also the lifetime's optimum of its own loss."""
    served = Served(tokens=10.0**power)
    told = plan(Question(goal=Flops(flops), families=(family,), served=served))
    if told.recommended.tokens_per_param > 1e5:
        return  # served so much that the grid ends
    again = plan(Question(goal=TargetLoss(told.recommended.loss.value), families=(family,), served=served))
    total = told.recommended.train_flops + told.recommended.serve_flops
    assert again.lifetime_optimal.lifetime == pytest.approx(total, rel=0.03)  # dimensions are rounded
    assert told.recommended.n_params <= told.training_optimal.n_params * 1.05


@SOME
@given(BUDGETS, st.floats(1e-4, 0.05))
def test_near_optimal_set(flops, within):
    told = dense(Flops(flops), within=within)
    losses = [point.loss for point in told.near_optimal]
    least = told.training_optimal.loss
    assert min(losses) == pytest.approx(least, rel=1e-3)
    assert max(losses) <= least * (1 + within) * (1 + 1e-6)
    assert losses[0] == pytest.approx(least * (1 + within), rel=2e-4)  # it reaches the edge
    near = told.near_optimal_range
    assert near.n_low < told.training_optimal.n_params < near.n_high
    assert all(point.train_flops == pytest.approx(flops, rel=1e-6) for point in told.near_optimal)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("wanted", [3e7, 1e9, 2e10, 5e11])
def test_shapes_are_friendly_and_of_the_size_asked(family, wanted):
    decoder = of_size(shape_named(family, 65536, 4096), wanted)
    assert parameters(decoder).total == pytest.approx(wanted, rel=0.06 if wanted > 1e8 else 0.25)
    step = 64 if decoder.d_model < 1024 else 256 if decoder.d_model < 2048 else 512
    assert decoder.d_model % step == 0
    for layer in set(decoder.layers):
        if layer.feed_forward is not None:
            assert layer.feed_forward.d_ff % 64 == 0
        if layer.mixer is not None and decoder.d_model >= 4096:
            assert layer.mixer.n_heads % 8 == 0


def test_the_toml_is_the_decoder(tmp_path):
    for family in FAMILIES:
        told = plan(Question(goal=Flops(1e21), families=(family,))).recommended
        path = tmp_path / f"{family}.toml"
        path.write_text(told.architecture.toml)
        decoder = load_decoder(path)
        assert decoder.digest == told.architecture.digest
        assert parameters(decoder).total == told.n_params


def test_deterministic():
    question = Question(goal=Flops(3e22), served=Served(tokens=1e12), unique_tokens=1e11)
    assert msgspec.json.encode(plan(question)) == msgspec.json.encode(plan(question))


def test_candidates_share_one():
    told = plan(Question(goal=Flops(1e23)))
    assert sum(one.p_best for one in told.candidates) == pytest.approx(1)
    assert told.candidates[0].verdict == "recommended"
    assert told.candidates[0].family == told.recommended.architecture.family
    assert sorted(one.family for one in told.candidates) == sorted(FAMILIES)
    assert all(one.note for one in told.candidates if one.family != "dense")


def test_unique_tokens_bind_and_more_of_them_help():
    free, bound = dense(Flops(1e24)), dense(Flops(1e24), unique_tokens=1e11)
    capped = dense(Flops(1e24), unique_tokens=1e11, most_repeats=4.0)
    assert free.recommended.loss.value < bound.recommended.loss.value < capped.recommended.loss.value
    assert capped.recommended.tokens <= 4e11 * (1 + 1e-9)
    assert "unique tokens" in [one.limit for one in bound.binding]
    without = next(one.loss_without for one in bound.binding if one.limit == "unique tokens")
    assert without == pytest.approx(free.training_optimal.loss, rel=1e-3)
    assert "twice the unique tokens" in [one.change for one in bound.levers]
    assert bound.recommended.epochs == pytest.approx(bound.recommended.tokens / 1e11)
    assert "unique tokens" not in [one.limit for one in dense(Flops(1e24), unique_tokens=1e14).binding]


def test_serving_memory_binds_and_fewer_bits_make_room():
    free, bound = dense(Flops(1e24)), dense(Flops(1e24), serve_memory_gib=40.0)
    assert bound.recommended.serve_memory_bytes.value <= 40 * GIB * 1.02
    assert bound.recommended.n_params < free.recommended.n_params
    assert "serving memory" in [one.limit for one in bound.binding]
    quantized = dense(Flops(1e24), serve_memory_gib=40.0, served=Served(weights="int4"))
    assert bound.recommended.n_params < quantized.recommended.n_params
    sizes = {one.weights: one.memory_bytes for one in bound.serving}
    assert sizes["int4"] < sizes["int8"] < sizes["bf16"]


def test_levers_are_worth_what_they_do():
    told = dense(Flops(1e22))
    twice = next(lever for lever in told.levers if lever.change == "twice the budget")
    assert twice.worth == pytest.approx(2, rel=0.01)
    assert twice.loss == pytest.approx(dense(Flops(2e22)).training_optimal.loss, rel=1e-4)
    assert len(told.levers) <= 3
    worths = [lever.worth for lever in told.levers]
    assert worths == sorted(worths, reverse=True)


@pytest.mark.parametrize("goal", [DeviceHours(2e5), Dollars(5e5), Deadline(20)])
def test_budgets_on_devices_are_spent(goal):
    told = dense(goal, hardware="h100-sxm", devices=256, price="2.5@2026-01")
    best = told.recommended
    spent = {
        DeviceHours: best.train_device_hours.value,
        Dollars: best.train_cost.value,
        Deadline: best.train_hours.value / 24,
    }
    assert spent[type(goal)] == pytest.approx(goal.amount, rel=1e-6)
    assert best.train_hours.low < best.train_hours.value < best.train_hours.high
    assert told.lifetime_unit == "device hours"
    assert best.layout is not None


def test_latency_and_serving_money():
    asked = {"hardware": "h100-sxm", "devices": 256}
    free = dense(Flops(1e24), served=Served(tokens=1e12), **asked)
    fast = dense(Flops(1e24), served=Served(tokens=1e12, latency_ms=12.0), **asked)
    assert fast.recommended.n_params < free.recommended.n_params
    assert free.recommended.serve_cost_per_mtok.value > 0
    assert free.over_training.lifetime_saved > 0


def test_a_family_with_its_own_law_has_no_factor():
    laws = (LawChoice(name="besiroglu-2024"), LawChoice(name="muennighoff-2023", family="experts"))
    told = plan(Question(goal=Flops(1e22), laws=laws, families=("dense", "experts")))
    notes = {one.family: (one.law, one.note) for one in told.candidates}
    assert notes["experts"] == ("muennighoff-2023", "")


def test_averages_widen():
    one = dense(Flops(1e23)).recommended.loss
    two = dense(
        Flops(1e23), laws=(LawChoice(name="besiroglu-2024"), LawChoice(name="krajewski-2024-dense"))
    ).recommended
    assert two.loss.high - two.loss.low > one.high - one.low


@SOME
@given(st.floats(1e22, 1e25))
def test_intervals_widen_beyond_the_fit(flops):
    told = [dense(Flops(c)).recommended.loss for c in (flops, 30 * flops)]
    widths = [math.log(loss.high / loss.low) for loss in told]
    assert widths[1] > widths[0]


def test_beyond_the_fit_is_said():
    assert any("beyond the largest fitted" in note for note in dense(Flops(1e25)).notes)
    assert not any("beyond the largest fitted" in note for note in dense(Flops(1e20)).notes)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"goal": Flops(1e5)}, "buys nothing"),
        ({"goal": Flops(1e22), "serve_memory_gib": 1e-4}, "serving memory"),
        ({"goal": TargetLoss(1.0)}, "floor"),
        ({"goal": Flops(1e26), "hardware": "h100-sxm", "devices": 8}, "of them would fit"),
    ],
)
def test_the_answer_is_no(asked, words):
    with pytest.raises(NoPlan, match=words) as no:
        plan(Question(families=("dense",), **asked))
    assert "\n" not in str(no.value)


def test_vary_and_tornado():
    question = Question(goal=Flops(1e22), families=("dense",), served=Served(tokens=1e12))
    rows = varied(question, "flops=1e21,1e22,1e23")
    losses = [row.loss for row in rows]
    assert losses == sorted(losses, reverse=True)
    assert [row.command.split()[3] for row in rows] == ["1e+21", "1e+22", "1e+23"]
    assert varied(question, "weights=bf16,int4")[1].value == "int4"
    bars = tornado(question)
    assert bars[0].key == "flops"
    assert bars[0].loss[0] > plan(question).recommended.loss.value > bars[0].loss[1]
    with pytest.raises(ValueError, match="did you mean 'served-tokens'"):
        varied(question, "served-token=1")


def test_posterior_of_a_table(tmp_path):
    """A table of runs speaks with its calibrated posterior, and says how far a plan lies beyond it."""
    rng = np.random.default_rng(0)
    flops = np.repeat(np.geomspace(1e18, 1e21, 6), 4)
    n = np.sqrt(flops / 6 / np.tile([5.0, 15.0, 40.0, 100.0], 6))
    d = flops / 6 / n
    loss = (1.8 + 478 / n**0.347 + 2143 / d**0.367) * np.exp(0.003 * rng.normal(size=24))
    table = tmp_path / "runs.csv"
    rows = zip(n, d, loss, strict=True)
    table.write_text("n,d,loss\n" + "\n".join(",".join(map(str, row)) for row in rows))
    law = LawChoice(name=str(table), n="n", d="d", loss="loss")
    near, far = (dense(Flops(c), laws=(law,)) for c in (1e22, 1e25))
    truth = dense(Flops(1e22), laws=(LawChoice(name="besiroglu-2024"),))
    assert near.training_optimal.n_params == pytest.approx(truth.training_optimal.n_params, rel=0.5)
    assert near.recommended.loss.low < truth.recommended.loss.value < near.recommended.loss.high
    width = [math.log(told.recommended.loss.high / told.recommended.loss.low) for told in (near, far)]
    assert width[1] > 1.5 * width[0]
    assert any("beyond the largest fitted" in note for note in far.notes)


def test_command_is_shell_safe():
    laws = (LawChoice(name="a b.csv", weight=2.5),)
    question = Question(goal=Flops(1.5e22), laws=laws, families=("dense",))
    from isoflop.decide.command import command_of

    words = shlex.split(command_of(question))
    assert words[:4] == ["isoflop", "plan", "--flops", "1.5e+22"]
    assert "a b.csv*2.5" in words


def test_fewer_bits_cost_loss_and_save_money():
    told = dense(Flops(1e24), served=Served(tokens=1e13), hardware="h100-sxm", devices=256)
    by_type = {one.weights: one for one in told.serving}
    assert by_type["bf16"].loss == told.recommended.loss
    assert by_type["int4"].loss.value > by_type["int8"].loss.value > by_type["bf16"].loss.value
    assert by_type["int8"].cost_per_mtok.value < by_type["bf16"].cost_per_mtok.value
    assert any(lever.change == "int8 weights in serving" for lever in told.levers)


def test_unique_tokens_bind_with_serving_too():
    told = dense(Flops(1e24), unique_tokens=5e11, served=Served(tokens=5e12))
    bound = next(one for one in told.binding if one.limit == "unique tokens")
    assert bound.loss_without < told.recommended.loss.value


@pytest.mark.parametrize("goal", [Flops(1e22), QualityOf(7e9), Deadline(3.0)])
def test_a_question_is_data(goal):
    """A page keeps its question as JSON, in a URL or a form."""
    question = Question(goal=goal, hardware="b200", devices=8, laws=(LawChoice(name="hoffmann-2022"),))
    assert msgspec.json.decode(msgspec.json.encode(question), type=Question) == question


def test_the_fast_mean_is_the_mean():
    """`Posterior.mean` leaves out what only the standard deviation needs."""
    rng = np.random.default_rng(1)
    n, d = 10 ** rng.uniform(7, 9, 20), 10 ** rng.uniform(9, 11, 20)
    told = posterior(n, d, (1.8 + 478 / n**0.347 + 2143 / d**0.367) * np.exp(0.003 * rng.normal(size=20)))
    new_n, new_d = np.geomspace(1.1e7, 1e12, 9), np.geomspace(1e12, 1e9, 9)
    whole = told.joint(new_n, new_d, np.ones(9, dtype=bool))[0]
    np.testing.assert_allclose(told.mean(new_n, new_d), whole, rtol=1e-12)
    assert np.abs(told.mean(new_n, new_d, 0.02) - whole).max() < 2e-3


@pytest.mark.parametrize("repeats", [None, 4.0])
def test_few_unique_tokens_are_no_use_to_huge_models(repeats):
    told = dense(Flops(1e24), unique_tokens=1e9, most_repeats=repeats)
    assert told.recommended.n_params < 100e9
    assert "would do as well" in told.binding[0].words
    assert all(lever.loss_change < 0 for lever in told.levers)


@SOME
@given(st.floats(1e18, 1e25), st.floats(1e8, 1e13), st.floats(1.1, 30))
def test_more_unique_tokens_are_never_worse(flops, unique, times):
    few, many = (dense(Flops(flops), unique_tokens=u).training_optimal.loss for u in (unique, unique * times))
    assert many <= few * (1 + 1e-6)


def test_data_that_suffice_change_nothing():
    assert dense(Flops(1e22), unique_tokens=1e13).training_optimal == dense(Flops(1e22)).training_optimal


def test_latency_that_only_small_models_meet():
    told = dense(Flops(1e24), hardware="H100-SXM", devices=64, served=Served(latency_ms=1.0))
    assert told.recommended.n_params < 2e9


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"goal": Flops(1e14)}, "a blind guess among 65536 tokens"),
        (
            {"goal": Flops(1e22), "hardware": "H100-SXM", "devices": 8, "served": Served(latency_ms=1e-6)},
            "no size of family dense answers within 1e-06 ms",
        ),
    ],
)
def test_nothing_that_would_do(asked, words):
    with pytest.raises(NoPlan, match=words):
        dense(**asked)
