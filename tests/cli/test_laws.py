"""`isoflop laws`: published laws listed, shown and evaluated."""

import json

import pytest

from isoflop.cli.main import main
from isoflop.laws.presets import PRESETS


def answer(capsys, *argv):
    assert main(["laws", *argv]) == 0
    return " ".join(capsys.readouterr().out.split())


def refusal(capsys, *argv):
    assert main(["laws", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_all_are_listed(capsys):
    told = answer(capsys)
    assert all(law.name in told for law in PRESETS)
    assert main(["laws", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [law["name"] for law in listed] == [law.name for law in PRESETS]
    assert {law["status"] for law in listed} == {"reproduced", "primary", "secondary"}


@pytest.mark.parametrize("law", PRESETS, ids=lambda law: law.name)
def test_each_is_shown_whole(capsys, law):
    told = answer(capsys, law.name)
    assert law.units in told and f"({law.status})" in told and "constants: " in told


def test_chinchillas_budget(capsys):
    told = answer(capsys, "besiroglu-2024", "--flops", "5.76e23")
    assert "best at 5.76e+23 FLOPs, D/N 17.9: N 7.319e+10, D 1.312e+12: 1.97391" in told
    assert "warning: N of 7.319e+10 is outside the fitted 5.7e+07 to 1.62e+10" in told
    assert main(["laws", "hoffmann-2022", "--n", "70e9", "--d", "1.4e12", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["value"] == pytest.approx(1.92085, abs=1e-4) and document["best"] is None
    assert document["columns"] == {"N": 70e9, "D": 1.4e12}


def test_other_columns_and_laws_of_compute(capsys):
    assert ": 2.0" in answer(capsys, "krajewski-2024", "--n", "3.01e11", "--d", "1.376e11", "--set", "G=32")
    assert "C 3.8e+25: 1.6" in answer(capsys, "llama-3-2024", "--flops", "3.8e25")
    assert "G 8" in answer(capsys, "krajewski-2024", "--flops", "1e21", "--set", "G=8")


def test_refusals(capsys):
    assert "did you mean 'kaplan-2020'?" in refusal(capsys, "kaplan-202")
    assert "needs N, D; D is missing" in refusal(capsys, "hoffmann-2022", "--n", "1e9")
    assert "has no column G; it is of N, D" in refusal(capsys, "hoffmann-2022", "--n", "1e9", "--set", "G=8")
    assert "leave out --n and --d, or --flops" in refusal(capsys, "hoffmann-2022", "--n", "1e9", "--flops", "1e20")
    assert "only a loss of N and D has a best N" in refusal(capsys, "kaplan-2020-data", "--flops", "1e20")
    assert "--set G: write NAME=VALUE" in refusal(capsys, "krajewski-2024", "--set", "G")
    assert "name it" in refusal(capsys, "--n", "1e9")
    assert "name it" in refusal(capsys, "--flops", "1e20")
    assert "must be a positive, finite number" in refusal(capsys, "hoffmann-2022", "--n=-1", "--d", "1e9")
