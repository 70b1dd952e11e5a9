"""`isoflop backtest` on anybody's table: what it prints, and how it refuses."""

import csv
import json

import numpy as np
import pytest

from isoflop.cli.main import main

NAMED = ("--n", "params", "--d", "seen", "--loss", "final")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Eighteen runs, three on each of six budgets."""
    rng = np.random.default_rng(0)
    flops = np.repeat(np.geomspace(1e18, 1e20, 6), 3)
    n = np.sqrt(flops / 6 / np.tile([8.0, 20.0, 60.0], 6))
    loss = (1.7 + 400 / n**0.34 + 1200 / (flops / 6 / n) ** 0.37) * np.exp(0.003 * rng.normal(size=18))
    return write(tmp_path_factory.mktemp("runs") / "runs.csv", n, flops / 6 / n, loss)


def write(path, n, d, loss):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["params", "seen", "final"])
        writer.writerows(zip(n, d, loss, strict=True))
    return path


def refusal(capsys, *argv):
    """The one line a mistake is answered with."""
    assert main(["backtest", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_json_document(capsys, table):
    assert main(["backtest", str(table), *NAMED, "--json"]) == 0
    first = capsys.readouterr().out
    told = json.loads(first)
    assert told["level"] == 0.9
    assert told["rows"] == 18
    assert [fold["fitted"] for fold in told["folds"]] == [15, 12, 9, 6]
    assert [fold["errors"]["forecasts"] for fold in told["folds"]] == [3, 6, 9, 12]
    assert [(band["above"], band["up_to"]) for band in told["bands"]] == [(1, 3), (3, 10), (10, 30), (30, None)]
    assert sum(band["errors"]["forecasts"] for band in told["bands"]) == told["pooled"]["forecasts"] == 30
    assert 0.6 <= told["pooled"]["coverage"] <= 1
    assert abs(told["pooled"]["bias"]) <= told["pooled"]["absolute_error"] < 0.05
    assert "column 'params'" in told["convention"]
    assert main(["backtest", str(table), *NAMED, "--json"]) == 0
    assert capsys.readouterr().out == first


def test_tables(capsys, table):
    assert main(["backtest", str(table), *NAMED, "--level", "0.5"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "by compute over the largest fitted" in out
    assert "by hold-out" in out
    assert "50% intervals held" in out
    assert "30 forecasts of 4 hold-outs" in out


def test_short_ladder_says_that_the_prior_speaks(capsys, tmp_path):
    n = np.array([1e7, 1.5e7, 2e7, 3e7, 4e7, 5e7, 2e8])
    path = write(tmp_path / "few.csv", n, 20 * n, 1.7 + 400 / n**0.34 + 1200 / (20 * n) ** 0.37)
    assert main(["backtest", str(path), *NAMED]) == 0
    assert "note: few different runs (7)" in " ".join(capsys.readouterr().out.split())


def test_refusals(capsys, table, tmp_path):
    assert "--loss COL is needed" in refusal(capsys, table, "--n", "params", "--d", "seen")
    assert "did you mean 'params'?" in refusal(capsys, table, "--n", "param", "--d", "seen", "--loss", "final")
    assert "--level 90: must lie strictly between 0 and 1" in refusal(capsys, table, *NAMED, "--level", "90")
    one = write(tmp_path / "one.csv", [1e8] * 9, [2e9] * 9, [3.0] * 9)
    assert f"{one}: nothing to hold out: 9 runs over 0 decades of compute" in refusal(capsys, one, *NAMED)
    assert "no such file" in refusal(capsys, tmp_path / "none.csv", *NAMED)


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("collinear", "log N and log D move together"),
        ("duplicates", "3 of 21 rows are exact duplicates"),
        ("flops", "have another unit"),
    ],
)
def test_doubtful_tables_are_called_so(capsys, table, tmp_path, how, word):
    with table.open() as file:
        rows = [[float(row[name]) for name in ("params", "seen", "final")] for row in csv.DictReader(file)]
    n, d, loss = np.array(rows + rows[:3] if how == "duplicates" else rows).T
    if how == "collinear":
        d = 20 * n
    path, more = write(tmp_path / "runs.csv", n, d, loss), ()
    if how == "flops":
        counts = ["C", *(str(6e9 * product) for product in n * d)]
        lines = zip(path.read_text().split(), counts, strict=True)
        path.write_text("\n".join(f"{line},{count}" for line, count in lines))
        more = ("--flops", "C")
    assert main(["backtest", str(path), *NAMED, *more, "--json"]) == 0
    assert any(word in note for note in json.loads(capsys.readouterr().out)["notes"])


@pytest.mark.parametrize("bad", ["nan", "inf", "0", "-2", ""])
def test_losses_that_are_none(capsys, tmp_path, bad):
    path = write(tmp_path / "runs.csv", [1e8, 2e8], [2e9, 4e9], [3.0, bad])
    assert "row 2, column 'final'" in refusal(capsys, path, *NAMED)
