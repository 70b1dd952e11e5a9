"""`isoflop plan`: what it prints, writes and refuses, how fast, and that its command line asks the same again."""

import json
import os
import re
import shlex
import subprocess
import sys
import time

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.cli import plan as verb
from isoflop.cli.main import Parser, main
from isoflop.decide.command import command_of
from isoflop.decide.question import (
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

DENSE = ("--family", "dense")


def document(capsys, *argv, code=0):
    assert main(["plan", *map(str, argv), "--json"]) == code
    return json.loads(capsys.readouterr().out)


def refusal(capsys, *argv, code=2):
    """The one line a mistake is answered with."""
    try:
        assert main(["plan", *map(str, argv)]) == code
    except SystemExit as left:  # argparse's own
        assert left.code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


def test_json_document(capsys):
    told = document(capsys, "--flops", 1e23, "--hardware", "H100-SXM", "--devices", 512, "--served-tokens", 1e12)
    best = told["recommended"]
    for key in ("architecture", "n_params", "n_active", "tokens", "loss", "train_flops", "train_hours", "train_cost"):
        assert best[key]
    assert {"value", "low", "high", "level", "source"} <= set(best["loss"])
    assert best["loss"]["level"] == 0.8
    assert best["loss"]["low"] < best["loss"]["value"] < best["loss"]["high"]
    assert best["serve_cost_per_mtok"]["low"] < best["serve_cost_per_mtok"]["high"]
    assert {one["family"] for one in told["candidates"]} == {"dense", "experts", "latent", "mamba-2", "hybrid"}
    assert sum(one["p_best"] for one in told["candidates"]) == pytest.approx(1)
    assert told["near_optimal"]
    assert told["binding"]
    assert len(told["levers"]) == 3
    assert all(source in ("exact", "measured", "fitted", "datasheet", "assumed") for source in sources(told))


def sources(value):
    if isinstance(value, dict):
        yield from ([value["source"]] if {"value", "low", "high", "source"} <= set(value) else [])
        for item in value.values():
            yield from sources(item)
    elif isinstance(value, list):
        for item in value:
            yield from sources(item)


def test_tables(capsys):
    argv = ("--flops", "1e23", "--served-tokens", "1e12", "--vary", "flops=1e22,1e9", "--tornado")
    assert main(["plan", *argv]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.startswith("Train ")
    for words in ("best to train", "within 0.5%", "what if", "halved / doubled", "lever: ", "binds: "):
        assert words in out


def test_figure(capsys, tmp_path):
    pytest.importorskip("plotly")
    page = tmp_path / "plan.html"
    assert main(["plan", "--flops", "1e23", *DENSE, "--figure", str(page), "--tornado"]) == 0
    text = page.read_text()
    assert "Loss against size at this budget" in text
    assert "isoflop plan --flops 1e+23 --family dense" in text
    assert not re.search(r'<(script|link|img)[^>]+(src|href)="?https?:', text)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "one of the arguments --flops --accelerator-hours --dollars"),
        (("--flops", 1e22, "--dollars", 1e6), "not allowed with argument"),
        (("--flops", 0), "positive"),
        (("--flops", "nan"), "positive"),
        (("--accelerator-hours", 100), "needs --hardware NAME and --devices N"),
        (("--deadline", 3, "--hardware", "h100-sxm"), "needs --devices N"),
        (("--flops", 1e22, "--devices", 8), "without --hardware"),
        (("--flops", 1e22, "--hardware", "h100sx5", "--devices", 8), "the nearest are 'H100-SXM5-80GB'"),
        (("--dollars", 1e5, "--hardware", "h100-sxm", "--devices", 8, "--price", "2.5"), "has no date"),
        (("--dollars", 1e5, "--hardware", "tpu-v4", "--devices", 8), "--price 2.5@2026-01"),
        (("--flops", 1e22, "--law", "besiroglu"), "did you mean 'besiroglu-2024'"),
        (("--flops", 1e22, "--law", "no/such.csv"), "no such file"),
        (("--flops", 1e22, "--law", "krajewski-2024"), "is of N, D, G"),
        (("--flops", 1e22, "--law", "llama-3-2024", "--law", "besiroglu-2024"), "cannot be averaged"),
        (("--flops", 1e22, "--law", "experts=besiroglu-2024"), "one for all"),
        (("--flops", 1e22, "--law", "besiroglu-2024*0"), "weight 0 must be above 0"),
        (("--flops", 1e22, "--family", "mixtral-8x"), "neither a file nor a published model"),
        (("--flops", 1e22, "--repeats", 4), "--unique-tokens"),
        (("--flops", 1e22, "--unique-tokens", 1e9, "--repeats", 0.5), "--repeats 0.5: must be 1"),
        (("--flops", 1e22, "--hardware", "this", "--devices", 1), "plans are for named accelerators"),
        (("--flops", 1e22, "--family", "desne"), "nor one of dense, experts"),
        (("--flops", 1e22, "--train-context", 0), "--train-context 0"),
        (("--flops", 1e22, "--context", 1), "--context 1"),
        (("--dollars", 1e5, "--hardware", "h100-sxm", "--devices", 8, "--price", "2.5@2026-13"), "date '2026-13'"),
        (("--flops", 1e22, "--latency", 20), "--latency needs --hardware"),
        (("--flops", 1e22, "--weights", "int3"), "valid: bf16"),
        (("--flops", 1e22, "--vary", "flop=1"), "did you mean 'flops'"),
        (("--flops", 1e22, "--vary", "flops=a"), "'a' is no number"),
        (("--target-loss", 2.0, "--law", "llama-3-2024"), "tells none"),
        (("--flops", 1e22, "--n", "params"), "--law names none"),
    ],
)
def test_wrong_questions(capsys, argv, words):
    assert words in refusal(capsys, *argv)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (("--flops", 1e4), "buys nothing"),
        (("--target-loss", 1.2), "floor"),
        (("--flops", 1e26, "--hardware", "h100-sxm", "--devices", 8), "fit no layout on 8 x H100-SXM5-80GB"),
        (("--flops", 1e22, "--serve-memory", 1e-4), "serving memory"),
    ],
)
def test_the_answer_is_no(capsys, argv, words):
    assert words in refusal(capsys, *argv, *DENSE, code=1)


def test_a_study_and_its_law(capsys, tmp_path):
    header = "role,status,n_params,n_params_matmul,tokens,loss_valid,family"
    rows = [header]
    for family, gain in (("dense", 1.0), ("experts", 0.97)):
        for n in (1e6, 3e6, 1e7):
            for d in (1e8, 3e8, 1e9):
                loss = gain * (1.8 + 478 / n**0.347 + 2143 / d**0.367)
                rows.append(f"fit,done,{n},{n},{d},{loss},{family}")
    (tmp_path / "runs.csv").write_text("\n".join(rows) + "\n")
    law = {"E": 1.8, "A": 478.0, "B": 2143.0, "alpha": 0.347, "beta": 0.367}
    (tmp_path / "law.json").write_text(json.dumps({"families": {"dense": {"law": law}}}))
    argv = ("--flops", 1e18, "--family", "dense,experts", "--vocab", 1024)
    told = document(capsys, *argv, "--law", tmp_path)
    assert [one["note"] for one in told["candidates"]] == ["", ""]
    assert told["candidates"][0]["family"] == "experts"
    assert told["candidates"][0]["law"].endswith("(experts)")
    told = document(capsys, *argv, "--law", tmp_path / "law.json")
    notes = {one["family"]: one["note"] for one in told["candidates"]}
    assert notes["dense"] == ""
    assert "no law of its own" in notes["experts"]
    (tmp_path / "law.json").write_text("{}")
    assert "holds no law" in refusal(capsys, *argv, "--law", tmp_path / "law.json")


SMALL = (*DENSE, "--flops", 1e18, "--vocab", 1024)
COLUMNS = ("--n", "n", "--d", "d", "--loss", "loss")


def table_of(path, rows):
    path.write_text("\n".join(["n,d,loss", *(f"{n},{d},{loss}" for n, d, loss in rows)]) + "\n")
    return path


def grid(sizes=(1e6, 3e6, 1e7), tokens=(1e8, 3e8, 1e9)):
    return [(n, d, 1.8 + 478 / n**0.347 + 2143 / d**0.367) for n in sizes for d in tokens]


def certified(path, status, *reasons):
    law = {"E": 1.8, "A": 478.0, "B": 2143.0, "alpha": 0.347, "beta": 0.367}
    path.write_text(json.dumps({"law": law, "certificate": {"status": status, "reasons": reasons}}))
    return path


def test_a_refused_law_is_planned_on_only_by_force(capsys, tmp_path):
    law = certified(tmp_path / "law.json", "refused", "alpha at zero", "two units")
    line = refusal(capsys, *SMALL, "--law", law)
    assert "refused: alpha at zero; two units" in line
    assert "--force" in line
    told = document(capsys, *SMALL, "--law", law, "--force")
    assert any("the law is refused: alpha at zero; two units" in note for note in told["notes"])
    assert "--force" in told["command"]


def test_a_weak_law_is_said_to_be(capsys, tmp_path):
    law = certified(tmp_path / "law.json", "weak", "6 rows for 5 parameters")
    assert any("the law is weak: 6 rows" in note for note in document(capsys, *SMALL, "--law", law)["notes"])
    sound = certified(tmp_path / "law.json", "sound")
    assert not any("the law is" in note for note in document(capsys, *SMALL, "--law", sound)["notes"])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (grid() + grid()[:2], "exact duplicates"),
        ([(n / 1e6 if k == 4 else n, d, loss) for k, (n, d, loss) in enumerate(grid())], "another unit"),
        ([(n, 20 * n, loss) for n, _, loss in grid((1e6, 3e6, 1e7, 3e7), (1e8,))], "move together"),
    ],
)
def test_a_mistaken_table_is_refused(capsys, tmp_path, rows, words):
    table = table_of(tmp_path / "mine.csv", rows)
    assert words in refusal(capsys, *SMALL, "--law", table, *COLUMNS)
    told = document(capsys, *SMALL, "--law", table, *COLUMNS, "--force")
    assert any(words in note for note in told["notes"])


def test_a_doubtful_table_is_weak(capsys, tmp_path):
    rows = [(n, 20 * n * 1.25 ** (k % 2), 1.8 + 478 / n**0.347) for k, n in enumerate((1e6, 2e6, 4e6, 8e6, 1.6e7))]
    table = table_of(tmp_path / "mine.csv", rows)
    assert any("the law is weak" in note for note in document(capsys, *SMALL, "--law", table, *COLUMNS)["notes"])


def test_a_studys_certificate_speaks_for_its_runs(capsys, tmp_path):
    head = "role,status,n_params,n_params_matmul,tokens,loss_valid,family"
    rows = [f"fit,done,{n},{n},{d},{loss},dense" for n, d, loss in grid()]
    (tmp_path / "runs.csv").write_text("\n".join([head, *rows]) + "\n")
    certified(tmp_path / "law.json", "refused", "the floor lies above losses")
    assert "the floor lies above losses" in refusal(capsys, *SMALL, "--law", tmp_path)
    certified(tmp_path / "law.json", "weak", "few starts")
    assert any("weak: few starts" in note for note in document(capsys, *SMALL, "--law", tmp_path)["notes"])


def test_cold_start_and_identical_bytes():
    """Five families from nothing in a second on an idle machine; the bound is loose as machines are shared."""
    argv = [sys.executable, "-m", "isoflop", "plan", "--flops", "1e24", "--served-tokens", "1e12", "--json"]
    answers, fastest = set(), 10.0
    for seed in ("0", "1", "2"):
        start = time.perf_counter()
        told = subprocess.run(argv, capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
        fastest = min(fastest, time.perf_counter() - start)
        answers.add(told.stdout)
    assert len(answers) == 1
    assert fastest < 3.0


def test_no_torch_no_statistics():
    code = (
        "import sys; from isoflop.cli.main import main; main(['plan', '--flops', '1e22', '--json']);"
        "sys.exit(any(name in sys.modules for name in ('torch', 'scipy.stats', 'scipy.optimize', 'pandas')))"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)


AMOUNTS = st.floats(1e-3, 1e30, allow_nan=False).map(lambda x: float(f"{x:.6g}"))
MAYBE = st.none() | AMOUNTS
GOALS = st.one_of(*(AMOUNTS.map(kind) for kind in (Flops, DeviceHours, Dollars, Deadline, QualityOf, TargetLoss)))
NAMES = st.sampled_from(["besiroglu-2024", "muennighoff-2023", "a study/law.json"])
SERVED = st.builds(
    Served,
    tokens=st.just(0.0) | AMOUNTS,
    context=st.integers(2, 10**6),
    prompt_share=st.sampled_from([0.1, 0.75, 0.9]),
    latency_ms=MAYBE,
    weights=st.sampled_from(["bf16", "int4"]),
)


@settings(max_examples=60, deadline=None)
@given(
    goal=GOALS,
    laws=st.lists(st.builds(LawChoice, name=NAMES, weight=AMOUNTS), min_size=1, max_size=3),
    own=st.booleans(),
    families=st.sampled_from([("dense", "experts"), ("dense", "llama-3.1-8b"), ("dense", "experts", "hybrid")]),
    unique=MAYBE,
    memory=MAYBE,
    device_memory=MAYBE,
    served=SERVED,
    devices=st.integers(1, 10**5),
    price=st.none() | st.just("1.9,2.4,3.1@2026-06"),
    count=st.sampled_from(["exact", "6nd"]),
    level=st.sampled_from([0.5, 0.8]),
    force=st.booleans(),
)
def test_the_command_asks_the_same(
    goal, laws, own, families, unique, memory, device_memory, served, devices, price, count, level, force
):
    extra = [LawChoice(name="hoffmann-2022", family="dense")] if own else []
    question = Question(
        goal=goal,
        laws=tuple(msgspec.structs.replace(law, force=force) for law in (*laws, *extra)),
        families=families,
        hardware="h100-sxm",
        devices=devices,
        price=price,
        unique_tokens=unique,
        served=served,
        serve_memory_gib=memory,
        device_memory_gib=device_memory,
        count=count,
        level=level,
    )
    parser = Parser()
    verb.add_arguments(parser)
    assert verb.question_of(parser.parse_args(shlex.split(command_of(question))[2:])) == question
