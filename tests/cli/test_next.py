"""`isoflop next`: what it proposes, prints, and refuses."""

import csv
import json

import numpy as np
import pytest

from isoflop.cli.main import main

NAMED = ("--n", "params", "--d", "seen", "--loss", "final")
ASKED = ("--budget", "1e20", "--target", "1e22")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Eighteen runs, three on each of six budgets."""
    rng = np.random.default_rng(0)
    flops = np.repeat(np.geomspace(1e17, 1e20, 6), 3)
    n = np.sqrt(flops / 6 / np.tile([8.0, 20.0, 60.0], 6))
    loss = (1.7 + 400 / n**0.34 + 1200 / (flops / 6 / n) ** 0.37) * np.exp(0.003 * rng.normal(size=18))
    return write(tmp_path_factory.mktemp("runs") / "runs.csv", params=n, seen=flops / 6 / n, final=loss)


def write(path, **columns):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def document(capsys, *argv, code=0):
    assert main(["next", *map(str, argv), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *argv, code=2):
    """The one line a mistake is answered with."""
    assert main(["next", *map(str, argv)]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_json_document(capsys, table):
    told = document(capsys, table, *NAMED, *ASKED)
    assert told["goal"] == "loss"
    assert 6 * told["n"] * told["d"] == pytest.approx(1e22)
    assert told["spent"] == pytest.approx(sum(run["flops"] for run in told["runs"]))
    assert told["spent"] <= told["budget"] == 1e20
    assert all(run["flops"] == pytest.approx(6 * run["n"] * run["d"]) for run in told["runs"])
    assert told["least"] <= told["after"] == told["runs"][-1]["half_width"] < told["before"]
    assert "column 'params'" in told["convention"]
    assert document(capsys, table, *NAMED, *ASKED) == told


def test_best_size(capsys, table):
    told = document(capsys, table, *NAMED, *ASKED, "--goal", "optimal-n")
    assert told["goal"] == "optimal-n"
    assert told["middle"] == told["n"]
    assert told["after"] < told["before"]


def test_tables(capsys, table):
    assert main(["next", str(table), *NAMED, *ASKED, "--runs-at-most", "2"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "the most telling per FLOP first" in out
    assert "90% interval ±" in out
    assert "budget 1e+20" in out


@pytest.mark.parametrize("flag", [[], ["--prior-only"]])
def test_a_ladder_from_nothing(capsys, flag):
    told = document(capsys, *flag, *ASKED, "--runs-at-most", 4)
    assert 1 < len(told["runs"]) <= 4
    assert told["middle"] is None
    assert told["notes"] == ["no runs: all is from public tables"]
    assert main(["next", *flag, *ASKED]) == 0
    assert "×/÷" in capsys.readouterr().out


def test_candidates_of_a_table(capsys, table, tmp_path):
    possible = write(tmp_path / "possible.csv", params=[1e8, 1e9, 3e9], seen=[2e9, 2e10, 6e10], price=[5, 50, 500])
    named = ("--candidates", possible, "--target", "1e22")
    told = document(capsys, table, *NAMED, *named, "--cost", "price", "--budget", 60)
    assert {run["n"] for run in told["runs"]} <= {1e8, 1e9}
    assert told["candidates_flops"] == "column 'price'"
    assert told["cheapest"] == 5
    alone = document(capsys, "--prior-only", "--n", "params", "--d", "seen", *named, "--budget", "1e22")
    assert alone["runs"]
    err = refusal(capsys, table, *NAMED, *named, "--cost", "price", "--budget", 3, code=1)
    assert "smallest that would help costs 5" in err


def test_a_budget_that_buys_nothing(capsys, table):
    err = refusal(capsys, table, *NAMED, "--budget", "1e9", "--target", "1e22", code=1)
    assert "buys none of the runs; the smallest that would help costs" in err
    told = document(capsys, table, *NAMED, "--budget", "1e9", "--target", "1e22", code=1)
    assert told["runs"] == []
    assert told["cheapest"] > 1e9
    enough = document(capsys, table, *NAMED, "--budget", 1.01 * told["cheapest"], "--target", "1e22")
    assert enough["spent"] <= 1.01 * told["cheapest"]


def test_a_budget_that_could_train_the_target(capsys, table):
    told = document(capsys, table, *NAMED, "--budget", "1e24", "--target", "1e21")
    assert max(run["flops"] for run in told["runs"]) < 1e21
    assert told["spent"] < 1e21 or "more than the target itself" in told["notes"][-1]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--budget", "1e20", "--target", "1e19"), "is not beyond the runs"),
        (("--budget", "1e20", "--target", "big"), "must be FLOPs such as 1e22"),
        (("--budget", "1e20", "--target", "1,2,3"), "must be FLOPs such as 1e22"),
        (("--budget", "1e20", "--target", "1e200,1e200"), "must be FLOPs such as 1e22"),
        (("--budget", "1e20", "--target", "nan"), "must be FLOPs such as 1e22"),
        (("--budget", "0", "--target", "1e22"), "--budget 0: must be a positive"),
        (("--budget", "nan", "--target", "1e22"), "--budget nan: must be a positive"),
        ((*ASKED, "--prior-only"), "leave one of them out"),
        ((*ASKED, "--level", "1"), "strictly between 0 and 1"),
        ((*ASKED, "--n-range", "5"), "must be LOW:HIGH"),
        ((*ASKED, "--runs-at-most", "0"), "must be 1 or more"),
        ((*ASKED, "--cost", "price"), "names a column of --candidates"),
        ((*ASKED, "--candidates", "no.csv"), "no such file"),
    ],
)
def test_wrong_questions(capsys, table, more, said):
    assert said in refusal(capsys, table, *NAMED, *more)


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        ({"params": [1e8, 1e8, 2e8, 400.0], "final": [3.0, 2.9, 2.8, 2.7]}, "rows of another unit?"),
        ({"params": [1e8, 1e8, 2e8, 4e8], "final": [3.0, 3.0, 2.8, 2.7]}, "1 of 4 rows are exact duplicates"),
        ({"params": [1e8, 3e8, 2e8, 4e8], "final": [3.0, 2.9, 2.8, 2.7], "flops": [1e19] * 4}, "N, D and FLOPs"),
    ],
)
def test_a_mistaken_table_needs_force(capsys, tmp_path, spoiled, said):
    path = write(tmp_path / "runs.csv", seen=[2e9, 2e9, 4e9, 8e9], **spoiled)
    question = (path, *NAMED, "--flops", "flops") if "flops" in spoiled else (path, *NAMED)
    err = refusal(capsys, *question, "--budget", "1e20", "--target", "1e21,1e2")
    assert said in err
    assert "--force goes on with it" in err
    told = document(capsys, *question, "--budget", "1e20", "--target", "1e10,1e11", "--force")
    assert any(said in note for note in told["notes"])
