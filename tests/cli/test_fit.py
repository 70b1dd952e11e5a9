"""`isoflop fit` on anybody's table: what it prints, and how it refuses."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from isoflop.cli.main import main

TRUTH = {"E": 1.7, "A": 400.0, "B": 1200.0, "alpha": 0.34, "beta": 0.37}


@pytest.fixture(scope="module")
def table():
    """Eighteen runs, three on each of six budgets, as columns of somebody's own names."""
    rng = np.random.default_rng(0)
    flops = np.repeat(np.geomspace(1e18, 1e20, 6), 3)
    n = np.sqrt(flops / 6 / np.tile([8.0, 20.0, 60.0], 6))
    d = flops / 6 / n
    loss = 1.7 + 400 / n**0.34 + 1200 / d**0.37
    return {"Model Size": n, "tokens seen": d, "FLOP": flops, "final": loss * np.exp(0.003 * rng.normal(size=18))}


def write(path: Path, columns) -> Path:
    """Columns as CSV, .csv.gz or Parquet, by the name."""
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
        return path
    with (gzip.open if path.suffix == ".gz" else open)(path, "wt", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return path


def fit(capsys, *argv):
    assert main(["fit", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *argv):
    """The one line a mistake is answered with."""
    assert main(["fit", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


NAMED = ("--n", "Model Size", "--d", "tokens seen", "--loss", "final", "--bootstrap", 40)


@pytest.mark.parametrize("name", ["runs.csv", "runs.csv.gz", "runs.parquet"])
def test_every_kind_of_table_gives_the_same_document(tmp_path, capsys, table, name):
    document = fit(capsys, write(tmp_path / name, table), *NAMED)
    again = fit(capsys, write(tmp_path / "again.csv", table), *NAMED)
    assert document == again
    assert document["law"]["alpha"] == pytest.approx(TRUTH["alpha"], abs=0.1)
    assert document["law"]["form"] == "E + A/N^alpha + B/D^beta"
    assert set(document["intervals"]) == set(TRUTH)
    assert document["predictions"] == []
    assert document["certificate"]["n_used"] == 18


def test_flops_stand_in_for_the_size_not_named(tmp_path, capsys, table):
    path = write(tmp_path / "runs.csv", table)
    laws = []
    for size in (("--n", "Model Size"), ("--d", "tokens seen"), ("--n", "Model Size", "--d", "tokens seen")):
        document = fit(capsys, path, *size, "--flops", "FLOP", "--loss", "final", "--bootstrap", 0)
        laws.append(list(document["law"].values())[1:])
    np.testing.assert_allclose(laws[0], laws[2], rtol=1e-6)
    np.testing.assert_allclose(laws[1], laws[2], rtol=1e-6)


def test_targets_are_predicted_in_their_order(tmp_path, capsys, table):
    path = write(tmp_path / "runs.csv", table)
    targets = write(tmp_path / "targets.csv", {"tokens seen": [2e10, 1e12, 3e9], "Model Size": [1e9, 5e10, 2e8]})
    document = fit(capsys, path, *NAMED, "--predict", targets, "--level", 0.9)
    rows = document["predictions"]
    assert [row["n"] for row in rows] == [1e9, 5e10, 2e8]
    for row in rows:
        truth = 1.7 + 400 / row["n"] ** 0.34 + 1200 / row["d"] ** 0.37
        assert row["loss"] == pytest.approx(truth, rel=0.05)
        assert row["low"] <= row["loss"] <= row["high"]
        assert row["level"] == 0.9
    assert "times the largest fitted" in rows[1]["warning"]
    assert rows[2]["warning"] is None


def test_targets_by_flops(tmp_path, capsys, table):
    path = write(tmp_path / "runs.csv", table)
    targets = write(tmp_path / "targets.csv", {"Model Size": [1e9], "FLOP": [1.2e20]})
    both = (path, *NAMED, "--flops", "FLOP", "--predict", targets)
    assert fit(capsys, *both)["predictions"][0]["d"] == pytest.approx(2e10)
    one = (path, "--n", "Model Size", "--flops", "FLOP", "--loss", "final", "--bootstrap", 0, "--predict", targets)
    row = fit(capsys, *one)["predictions"][0]
    assert row["d"] == pytest.approx(2e10)
    assert row["low"] < row["loss"] < row["high"]


def run_table(table, **changed):
    rows = len(table["final"])
    columns = {
        "family": ["dense"] * rows,
        "n_params": (1.5 * table["Model Size"]).round().astype(int),
        "n_params_matmul": table["Model Size"].round().astype(int),
        "tokens": table["tokens seen"].round().astype(int),
        "loss_valid": table["final"].tolist(),
        "role": ["fit"] * rows,
        "status": ["done"] * rows,
    }
    return {name: list(column) for name, column in {**columns, **changed}.items()}


def test_our_run_table_needs_no_columns_named(tmp_path, capsys, table):
    columns = run_table(table)
    columns["status"][0], columns["loss_valid"][0] = "diverged", None
    columns["status"][1], columns["loss_valid"][1] = "failed", None
    columns["role"][17] = "target"
    document = fit(capsys, write(tmp_path / "runs.parquet", columns), "--bootstrap", 20)
    assert document == fit(capsys, write(tmp_path / "runs.csv", columns), "--bootstrap", 20)
    certificate = document["certificate"]
    assert certificate["excluded"] == {"status diverged": 1, "status failed": 1, "role target": 1}
    assert (certificate["n_used"], certificate["n_rows"]) == (15, 18)
    assert "N is column 'n_params_matmul', matmul parameters" in certificate["convention"]


def test_a_run_table_of_several_families_is_fitted_one_by_one(tmp_path, capsys, table):
    columns = run_table(table, family=["dense", "moe"] * 9)
    path = write(tmp_path / "runs.parquet", columns)
    line = refusal(capsys, path)
    assert "2 families, 'dense', 'moe'" in line and "--family NAME" in line
    document = fit(capsys, path, "--family", "moe", "--bootstrap", 20)
    assert document["certificate"]["excluded"] == {"family dense": 9}
    alone = {name: values[1::2] for name, values in columns.items()}
    expected = fit(capsys, write(tmp_path / "moe.csv", alone), "--bootstrap", 20)
    assert document["law"] == expected["law"] and document["intervals"] == expected["intervals"]
    assert "no family 'mo'; the table has 'dense', 'moe'" in refusal(capsys, path, "--family", "mo")
    other = write(tmp_path / "other.csv", table)
    assert "--family is for Isoflop's own run table" in refusal(capsys, other, *NAMED, "--family", "moe")


def test_a_study_and_the_verb_fit_the_same_law(tmp_path, capsys, table):
    """The study takes the runs of a trunk as one cluster, and the matmul parameters as N: so must the verb."""
    from isoflop.laws.fit import fit_document, fit_law

    columns = run_table(table, trunk=[f"t{k // 2}" for k in range(18)])
    document = fit(capsys, write(tmp_path / "runs.csv", columns), "--bootstrap", 20)
    rows = columns["n_params_matmul"], columns["tokens"], columns["loss_valid"]
    expected = fit_document(fit_law(*rows, bootstrap=20, seed=0, clusters=columns["trunk"]))
    assert document["law"] == expected["law"] and document["intervals"] == expected["intervals"]
    assert document["certificate"]["bootstrap"]["clusters"] == 9
    assert "n_params" in [one["choice"] for one in document["certificate"]["sensitivity"]]
    assert document["certificate"]["data_digest"] == expected["certificate"]["data_digest"]


def test_columns_of_one_name_are_refused(tmp_path, capsys):
    path = tmp_path / "runs.csv"
    path.write_text("N,D,loss, loss\n" + "1e7,1e9,3.0,2.9\n" * 8)
    line = refusal(capsys, path, "--n", "N", "--d", "D", "--loss", "loss")
    assert "'loss' more than once" in line
    twice = pa.Table.from_arrays([pa.array([1.0])] * 3, names=["N", "loss", "loss"])
    pq.write_table(twice, tmp_path / "runs.parquet")
    line = refusal(capsys, tmp_path / "runs.parquet", "--n", "N", "--d", "N", "--loss", "loss")
    assert "'loss' more than once" in line


def test_columns_without_a_name_may_repeat(tmp_path, capsys, table):
    path = write(tmp_path / "runs.csv", table)
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line + ",," for line in lines))
    assert fit(capsys, path, *NAMED)["certificate"]["n_used"] == 18


def test_out_holds_what_json_prints(tmp_path, capsys, table):
    path = write(tmp_path / "runs.csv", table)
    printed = fit(capsys, path, *NAMED, "--out", tmp_path / "law.json")
    assert json.loads((tmp_path / "law.json").read_text()) == printed
    assert [item.name for item in tmp_path.iterdir() if item.name.startswith(".")] == []


def test_the_printed_table_shows_law_certificate_and_forecast(tmp_path, capsys, table):
    path = write(tmp_path / "runs.csv", table)
    targets = write(tmp_path / "targets.csv", {"Model Size": [1e9], "tokens seen": [2e10]})
    assert main(["fit", str(path), *map(str, NAMED), "--predict", str(targets)]) == 0
    out = capsys.readouterr().out
    for shown in ("alpha", "objective", "sha256", "loss of a new run", "1e+09"):
        assert shown in out


def test_a_missing_file(tmp_path, capsys):
    assert "nothing.csv: no such file" in refusal(capsys, tmp_path / "nothing.csv", *NAMED)


@pytest.mark.parametrize(
    "content", [b"PAR1 not really", b"\x1f\x8b torn", b"", b"a,b\n", b'a,b\n"1,2\n', b"a,b\n1,2,3\n", b"\xff\xfe\x00"]
)
def test_an_unreadable_table(tmp_path, capsys, content):
    path = tmp_path / "runs.csv"
    path.write_bytes(content)
    assert str(path) in refusal(capsys, path, *NAMED)


def test_a_missing_column_names_the_nearest_and_the_rest(tmp_path, capsys, table):
    path = write(tmp_path / "runs.csv", table)
    line = refusal(capsys, path, "--n", "ModelSize", "--d", "tokens seen", "--loss", "final")
    assert "no column 'ModelSize'" in line and "did you mean 'Model Size'?" in line and "'tokens seen'" in line


@pytest.mark.parametrize("bad", ["", "nan", "inf", "0", "-3", "about 3"])
@pytest.mark.parametrize("column", ["Model Size", "tokens seen", "final"])
def test_a_bad_value_names_row_and_column(tmp_path, capsys, table, bad, column):
    columns = {name: [str(value) for value in values] for name, values in table.items()}
    columns[column][4] = bad
    line = refusal(capsys, write(tmp_path / "runs.csv", columns), *NAMED)
    assert "row 5" in line and f"'{column}'" in line and (bad or "nothing") in line


@pytest.mark.parametrize(
    "argv, told",
    [
        (("--flops", "FLOP", "--loss", "final"), "--flops alone cannot tell N from D"),
        (("--n", "Model Size", "--loss", "final"), "--d COL (or --flops COL) is needed"),
        (("--d", "tokens seen", "--loss", "final"), "--n COL (or --flops COL) is needed"),
        (("--n", "Model Size", "--d", "tokens seen"), "--loss COL is needed"),
        ((*NAMED, "--level", "1"), "--level 1"),
        ((*NAMED, "--level", "0"), "--level 0"),
        ((*NAMED, "--delta", "0"), "--delta 0"),
        ((*NAMED, "--bootstrap", "-1"), "--bootstrap -1"),
    ],
)
def test_wrong_questions(tmp_path, capsys, table, argv, told):
    assert told in refusal(capsys, write(tmp_path / "runs.csv", table), *argv)


def test_too_few_rows_states_both_numbers(tmp_path, capsys, table):
    few = {name: values[:4] for name, values in table.items()}
    line = refusal(capsys, write(tmp_path / "runs.csv", few), *NAMED)
    assert "4 rows" in line and "5 parameters" in line


def test_empty_and_wrong_targets(tmp_path, capsys, table):
    path = write(tmp_path / "runs.csv", table)
    empty = write(tmp_path / "empty.csv", {"Model Size": [], "tokens seen": []})
    assert "no rows" in refusal(capsys, path, *NAMED, "--predict", empty)
    wrong = write(tmp_path / "wrong.csv", {"Model Size": [1e9], "tokens": [1e10]})
    assert "no column 'tokens seen'" in refusal(capsys, path, *NAMED, "--predict", wrong)


def test_as_a_program(tmp_path, table):
    path = write(tmp_path / "runs.csv", table)
    command = [sys.executable, "-m", "isoflop.cli.main", "fit", str(path), *map(str, NAMED)]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)) == {"law", "objective", "certificate", "intervals", "predictions"}
    torn = subprocess.run([*command, "--level", "2"], capture_output=True, text=True, check=False)
    assert torn.returncode == 2
    assert torn.stderr.startswith("isoflop fit: --level 2") and "Traceback" not in torn.stderr


def answer(capsys, code, *argv):
    """The document of a fit that ends with this exit code."""
    assert main(["fit", *map(str, argv), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_a_formula_is_fitted_as_the_form_is(tmp_path, capsys, table):
    path = write(tmp_path / "runs.csv", table)
    formula = ("--formula", "E + A/N^alpha + B/D^beta", "--parameter", "alpha=0.3@0:2", "--parameter", "beta=0.3@0:2")
    plain, typed = fit(capsys, path, *NAMED), fit(capsys, path, *NAMED, *formula)
    for name in TRUTH:
        assert typed["law"][name] == pytest.approx(plain["law"][name], rel=1e-3)
    assert typed["objective"] == pytest.approx(plain["objective"], rel=1e-6)
    assert set(typed) == set(plain)


def test_columns_by_their_own_names_and_by_backquotes(tmp_path, capsys, table):
    path = write(tmp_path / "runs.csv", table)
    text = "E + A/`Model Size`^0.34 + B/T^0.37"
    document = fit(capsys, path, "--loss", "final", "--formula", text, "--column", "T=tokens seen", "--bootstrap", 20)
    assert document["law"]["E"] == pytest.approx(TRUTH["E"], abs=0.05)
    targets = write(tmp_path / "more.csv", {"Model Size": [1e9], "tokens seen": [2e10]})
    more = ("--column", "T=tokens seen", "--bootstrap", 20, "--predict", targets)
    (row,) = fit(capsys, path, "--loss", "final", "--formula", text, *more)["predictions"]
    assert row["loss"] == pytest.approx(1.7 + 400 / 1e9**0.34 + 1200 / 2e10**0.37, rel=0.02)
    assert row["low"] < row["loss"] < row["high"]


def test_fixed_and_prior_informed_exponents(tmp_path, capsys, table):
    path = write(tmp_path / "runs.csv", table)
    equal = ("--form", "chinchilla-equal")
    free = fit(capsys, path, *NAMED, *equal)["law"]["alpha"]
    assert "alpha" not in fit(capsys, path, *NAMED, *equal, "--fix", "alpha=0.5")["intervals"]
    assert free < fit(capsys, path, *NAMED, *equal, "--prior", "alpha=0.9:0.001")["law"]["alpha"]
    held = fit(capsys, path, *NAMED, "--fix", "alpha=0.34")
    assert set(held["intervals"]) == {"E", "A", "B", "beta"}


def test_approach_2_states_its_own_bias(tmp_path, capsys, table):
    grid = np.repeat(np.geomspace(1e18, 1e20, 4), 7)
    n = np.sqrt(grid / 6 / np.tile(np.geomspace(4, 100, 7), 4))
    loss = 1.7 + 400 / n**0.34 + 1200 / (grid / 6 / n) ** 0.37
    path = write(tmp_path / "grid.csv", {"n": n, "c": grid, "l": loss})
    document = fit(capsys, path, "--n", "n", "--flops", "c", "--loss", "l", "--approach", 2)
    assert document["law"]["form"] == "N* = K C^a"
    bias = document["certificate"]["design_bias"]
    assert bias["exponent_found"] == pytest.approx(document["law"]["a"], abs=1e-3)
    assert bias["exponent_true"] == pytest.approx(0.37 / 0.71, abs=1e-3)
    assert any("this design is biased" in told for told in document["certificate"]["warnings"])
    assert "needs --cluster" in refusal(capsys, path, "--n", "n", "--flops", "c", "--loss", "l", "--approach", 1)


def test_a_table_that_cannot_carry_the_law_ends_with_1(tmp_path, capsys, table):
    columns = {**table, "tokens seen": 20 * table["Model Size"]}
    path = write(tmp_path / "runs.csv", columns)
    document = answer(capsys, 1, path, *NAMED)
    assert document["certificate"]["status"] == "refused"
    assert any("cannot be told apart" in reason for reason in document["certificate"]["reasons"])
    assert answer(capsys, 0, path, *NAMED, "--force")["certificate"] == document["certificate"]


def test_flops_of_another_convention_are_doubted(tmp_path, capsys, table):
    spoiled = table["FLOP"] * np.where(np.arange(18) < 4, 2.0, 1.0)
    path = write(tmp_path / "runs.csv", {**table, "FLOP": spoiled})
    certificate = answer(capsys, 1, path, *NAMED, "--flops", "FLOP")["certificate"]
    assert certificate["status"] == "refused"
    assert any("not of one convention" in reason for reason in certificate["reasons"])
    thousand = write(tmp_path / "k.csv", {**table, "FLOP": table["FLOP"] / 1e9})
    assert any(
        "another unit" in one
        for one in answer(capsys, 1, thousand, *NAMED, "--flops", "FLOP")["certificate"]["reasons"]
    )


def test_checkpoints_of_one_run_are_one_cluster(tmp_path, capsys, table):
    twice = {name: np.repeat(column, 3) for name, column in table.items()}
    labels = [f"run {k}" for k in np.repeat(np.arange(18), 3)]
    path = write(tmp_path / "runs.csv", {**twice, "run": labels})
    apart, together = (fit(capsys, path, *NAMED, *more) for more in (("--force",), ("--cluster", "run")))
    assert [one["certificate"]["status"] for one in (apart, together)] == ["refused", "weak"]
    assert together["certificate"]["bootstrap"]["clusters"] == 18
    errors = [one["certificate"]["bootstrap"]["standard_errors"]["alpha"] for one in (apart, together)]
    assert errors[1] > errors[0]
    assert any("duplicates" in reason for reason in apart["certificate"]["reasons"])


@pytest.mark.parametrize(
    "argv, match",
    [
        (("--form", "kaplen"), "did you mean 'kaplan'"),
        (("--form", "repeats"), "add --column U=COL"),
        (("--formula", "E + __import__('os')"), "is no arithmetic"),
        (("--fix", "alpha"), "write NAME=VALUE"),
        (("--fix", "gamma=1"), "the form's parameters are"),
        (("--form", "kaplan-n", "--prior", "alpha_N=0.1"), "write NAME=CENTRE:SPREAD"),
        (("--form", "kaplan-n", "--column", "U"), "write NAME=COL"),
    ],
)
def test_wrong_questions_about_forms(tmp_path, capsys, table, argv, match):
    assert match in refusal(capsys, write(tmp_path / "runs.csv", table), *NAMED, *argv)


@pytest.mark.parametrize(
    ("argv", "match"),
    [
        (("--axis", "D"), "--axis: is of --approach 1 or 2"),
        (("--parameter", "alpha=0.3"), "--parameter: is of --formula"),
        (("--residual", "plain"), "--residual: is of --formula"),
        (("--column", "U=final"), "--column: is of --formula"),
        (("--approach", 2, "--fix", "alpha=0.3"), "--fix: is of approach 3"),
        (("--form", "kaplan-n", "--other-n", "FLOP"), "--other-n: is of the form chinchilla"),
        (("--fix", "alpha=nan"), "write NAME=VALUE"),
        (("--out", "nowhere/law.json"), "there is no directory"),
    ],
)
def test_nothing_asked_for_is_passed_over(tmp_path, capsys, table, argv, match):
    assert match in refusal(capsys, write(tmp_path / "runs.csv", table), *NAMED, *argv)


def test_a_huge_table_is_told_what_it_can_have(tmp_path, capsys, table):
    many = {
        name: np.tile(column, 300) * np.random.default_rng(0).uniform(0.99, 1, 5400) for name, column in table.items()
    }
    path = write(tmp_path / "runs.csv", many)
    for form in ("chinchilla", "kaplan-d"):
        assert "5400 rows: intervals and diagnostics are for at most" in refusal(capsys, path, *NAMED, "--form", form)
    assert answer(capsys, 0, path, *NAMED[:-1], 0, "--form", "kaplan-d")["certificate"]["n_used"] == 5400


def test_every_route_prints(tmp_path, capsys, table):
    path = write(tmp_path / "runs.csv", table)
    for more, word in (((), "90% profile"), (("--form", "chinchilla-equal"), "alpha, 90% profile")):
        assert main(["fit", *map(str, (path, *NAMED, *more))]) == 0
        assert word in capsys.readouterr().out


def spoil(table, how):
    """The table with something wrong that still reads as numbers."""
    columns = {name: np.array(column) for name, column in table.items()}
    n, d = columns["Model Size"], columns["tokens seen"]
    if how == "one level":
        columns["tokens seen"] = 1e19 / n
    if how == "collinear":
        columns["tokens seen"] = 20 * n
    if how == "a row in other units":
        d[4] /= 1e6
    if how == "below the floor":
        columns["final"][0] = 1.2
    if how == "duplicates":
        columns = {name: np.concatenate([column, column[:3]]) for name, column in columns.items()}
    if how == "units":
        d /= 1e9
    if how in ("one level", "collinear"):
        d = columns["tokens seen"]
        noise = np.exp(0.003 * np.random.default_rng(1).normal(size=len(n)))
        columns["final"] = (1.7 + 400 / n**0.34 + 1200 / d**0.37) * noise
        columns["FLOP"] = 6 * n * d
    return columns


@pytest.mark.parametrize(
    ("how", "status", "word"),
    [
        ("one level", "refused", "one level of compute"),
        ("collinear", "refused", "cannot be told apart"),
        ("a row in other units", "refused", "with no run between: rows of another unit?"),
        ("below the floor", "refused", "lies above 1 measured losses"),
        ("duplicates", "refused", "3 of 21 rows are exact duplicates"),
        ("units", "refused", "have another unit"),
    ],
)
@pytest.mark.parametrize("form", [(), ("--form", "chinchilla-equal")])
def test_no_confident_number_from_a_bad_table(tmp_path, capsys, table, how, status, word, form):
    path = write(tmp_path / "runs.csv", spoil(table, how))
    targets = write(tmp_path / "targets.csv", {"Model Size": [1e9], "tokens seen": [6e10]})
    replicates = 10 if form else 0  # forecasts of the plain form rest on no bootstrap
    question = (path, *NAMED[:-1], replicates, *form, "--flops", "FLOP", "--predict", targets)
    document = answer(capsys, int(status == "refused"), *question)
    assert document["certificate"]["status"] == status
    assert any(word in reason for reason in document["certificate"]["reasons"])
    (row,) = document["predictions"]
    assert f"the law is {status}" in row["warning"]
    assert (row["low"] is None) == (status == "refused")
    if status == "refused":
        (row,) = answer(capsys, 0, *question, "--force")["predictions"]
    assert row["low"] < row["high"]


@pytest.mark.parametrize(
    ("row", "loss", "match"),
    [
        (3, "nan", "row 4, column 'final': 'nan' is not a"),
        (2, 0.0, "row 3, column 'final'"),
        (1, "", "row 2, column 'final': nothing is not a"),
    ],
)
def test_losses_that_are_none(tmp_path, capsys, table, row, loss, match):
    columns = {**table, "final": table["final"].tolist()}
    columns["final"][row] = loss
    assert match in refusal(capsys, write(tmp_path / "runs.csv", columns), *NAMED)


def test_too_little_to_fit(tmp_path, capsys, table):
    four = {name: column[:4] for name, column in table.items()}
    assert "4 rows cannot determine the law's 5 parameters" in refusal(capsys, write(tmp_path / "a.csv", four), *NAMED)
    flat = write(tmp_path / "b.csv", {**table, "final": np.full(18, 2.5)})
    assert answer(capsys, 1, flat, *NAMED)["certificate"]["status"] == "refused"
    line = refusal(capsys, flat, *NAMED, "--form", "chinchilla-equal")
    assert "every row has the same loss, 2.5" in line
    columns = run_table(table, status=["failed"] * 18)
    assert "no rows to use; left out: 18 status failed" in refusal(capsys, write(tmp_path / "c.csv", columns))


def test_other_conventions_of_n_are_compared(tmp_path, capsys, table):
    path = write(tmp_path / "runs.csv", {**table, "with tables": table["Model Size"] + 2e7})
    told = fit(capsys, path, *NAMED, "--other-n", "with tables")["certificate"]["sensitivity"]
    (other,) = [one for one in told if one["what"] == "convention"]
    assert other["choice"] == "with tables" and other["optimal_d"] > 0
    assert "no column 'all'" in refusal(capsys, path, *NAMED, "--other-n", "all")
