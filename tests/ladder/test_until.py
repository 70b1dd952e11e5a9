"""Runs added to a ladder until the held-out interval is narrow: by simulated results, and by a real study."""

import json
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest

from isoflop.architecture.files import from_dict
from isoflop.ladder.execute import JobFailure
from isoflop.ladder.machine import Machine
from isoflop.ladder.plan import make_plan
from isoflop.ladder.study import Study
from isoflop.ladder.until import (
    add_until,
    additions_line,
    cap_flops,
    possible_jobs,
    require_start,
    until_document,
    until_line,
)
from small_studies import assert_tidy, changed, finished, run, running, table, wait_until, write_study

VOCAB = 256
MACHINE = Machine(cores=2, compiler=False)
PLANNED = {
    "families": {"dense": {"type": "dense", "d_head": 16}},
    "budgets": {"type": "isoflop", "flops": [1e11, 4e11], "d_model": [32, 64, 96], "tokens_per_param": [1, 1000]},
    "training": {"context": 64, "rule": {"type": "power", "lr": 0.01, "batch_tokens": 512}, "eval_tokens": 4096},
    "execution": {"compile": "never"},
    "targets": [{"d_model": 128, "flops": 2e13}],
    "forecast": {"until": 0.02, "most_flops": 2e13},
}


def planned(**tables):
    study = from_dict(changed(PLANNED, **tables), Study, "a test")
    plan = make_plan(study, VOCAB, "digest", MACHINE)
    return study, plan, possible_jobs(study, plan, VOCAB, "digest", MACHINE)


def row(planned_run):
    """What a run reaches under a law we know, with noise that its name decides."""
    n, d = planned_run.n_params_matmul, planned_run.tokens
    noise = np.random.default_rng(int(planned_run.run, 16)).normal()
    loss = (1.2 + 60 / n**0.4 + 60 / d**0.35) * np.exp(0.003 * noise)
    return SimpleNamespace(
        run=planned_run.run, family=planned_run.family, role=planned_run.role, n_params_matmul=n, tokens=d,
        loss_valid=float(loss),
    )  # fmt: skip


def simulate(study, plan, possible, fail_at=None):
    """Additions, failures, everything that was said, and the jobs that were trained."""
    rows, trained, said, calls = [row(one) for one in plan.runs("fit")], [], [], count()

    def train(jobs):
        if next(calls) == fail_at:
            return rows, [JobFailure(jobs[0].trunk, "its process ended")]
        trained.extend(jobs)
        rows.extend(row(one) for job in jobs for one in job.runs)
        return rows, []

    told, failures = add_until(study, plan, possible, list(rows), train, said.append)
    return told, failures, said, trained


def test_runs_are_added_until_it_is_narrow():
    study, plan, possible = planned()
    told, failures, said, trained = simulate(study, plan, possible)
    assert told.reached
    assert told.why == "as narrow as asked"
    assert failures == []
    assert told.before[0].half_width > 0.02 >= told.steps[-1].widths[0].half_width
    assert all(step.widths[0].half_width > 0.02 for step in told.steps[:-1])
    assert len(said) == len(told.steps)
    spent = sum(one.flops_exact for job in trained for one in job.runs)
    assert told.added_flops == pytest.approx(spent)
    assert told.saved_flops == pytest.approx(told.cap_flops - told.planned_flops - spent)
    assert told.saved_s > 0
    assert "saved" in additions_line(told)
    assert simulate(study, plan, possible)[0] == told


@pytest.mark.parametrize("most_flops", [None, 4e12])
def test_never_over_the_cap(most_flops):
    study, plan, possible = planned(forecast={"until": 1e-4, "most_flops": most_flops})
    told, _, _, trained = simulate(study, plan, possible)
    assert not told.reached
    assert told.why == "no run within the cap would narrow it further"
    assert told.planned_flops + told.added_flops <= told.cap_flops == cap_flops(study, plan)
    assert told.cap_flops == (most_flops or 2 * told.planned_flops)
    assert len({job.trunk for job in trained}) == len(trained) > 0


def test_a_plan_that_is_enough_gets_no_more():
    study, plan, possible = planned(forecast={"until": 0.5})
    told, _, _, trained = simulate(study, plan, possible)
    assert told.reached
    assert trained == []
    assert told.saved_flops == told.cap_flops - told.planned_flops


def test_a_failure_ends_it():
    study, plan, possible = planned(forecast={"until": 1e-4})
    told, failures, _, trained = simulate(study, plan, possible, fail_at=1)
    assert len(failures) == 1
    assert told.why == "a run failed"
    assert len(trained) > 0


@pytest.mark.parametrize(
    "budgets", [PLANNED["budgets"], {"type": "grid", "d_model": [32, 64], "tokens": [20480, 81920]}]
)
def test_what_may_be_added(budgets):
    study, plan, possible = planned(budgets=budgets)
    runs = [one for job in possible for one in job.runs]
    taken = {(one.d_model, one.tokens) for one in plan.runs("fit")}
    assert len(runs) > 4
    assert all(len(job.runs) == 1 for job in possible)
    assert len({one.run for one in runs} | {one.run for one in plan.runs()}) == len(runs) + len(plan.runs())
    assert len({job.trunk for job in possible} | {job.trunk for job in plan.jobs}) == len(possible) + len(plan.jobs)
    assert taken.isdisjoint((one.d_model, one.tokens) for one in runs)
    assert {one.d_model for one in runs} <= set(study.budgets.d_model)
    target = plan.runs("target")[0].flops_exact
    assert max(one.flops_exact for one in runs) <= target / 2
    document = until_document(study, plan, possible)
    assert document["possible"] == runs
    assert document["expected"][0].half_width > 0
    assert f"out of {len(runs)} possible ones" in until_line(study, plan, possible)


def test_until_leaves_planned_runs_as_they_are():
    with_it, without = planned()[1], make_plan(
        from_dict(changed(PLANNED) | {"forecast": {}}, Study, "a test"), VOCAB, "digest", MACHINE
    )  # fmt: skip
    assert with_it == without


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"forecast": {"until": 0}}, "until = 0"),
        ({"forecast": {"until": 1.5}}, "must lie between 0 and 1"),
        ({"forecast": {"most_flops": -1.0}}, "most_flops = -1"),
        ({"targets": []}, "give one in"),
    ],
)
def test_wrong_studies(tables, said):
    with pytest.raises(ValueError, match=said):
        planned(**tables)


def test_a_study_killed_while_it_adds_runs(corpus, tmp_path):
    """It goes on with the same choices, and retrains nothing that was finished."""
    study, out = (
        write_study(tmp_path / "s.toml", corpus, forecast={"until": 0.01, "most_flops": 4.0e9}),
        tmp_path / "out",
    )
    with running(study, out) as process:  # six runs are planned
        wait_until(lambda: len(finished(out)) > 6, process)
        process.kill()
        process.wait()
    before = finished(out)
    ended = run(study, out, "--json")
    assert ended.code == 0, ended
    told = json.loads(ended.out)["until"]
    after = finished(out)
    assert {path: after[path] for path in before} == before
    added = [one["run"] for step in told["steps"] for one in step["runs"]]
    assert set(added) <= {line["run"] for line in table(out) if line["role"] == "fit"}
    assert len(finished(out)) == 7 + len(added)
    assert told["planned_flops"] + told["added_flops"] <= told["cap_flops"]
    assert json.loads((out / "until.json").read_bytes()) == told
    jobs = json.loads((out / "plan.json").read_bytes())["plan"]["jobs"]
    assert set(added) <= {one["run"] for job in jobs for one in job["runs"]}
    assert_tidy(out)


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"forecast": {"until": 0.01, "most_flops": 1e11}}, "less than the planned ladder"),
        ({"budgets": {"type": "grid", "d_model": [32], "tokens": [20480, 40960]}}, "has 2 runs, and a law needs 5"),
    ],
)
def test_where_it_cannot_start(tables, said):
    with pytest.raises(ValueError, match=said):
        require_start(*planned(**tables)[:2])
