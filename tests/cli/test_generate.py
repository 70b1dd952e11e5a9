"""`isoflop generate` and `isoflop chat`, from the command line."""

import io
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import isoflop
from isoflop.architecture import S4D, Attention, Decoder, Dense, Hyena, Layer, Mamba1, Mamba2, MixtureOfExperts
from isoflop.cli.main import main
from isoflop.data.tokenizer import train_byte_pair
from isoflop.engine.vocabulary import open_vocabulary
from isoflop.model import DecoderModel
from isoflop.train.init import initialize
from isoflop.train.recipe import Recipe
from isoflop.weights.checkpoint import save_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of bytes."""
    folder = tmp_path_factory.mktemp("generate") / "tiny"
    model = DecoderModel(Dense().build(32, 256, 256))
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    save_model(folder, model, "a test", special_tokens={"bos_token_id": 0, "eos_token_id": 0})
    return folder


def document(capsys: pytest.CaptureFixture[str], *arguments: object) -> Any:
    assert main([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


NOT_NEEDED = ("torch._dynamo", "torch._inductor", "sympy", "transformers", "fastapi", "scipy", "matplotlib", "plotly")


def test_starts_with_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    """Each of these would cost every start from a tenth of a second to more than one."""
    mixers = Mamba1(d_inner=16, d_state=4, dt_rank=2), Mamba2(n_heads=2, d_head=8, d_state=4), Hyena(), S4D(d_inner=8)
    layers = tuple(Layer(mixer, None) for mixer in mixers)
    attention = Attention(n_heads=2, n_kv_heads=1, d_head=8)
    last = Layer(attention, MixtureOfExperts(n_experts=3, top_k=2, d_ff=8))
    model = DecoderModel(Decoder(256, 16, (*layers, last), max_context=32))
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    save_model(tmp_path / "hybrid", model, "a test")
    command = ["generate", str(tmp_path / "hybrid"), "import ", "--max-tokens", "4"]
    program = f"import sys; from isoflop.cli.main import main; main({command}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    loaded = done.stdout.splitlines()[-1].split()
    assert "torch" in loaded and not set(NOT_NEEDED) & set(loaded)


def greedy(checkpoint: Path, prompt: bytes, n: int) -> bytes:
    model, tokens = isoflop.load(checkpoint), list(prompt)
    with torch.no_grad():
        for _ in range(n):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    return bytes(tokens[len(prompt) :])


def test_greedy(checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    text = greedy(checkpoint, b"import ", 9).decode(errors="replace")
    assert main(["generate", str(checkpoint), "import ", "--temperature", "0", "--max-tokens", "9"]) == 0
    assert capsys.readouterr().out == text + "\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"import ")))
    found = document(capsys, "generate", checkpoint, "--temperature", 0, "--max-tokens", 9)
    assert found["prompt"] == "import " and found["prompt_tokens"] == 7 and found["notices"] == []
    assert [output["text"] for output in found["outputs"]] == [text]
    assert found["outputs"][0]["finish"] == "length" and len(found["outputs"][0]["tokens"]) == 9
    assert found["outputs"][0]["mean_logprob"] < 0


def test_several(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("generate", checkpoint, "x", "--n", 3, "--seed", 4, "--max-tokens", 12)
    first, again = document(capsys, *arguments), document(capsys, *arguments)
    assert first == again and len({output["text"] for output in first["outputs"]}) == 3
    assert main([str(a) for a in arguments]) == 0
    assert capsys.readouterr().out.count("length]") == 3
    fourth = document(capsys, "generate", checkpoint, "x", "--seed", 5, "--max-tokens", 12)
    assert fourth["outputs"][0] == first["outputs"][1] | {"mean_logprob": fourth["outputs"][0]["mean_logprob"]}


def test_forms(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "generate", checkpoint, "", "--regex", "[a-c]{3}x", "--n", 2)
    assert all(re.fullmatch("[a-c]{3}x", output["text"]) for output in found["outputs"])
    (tmp_path / "schema.json").write_text('{"type": "array", "items": {"type": "boolean"}, "maxItems": 3}')
    found = document(capsys, "generate", checkpoint, "v = ", "--json-schema", tmp_path / "schema.json")
    assert isinstance(json.loads(found["outputs"][0]["text"]), list)
    whole = document(capsys, "generate", checkpoint, "q", "--seed", 2, "--max-tokens", 30)["outputs"][0]["text"]
    cut = document(capsys, "generate", checkpoint, "q", "--seed", 2, "--max-tokens", 30, "--stop", whole[5:7])
    assert cut["outputs"][0]["text"] == whole[: whole.find(whole[5:7])] and cut["outputs"][0]["finish"] == "stop"


def test_chat(checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("Hi\nAnd?\n/reset\nHi\n/quit\nno\n"))
    assert main(["chat", str(checkpoint), "--temperature", "0", "--max-tokens", "6", "--json"]) == 0
    turns = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [turn["user"] for turn in turns] == ["Hi", "And?", "Hi"]
    assert turns[0] == turns[2] and turns[1]["prompt_tokens"] > turns[0]["prompt_tokens"]
    assert turns[0]["assistant"].startswith(
        greedy(checkpoint, b"User: Hi\n\nAssistant:", 6).decode(errors="replace")[:1]
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--temperature", "-1"], "--temperature -1.0: must be from 0 to 100"),
        (["--top-p", "nan"], "--top-p nan: must be a finite number"),
        (["--max-tokens", "0"], "--max-tokens 0: must be 1 or more"),
        (["--max-tokens", "256"], "exceed the model's context of 256"),
        (["--n", "0"], "--n 0 must be from 1 to 4096"),
        (["--n", "1000000000"], "--n 1000000000 must be from 1 to 4096"),
        (["--regex", "("], "regular expression: unclosed group"),
        (["--json-schema", "/nowhere"], "generate: --json-schema /nowhere: No such file"),
        (["--stop", ""], "--stop: a string is empty; it must have 1 to 1024 characters"),
        ([*["--stop", "a"] * 17], "--stop: 17 strings; at most 16"),
        (["--strategy", "budget", "--think-end", ""], "--think-end: is empty"),
        (["--length-penalty", "2"], "--length-penalty is of --strategy beam, and this is plain"),
        (["--think-most", "9"], "--think-most is of --strategy budget, and this is plain"),
        (["--strategy", "best-of", "--think-end", "x"], "--think-end is of --strategy budget, and this is best-of"),
        (["--strategy", "budget", "--length-penalty", "2"], "--length-penalty is of --strategy beam"),
        (["--answer", "[0-9]"], "--answer REGEX and --strategy majority need each other"),
        (["--memory", "lots"], "is no size such as 512M"),
        (["--memory", "1K"], "memory of 1024 bytes"),
        (["--device", "cuda:99"], "--device cuda:99: "),
        (["--memory", "9999999G"], "bytes (--memory) is more than the"),
        (["--threads", "0"], "--threads 0 must be from 1 to 1024"),
        (["--threads", "100000000"], "--threads 100000000 must be from 1 to 1024"),
        (["--strategy", "beam", "--top-k", "3"], "beam draws nothing: --top-k would change nothing"),
        (["--strategy", "beam", "--draft", "ngram"], "beam draws nothing: --draft would change nothing"),
        (["--strategy", "beam", "--length-penalty", "nan"], "--length-penalty nan must be a finite number"),
    ],
)
def test_mistakes(checkpoint: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    try:
        code = main(["generate", str(checkpoint), "a", *arguments])
    except SystemExit as exit:
        code = int(str(exit.code))
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and said in err and err.count("\n") == 1


def test_folders_without_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = DecoderModel(Dense().build(32, 300, 16))
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    save_model(tmp_path / "wordless", model, "a test")
    for folder, said in ((tmp_path / "wordless", "its 300 tokens are not bytes"), (tmp_path, "holds neither")):
        for verb in (["generate", str(folder), "a"], ["serve", str(folder)], ["chat", str(folder)]):
            assert main(verb) == 2
            assert said in capsys.readouterr().err


def test_input_that_is_no_text(checkpoint: Path) -> None:
    line = [sys.executable, "-m", "isoflop.cli.main", "generate", str(checkpoint), "-", "--max-tokens", "3"]
    ran = subprocess.run(line, input=b"\xff", capture_output=True, timeout=120)
    assert ran.returncode == 2 and b"standard input is not UTF-8" in ran.stderr


def test_strategies(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("generate", checkpoint, "1 + 1 =", "--seed", 1, "--max-tokens", 8)
    best = document(capsys, *asked, "--strategy", "best-of", "--n", 4)
    assert best["text"] == best["tries"][0]["text"] and len(best["tries"]) == 4
    voted = document(capsys, *asked, "--strategy", "majority", "--n", 4, "--answer", "(?s).")
    assert 1 <= voted["votes"] <= 4 and voted["text"] in voted["likeliest"]["text"]
    beams = document(capsys, *asked, "--strategy", "beam", "--n", 3)["beams"]
    assert len(beams) == 3 and beams[0]["logprob"] >= beams[2]["logprob"]
    thought = document(capsys, *asked, "--strategy", "budget", "--think-most", 10)
    assert thought["thinking_tokens"] <= 10 and len(thought["answer"]["tokens"]) <= 8
    answer = thought["answer"]["text"]
    cut = document(capsys, *asked, "--strategy", "budget", "--think-most", 10, "--stop", answer[1])
    assert cut["thinking"] == thought["thinking"] and cut["answer"]["text"] == answer[: answer.find(answer[1])]
    assert main([str(a) for a in (*asked, "--strategy", "budget", "--think-most", 9)]) == 0
    assert "Final answer:" in capsys.readouterr().out
    for more in (["majority"], ["beam", "--stop", "a"], ["budget", "--n", "2"], ["best-of", "--answer", "a"]):
        assert main([str(a) for a in (*asked, "--strategy", *more)]) == 2
    capsys.readouterr()


def test_a_checkpoint_with_its_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte pairs, end tokens of a turn, and a chat template of its own."""
    files = tmp_path / "files"
    files.mkdir()
    text = b"the turn of the user is the turn of the user " * 50
    (files / "tokenizer.json").write_text(train_byte_pair([text], 270).json)
    (files / "generation_config.json").write_text('{"eos_token_id": [0, 5]}')
    (files / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    model = DecoderModel(Dense().build(32, 270, 128))
    initialize(model, 0, Recipe(lr=1e-3, batch=1))
    save_model(tmp_path / "pairs", model, "a test", files, special_tokens={"bos_token_id": 0, "eos_token_id": 0})
    monkeypatch.setattr("sys.stdin", io.StringIO("the user\n"))
    assert main(["chat", str(tmp_path / "pairs"), "--max-tokens", "4", "--json"]) == 0
    turn = json.loads(capsys.readouterr().out)
    rendered = open_vocabulary(tmp_path / "pairs", 270).encode("<user>the user<assistant>")
    assert turn["prompt_tokens"] == len(rendered) < len("<user>the user<assistant>")
    assert open_vocabulary(tmp_path / "pairs", 270).end_tokens == (0, 5)
    found = document(capsys, "generate", tmp_path / "pairs", "the turn", "--n", 2, "--json-schema", _schema(tmp_path))
    assert all(json.loads(output["text"]) in ("the turn", "the user") for output in found["outputs"])


def _schema(folder: Path) -> Path:
    (folder / "schema.json").write_text('{"enum": ["the turn", "the user"]}')
    return folder / "schema.json"


@pytest.mark.parametrize(
    ("redirection", "code", "told"), [("<&-", 2, "standard input is closed"), (">&- x", 1, "standard output is closed")]
)
def test_closed_descriptors(checkpoint: Path, redirection: str, code: int, told: str) -> None:
    command = f"exec {sys.executable} -m isoflop.cli.main generate {checkpoint} --max-tokens 2 {redirection}"
    done = subprocess.run(command, shell=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
    assert done.returncode == code and told in done.stderr and done.stderr.count("\n") == 1


def test_a_reader_who_leaves_is_no_mistake(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "isoflop.cli.main", "generate", str(checkpoint), "x", "--max-tokens", "200"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
