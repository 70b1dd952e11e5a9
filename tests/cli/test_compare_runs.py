"""`isoflop compare-runs` on anybody's tables: what it prints, draws and refuses."""

import csv
import json

import numpy as np
import pytest

from isoflop.cli.main import main

NAMED = ("--n", "params", "--d", "seen", "--loss", "final")
FLOPS = np.repeat(np.geomspace(1e18, 1e20, 5), 3)


def runs(seed, moved=0.0, **more):
    rng = np.random.default_rng(seed)
    n = np.sqrt(FLOPS / 6 / np.tile([8.0, 20.0, 60.0], 5))
    d = FLOPS / 6 / n
    loss = 1.7 + 400 / (n * np.exp(moved / 2)) ** 0.34 + 1200 / (d * np.exp(moved / 2)) ** 0.37
    loss *= np.exp(0.004 * rng.normal(size=15))
    accuracy = 0.25 + 0.6 / (1 + np.exp(6 * (loss - 2.75))) + 0.005 * rng.normal(size=15)
    return {"params": n, "seen": d, "final": loss, "acc": accuracy} | {k: [v] * 15 for k, v in more.items()}


def write(path, *tables):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(tables[0])
        for table in tables:
            writer.writerows(zip(*table.values(), strict=True))
    return path


@pytest.fixture
def old(tmp_path):
    return write(tmp_path / "old.csv", runs(0))


@pytest.fixture
def new(tmp_path):
    return write(tmp_path / "new.csv", runs(1, 0.5))


def answer(capsys, *argv):
    code = main(["compare-runs", *map(str, argv)])
    return code, " ".join(capsys.readouterr().out.split())


def refusal(capsys, *argv):
    assert main(["compare-runs", *map(str, argv)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_a_difference_is_established(capsys, old, new):
    code, out = answer(capsys, old, new, *NAMED)
    assert code == 0
    assert "new is better at 1e+20 FLOPs: old needs 1." in out and "95% interval" in out
    assert "15 pairs of runs" in out and "Most influence: without A of N" in out


def test_noise_is_called_noise(capsys, old, tmp_path):
    same = write(tmp_path / "same.csv", runs(2))
    code, out = answer(capsys, old, same, *NAMED)
    assert code == 1
    assert out.startswith("Within noise at 1e+20 FLOPs: old needs")


def test_json_is_complete_and_stable(capsys, old, new):
    argv = ["compare-runs", str(old), str(new), *NAMED, "--metric", "acc", "--chance", "0.25", "--json"]
    assert main(argv) == 0
    first = capsys.readouterr().out
    told = json.loads(first)
    comparison = told["comparison"]
    assert comparison["winner"] == "B" and comparison["law"] == "shared"
    assert comparison["at"]["low"] < np.exp(0.5) < comparison["at"]["high"]
    assert set(comparison["laws"]["separate"]["B"]) == {"form", "E", "A", "B", "alpha", "beta"}
    assert len(comparison["curve"]) == 9 and comparison["pairs"] == 15
    assert told["emergence"]["explained"] and told["emergence"]["between"]["p_value"] > 0.05
    assert told["tables"]["A"]["convention"] == "N is column 'params', D is 'seen', compute is 6 N D"
    assert main(argv) == 0
    assert capsys.readouterr().out == first


def test_families_of_one_table(capsys, tmp_path):
    both = write(tmp_path / "runs.csv", runs(0, family="dense"), runs(1, 0.5, family="experts"))
    code, out = answer(capsys, both, "--a-where", "family=dense", "--b-where", "family=experts", *NAMED)
    assert code == 0 and "experts is better" in out and "dense needs" in out
    assert "rows left out: 15 with family other than dense" in out
    assert "no row has family = moe; there are dense, experts" in refusal(
        capsys, both, "--a-where", "family=dense", "--b-where", "family=moe", *NAMED
    )


def test_other_columns_and_compute_alone(capsys, old, tmp_path):
    table = runs(1, 0.5)
    other = {"N": table["params"], "tok": table["seen"], "L": table["final"], "C": FLOPS}
    path = write(tmp_path / "other.csv", other)
    code, out = answer(capsys, old, path, *NAMED, "--b-n", "N", "--b-d", "tok", "--b-loss", "L")
    assert code == 0 and "other is better" in out
    one = write(tmp_path / "one.csv", {"C": FLOPS[1::3], "L": runs(0)["final"][1::3]})
    two = write(tmp_path / "two.csv", {"C": FLOPS[1::3], "L": runs(1, 0.5)["final"][1::3]})
    code, out = answer(capsys, one, two, "--flops", "C", "--loss", "L")
    assert code == 0 and "compute is column 'C' and places a run alone" in out


def test_a_metric_alone(capsys, old):
    code, out = answer(capsys, old, *NAMED, "--metric", "acc")
    assert code == 0 and out.startswith("The metric follows the loss: a sigmoid of it explains")


@pytest.mark.parametrize("ending", ["html", "png"])
def test_figures(capsys, old, new, tmp_path, ending):
    path = tmp_path / f"both.{ending}"
    assert answer(capsys, old, new, *NAMED, "--figure", path)[0] == 0
    content = path.read_bytes()
    assert content.startswith(b"<!doctype html>" if ending == "html" else b"\x89PNG") and len(content) > 10_000


def test_units_must_agree(capsys, old, tmp_path):
    bits = runs(0)["final"] / np.log(2)
    a = write(tmp_path / "a.csv", {**runs(0), "bits_per_byte": bits / 4.0})
    b = write(tmp_path / "b.csv", {**runs(1), "bits_per_byte": runs(1)["final"] / np.log(2) / 4.4})
    said = refusal(capsys, a, b, *NAMED)
    assert "4.000 bytes a token and B's of 4.400: tokenizers or texts differ" in said and "--loss bits_per_byte" in said
    assert answer(capsys, a, b, *NAMED[:4], "--loss", "bits_per_byte")[0] in (0, 1)
    assert "one unit is needed for both" in refusal(capsys, a, b, *NAMED, "--b-loss", "bits_per_byte")
    one, two = (write(tmp_path / f"{name}.csv", runs(0, tokenizer=name, valid_set="c4")) for name in ("gpt2", "llama"))
    assert "column 'tokenizer' holds gpt2, llama" in refusal(capsys, one, two, *NAMED)
    texts = [write(tmp_path / f"{name}.csv", runs(0, valid_set=name)) for name in ("c4", "pile")]
    assert "column 'valid_set' is c4 for A and pile for B" in refusal(capsys, *texts, *NAMED)


def test_refusals(capsys, old, new):
    assert "B is missing: name a second table" in refusal(capsys, old, *NAMED)
    assert "did you mean 'params'?" in refusal(capsys, old, new, "--n", "param", *NAMED[2:])
    assert "--a-where family: write COL=VALUE" in refusal(capsys, old, new, *NAMED, "--a-where", "family")
    assert "--chance 25: must be at least 0" in refusal(capsys, old, new, *NAMED, "--metric", "seen", "--chance", "25")
    assert "no metric was named" in refusal(capsys, old, new, *NAMED, "--chance", "0.25")
    assert "draws two ladders" in refusal(capsys, old, *NAMED, "--metric", "seen", "--figure", "x.html")
    assert "must end in .html" in refusal(capsys, old, new, *NAMED, "--figure", "x.doc")
    assert "--loss COL is needed" in refusal(capsys, old, new, "--n", "params", "--d", "seen")
    assert "level: 95.0 must lie strictly between" in refusal(capsys, old, new, *NAMED, "--level", "95")


def test_our_own_run_table_needs_no_columns(capsys, tmp_path):
    """Two families of a study: compute is exact FLOPs, seeds pair runs, targets and failed runs are left out."""
    path, families = tmp_path / "runs.csv", []
    for family, moved in (("dense", 0.0), ("experts", 0.5)):
        table = runs(0, moved)
        # Exact FLOPs are more than 6 N D, and a law of exact FLOPs does not mind.
        families.append(
            {
                "family": [family] * 15,
                "n_params_matmul": table["params"] * 0.9,
                "tokens": table["seen"],
                "loss_valid": [*table["final"][:-1], ""],
                "bits_per_byte": [*(table["final"][:-1] / np.log(2) / 4), ""],
                "flops_exact": 6 * table["params"] * table["seen"],
                "seed": [0] * 15,
                "trunk": [f"{family}{k}" for k in range(15)],
                "role": ["fit"] * 13 + ["target", "fit"],
                "status": ["done"] * 14 + ["diverged"],
            }
        )
    write(path, *families)
    argv = ("--a-where", "family=dense", "--b-where", "family=experts", "--json")
    assert main(["compare-runs", str(path), *argv]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["tables"]["A"]["convention"].startswith("compute is column 'flops_exact', D is 'tokens'")
    assert told["tables"]["A"]["used"] == 13 and told["tables"]["A"]["bytes_per_token"] == pytest.approx(4)
    assert told["comparison"]["pairs"] == 13 and told["notes"] == []
    assert np.log(told["comparison"]["at"]["multiplier"]) == pytest.approx(0.5, abs=0.02)  # pairs share their scatter
