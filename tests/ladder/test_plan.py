"""What a plan promises, over random studies. Nothing here imports torch."""

import math
import subprocess
import sys
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from isoflop.architecture.files import from_dict
from isoflop.cost import flops, parameters
from isoflop.ladder.machine import Machine
from isoflop.ladder.plan import Plan, make_plan
from isoflop.ladder.sizes import nearest_width, widths_of
from isoflop.ladder.study import Study

VOCAB = 256
MACHINE = Machine(cores=2, compiler=True)
FIXED = {"type": "power", "lr": 0.01, "batch_tokens": 512}
RULES = [
    FIXED,
    {"type": "porian-2024", "batch_factor": 0.5},
    {"type": "step-law"},
    {"type": "complete-p", "lr": 0.01, "batch_tokens": 1024, "base_d_model": 32, "base_n_layers": 2},
]
FAMILIES = [{"type": "dense", "d_head": 16}, {"type": "experts", "d_head": 16, "n_experts": 4}]


def study(**tables: Any) -> Study:
    base = {
        "families": {"dense": FAMILIES[0]},
        "budgets": {"type": "isoflop", "flops": [1e10, 4e10], "d_model": [16, 32, 48], "tokens_per_param": [0.1, 1e5]},
        "training": {"context": 64, "rule": FIXED, "eval_tokens": 4096},
        "execution": {"compile": "never"},
        "targets": [{"d_model": 64, "flops": 2e11}],
    }
    return from_dict(base | tables, Study, "test")


def plan(**tables: Any) -> Plan:
    return make_plan(study(**tables), VOCAB, "digest", MACHINE)


def possible(**tables: Any) -> Plan:
    """The plan, where whole steps can spend what is asked; other studies are refused, and not what a test is about."""
    try:
        return plan(**tables)
    except ValueError as refusal:
        assert "cannot spend" in str(refusal) or "two runs of" in str(refusal) or "no size" in str(refusal)
        assume(False)
        raise


def training(**keys: Any) -> dict[str, Any]:
    return {"context": 64, "rule": FIXED, "eval_tokens": 4096} | keys


studies = st.fixed_dictionaries(
    {
        "families": st.sampled_from(FAMILIES).map(lambda family: {"one": family}),
        "budgets": st.fixed_dictionaries(
            {
                "type": st.just("isoflop"),
                "flops": st.lists(st.floats(3e9, 1e12), min_size=1, max_size=3, unique=True),
                "d_model": st.lists(st.sampled_from([16, 32, 48, 64, 128]), min_size=1, max_size=3, unique=True),
                "tokens_per_param": st.just([1e-3, 1e6]),
            }
        ),
        "training": st.builds(
            lambda context, rule, warmup, decay, seeds: training(
                context=context, rule=rule, schedule={"warmup": warmup, "decay": decay}, seeds=seeds
            ),
            st.sampled_from([32, 64, 128]),
            st.sampled_from(RULES),
            st.floats(0, 0.5),
            st.floats(0.05, 0.5),
            st.lists(st.integers(0, 9), min_size=1, max_size=2, unique=True),
        ),
    }
)


@settings(max_examples=60)
@given(studies)
def test_every_run_spends_what_it_says(tables):
    made = possible(**tables)
    asked = study(**tables)
    assert len(made.runs()) > 0
    for job in made.jobs:
        context, decoder = asked.training.context, job.spec.decoder
        per_token = flops(decoder, context, "exact").train_per_token
        counts = parameters(decoder)
        for run in job.runs:
            assert run.tokens == run.steps * job.spec.recipe.batch * context
            assert run.flops_exact == per_token * run.tokens
            assert run.flops_6nd == 6 * counts.matmul * run.tokens
            assert (run.n_params, run.n_params_non_embedding, run.n_params_matmul) == (
                counts.total,
                counts.non_embedding,
                counts.matmul,
            )
            if run.budget and run.steps > 2:
                step = per_token * job.batch_tokens
                assert abs(run.flops_exact - run.budget) <= step / 2 * (1 + 1e-9)


@settings(max_examples=60)
@given(studies)
def test_warmup_and_decay_fit_the_shortest_run(tables):
    made, schedule = possible(**tables), study(**tables).training.schedule
    for job in made.jobs:
        shortest = min(run.steps for run in job.runs)
        assert job.warmup_steps == max(1, round(schedule.warmup * shortest))
        for run in job.runs:
            start = schedule.decay_start(run.steps)
            assert 0 <= start < run.steps
            assert run.steps - start == max(1, round(schedule.decay * run.steps))


@settings(max_examples=60)
@given(studies)
def test_runs_and_trunks_have_names_of_their_own(tables):
    made = possible(**tables)
    trunks = [job.trunk for job in made.jobs]
    runs = [run.run for run in made.runs()]
    assert len(set(trunks)) == len(trunks)
    assert len(set(runs)) == len(runs)
    roles = [job.runs[0].role for job in made.jobs]
    assert roles == sorted(roles)  # fit before target
    assert all({run.role for run in job.runs} == {job.runs[0].role} for job in made.jobs)
    for job in made.jobs:
        steps = [run.steps for run in job.runs]
        assert steps == sorted(set(steps))


@settings(max_examples=30)
@given(studies)
def test_equal_studies_make_equal_plans(tables):
    assert msgspec.json.encode(plan(**tables)) == msgspec.json.encode(plan(**tables))


def test_equal_recipes_share_a_trunk():
    made = plan()
    assert [(job.runs[0].role, len(job.runs)) for job in made.jobs] == [("fit", 2)] * 3 + [("target", 1)]


def test_step_law_shares_none():
    made = plan(training=training(rule={"type": "step-law"}))
    assert [len(job.runs) for job in made.jobs] == [1] * 7


def test_a_target_shares_no_trunk_with_the_runs_that_forecast_it():
    made = plan(targets=[{"d_model": 48, "flops": 8e10}], execution={"compile": "never", "target_threads": 1})
    fitted, target = made.jobs[-2], made.jobs[-1]
    assert fitted.spec == target.spec
    assert fitted.trunk != target.trunk


def test_families_that_meet_at_small_sizes_stay_apart():
    """At d_model 16 both have two layers: the very same model."""
    families = {"deep": {"type": "dense", "aspect": 16}, "flat": {"type": "dense", "aspect": 64}}
    made = plan(families=families, targets=[])
    first = [job for job in made.jobs if job.runs[0].d_model == 16]
    assert first[0].spec == first[1].spec
    assert [job.runs[0].family for job in first] == ["deep", "flat"]
    assert first[0].trunk != first[1].trunk


def names(**tables: Any) -> set[str]:
    return {run.run for run in plan(**tables).runs()}


BUDGETS = {"type": "isoflop", "d_model": [16, 32, 48], "tokens_per_param": [0.1, 1e5]}


@pytest.mark.parametrize(
    "tables",
    [
        {"execution": {"compile": "never", "workers": 7}},
        {"execution": {"compile": "never", "checkpoint_s": 1.0}},
        {"forecast": {"level": 0.5, "bootstrap": 10}},
        {"budgets": BUDGETS | {"flops": [4e10, 1e10, 9e10]}},
        {"budgets": BUDGETS | {"flops": [1e10, 4e10], "d_model": [64, 16, 32, 48]}},
        {"targets": [{"d_model": 64, "flops": 2e11}, {"d_model": 32, "tokens": 1e6}]},
        {"training": training(seeds=[0, 1])},
        {
            "families": {"dense": FAMILIES[0], "sparse": FAMILIES[1]},
            "targets": [{"d_model": 64, "flops": 2e11, "family": "dense"}],
        },
    ],
    ids=["workers", "checkpoints", "forecast", "a longer budget", "a width", "a target", "a seed", "a family"],
)  # fmt: skip
def test_what_does_not_determine_a_run_leaves_its_name(tables):
    assert names() <= names(**tables)


@pytest.mark.parametrize(
    "tables",
    [
        {"training": training(rule=FIXED | {"lr": 0.02})},
        {"training": training(rule=FIXED | {"batch_tokens": 1024})},
        {"training": training(rule=FIXED | {"beta2": 0.99})},
        {"training": training(context=32)},
        {"training": training(optimizer={"type": "adamw", "weight_decay": 0.0})},
        {"training": training(optimizer={"type": "muon"})},
        {"training": training(schedule={"decay": 0.3})},
        {"training": training(schedule={"final": 0.1})},
        {"training": training(schedule={"warmup": 0.1})},
        {"training": training(grad_clip=2.0)},
        {"training": training(dtype="bf16")},
        {"training": training(seeds=[1])},
        {"training": training(eval_tokens=2048)},
        {"execution": {"compile": "always"}},
        {"execution": {"compile": "never", "device": "cuda"}},
        {"execution": {"compile": "never", "threads": 2, "target_threads": 3}},
        {"families": {"dense": FAMILIES[0] | {"theta": 1e5}}},
    ],
    ids=str,
)
def test_what_determines_a_run_changes_its_name(tables):
    assert not names() & names(**tables)


def test_data_and_vocabulary_belong_to_a_name():
    asked = study()
    first = {run.run for run in make_plan(asked, VOCAB, "digest", MACHINE).runs()}
    assert not first & {run.run for run in make_plan(asked, VOCAB, "another", MACHINE).runs()}
    assert not first & {run.run for run in make_plan(asked, 300, "digest", MACHINE).runs()}


@settings(max_examples=40)
@given(st.floats(3e3, 1e6), st.floats(3, 1000), st.integers(2, 8), st.sampled_from([8, 16, 64]))
def test_a_range_of_sizes_is_spread_evenly(low, ratio, n_sizes, d_head):
    high = low * ratio
    family = study(families={"one": {"type": "dense", "d_head": d_head}}).families["one"]
    budgets = {"type": "isoflop", "flops": [1e10], "n_params": [low, high], "n_sizes": n_sizes}
    widths = widths_of(study(budgets=budgets).budgets, family, VOCAB, 64)
    assert widths == sorted(set(widths))
    assert len(widths) <= n_sizes
    sizes = np.array([parameters(family.build(width, VOCAB, 64)).matmul for width in range(d_head, 3000, d_head)])
    assume(sizes[0] < low and high < sizes[-1])
    for wanted in np.geomspace(low, high, n_sizes):
        best = np.abs(np.log(sizes / wanted)).min()
        found = min(abs(math.log(parameters(family.build(w, VOCAB, 64)).matmul / wanted)) for w in widths)
        assert found <= best + 1e-12


def test_the_nearest_width_against_all_of_them():
    family = study().families["dense"]
    sizes = {width: parameters(family.build(width, VOCAB, 64)).matmul for width in range(16, 2048, 16)}
    for n in np.geomspace(1e3, 1e8, 60):
        assert nearest_width(family, n, VOCAB, 64) == min(sizes, key=lambda width: abs(math.log(sizes[width] / n)))


def test_tokens_per_parameter_bound_a_budget():
    every = plan(budgets=BUDGETS | {"flops": [1e10]}, targets=[]).runs()
    some = plan(budgets=BUDGETS | {"flops": [1e10], "tokens_per_param": [2, 20]}, targets=[]).runs()
    assert [run.run for run in some] == [run.run for run in every if 2 <= run.tokens / run.n_params_matmul <= 20]
    assert 0 < len(some) < len(every)


def test_estimates_follow_the_work():
    once = plan(targets=[{"d_model": 64, "flops": 2e11}]).jobs[-1]
    twice = plan(targets=[{"d_model": 64, "flops": 4e11}]).jobs[-1]
    assert twice.estimated_s == pytest.approx(2 * once.estimated_s, rel=0.05)
    assert once.runs[0].estimated_s > 0


def test_planning_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; import isoflop.cli.study, isoflop.ladder.run, isoflop.ladder.progress"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_compiler_means_eager():
    asked = study(execution={"compile": "auto"}, budgets={"type": "grid", "d_model": [64], "tokens": [1e9]})
    assert any(job.spec.compile for job in make_plan(asked, VOCAB, "digest", MACHINE).jobs)
    bare = Machine(cores=2, compiler=False)
    assert not any(job.spec.compile for job in make_plan(asked, VOCAB, "digest", bare).jobs)
    with pytest.raises(ValueError, match=r"compile = 'always' needs a C\+\+ compiler"):
        make_plan(study(execution={"compile": "always"}), VOCAB, "digest", bare)


def test_a_batch_too_large_for_a_budget_is_refused():
    rule = FIXED | {"batch_tokens": 1_000_000}
    with pytest.raises(ValueError, match="a batch of 1,000,000 tokens cannot spend"):
        plan(training=training(rule=rule))


def test_two_runs_of_equal_steps_are_refused():
    with pytest.raises(ValueError, match="two runs of d_model 16 come to 20 steps each"):
        plan(budgets={"type": "grid", "d_model": [16], "tokens": [10_240, 10_241]})


def test_threads_of_a_target_follow_its_width():
    wide = Machine(cores=64, compiler=True)
    for width, threads in ((32, 1), (96, 2), (960, 20)):
        asked = study(targets=[{"d_model": width, "flops": 1e13}])
        assert [job.threads for job in make_plan(asked, VOCAB, "digest", wide).jobs][-1] == threads


def test_an_absurd_width_is_refused_at_once():
    with pytest.raises(ValueError, match="layers"):
        plan(targets=[{"d_model": 16 * 10**12, "flops": 1e12}])


@given(width=st.sampled_from([16, 32, 48]), budget=st.floats(3e9, 1e11), after=st.integers(1, 4))
def test_an_early_exit_is_paid_for(width: int, budget: float, after: int) -> None:
    """A budget buys fewer tokens, by the head's second reading; another exit is another run, none is the run it was."""
    tables: dict[str, Any] = {
        "budgets": {"type": "isoflop", "flops": [budget], "d_model": [width], "tokens_per_param": [1e-3, 1e6]},
        "families": {"dense": {"type": "dense", "d_head": 16, "min_layers": 5}},
        "targets": [],
    }
    early = possible(**tables, training=training(early_exit={"after": after}))
    plain, lighter = (possible(**tables, training=training(**keys)) for keys in (
        {}, {"early_exit": {"after": after, "weight": 0.1}}
    ))  # fmt: skip
    (run,), spec = early.runs(), early.jobs[0].spec
    a_token = flops(spec.decoder, 64, "exact").train_per_token + 6 * VOCAB * width
    assert run.flops_exact == pytest.approx(a_token * run.tokens, rel=1e-12)
    assert abs(run.tokens - budget / a_token) <= early.jobs[0].batch_tokens
    assert run.flops_6nd == 6 * run.n_params_matmul * run.tokens
    assert len({plan.jobs[0].trunk for plan in (early, plain, lighter)}) == 3
    assert "early_exit" not in msgspec.json.encode(plain.jobs).decode()


def test_an_exit_beyond_the_layers_is_refused() -> None:
    told = r"^\[training\] dense at d_model 16: early_exit after 2 of 2 layers: must be from 1 to 1$"
    with pytest.raises(ValueError, match=told):
        plan(training=training(early_exit={"after": 2}))
    with pytest.raises(ValueError, match=r"early_exit.* weight = -1\.0 must be above 0"):
        plan(training=training(early_exit={"after": 1, "weight": -1.0}))
