"""The status of a law, from each thing that can be wrong alone."""

import numpy as np
import pytest

from isoflop.laws.soundness import duplicates, flops_doubts, soundness, table_notes, wild_row

N = np.geomspace(1e7, 1e9, 20)
D = np.geomspace(1e9, 1e11, 20)[np.random.default_rng(0).permutation(20)]
LOSS = 1.7 + 400 / N**0.34 + 1200 / D**0.37
FINE = {"floor": 1.7, "vanished": [], "capped": [], "parameters": 5, "condition": 40.0, "share": 1.0, "levels": 5}


def test_nothing_wrong_is_sound():
    assert soundness(N, D, LOSS, **FINE).status == "sound"


@pytest.mark.parametrize(
    "wrong, status, word",
    [
        ({"floor": float(np.sort(LOSS)[2]) * 1.0001}, "refused", "lies above 3 measured losses"),
        ({"vanished": ["A", "alpha"]}, "refused", "A, alpha at zero"),
        ({"capped": ["alpha at its bound 10"]}, "weak", "alpha at its bound 10"),
        ({"condition": 1e6}, "weak", "condition number 1.0e+06"),
        ({"share": 0.05}, "weak", "only 5% of the starts"),
        ({"levels": 1}, "refused", "one level of compute"),
        ({"parameters": 11}, "weak", "20 rows for 11 parameters"),
        ({"wrong": ("tokens are in millions",)}, "refused", "tokens are in millions"),
        ({"doubts": ("seven runs decide",)}, "weak", "seven runs decide"),
    ],
)
def test_each_thing_wrong(wrong, status, word):
    found = soundness(N, D, LOSS, **(FINE | wrong))
    assert found.status == status
    assert len(found.reasons) == 1 and word in found.reasons[0]


def test_duplicates_are_rows_with_their_loss():
    assert duplicates(N, D, LOSS) is None
    n, d, loss = (np.append(column, column[3]) for column in (N, D, LOSS))
    assert "1 of 21 rows" in duplicates(n, d, loss)
    loss[-1] *= 1.001  # another seed
    assert duplicates(n, d, loss) is None


def test_conventions_of_flops():
    flops = 6 * N * D
    assert flops_doubts(N, D, flops * 1.1, "C") == ()
    (unit,) = flops_doubts(N, D, flops / 1e18, "C")
    assert "another unit" in unit
    flops[4] *= 1.6
    (mixed,) = flops_doubts(N, D, flops, "C")
    assert "used row 5" in mixed and "not of one convention" in mixed


def test_rows_far_off_and_far_apart_are_suspected():
    residuals = np.full(20, 0.01)
    assert wild_row(N, D, residuals) == []
    residuals[7] = -np.log(2)
    (far,) = wild_row(N, D, residuals)
    assert f"N = {N[7]:.4g}" in far and "0.5 times what the law says" in far
    d = D.copy()
    d[:3] /= 1e6
    (apart,) = table_notes(N, d, LOSS)
    assert apart.startswith("D jumps from") and "another unit" in apart
    assert soundness(N, d, LOSS, **FINE).status == "refused"
    assert table_notes(N, D, LOSS) == []
    assert "move together" in table_notes(N, 20 * N, LOSS)[0]
