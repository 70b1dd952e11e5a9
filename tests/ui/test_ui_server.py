"""The server: whom it answers, what an address may name, and addresses as questions."""

import http.client
import json
import socket
import subprocess
import sys
from typing import Any
from urllib.parse import urlencode, urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from isoflop.cli.main import main
from isoflop.decide.question import (
    FAMILIES,
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
from isoflop.ui.address import command_line, query_of, question_of

AMOUNTS = st.floats(1e-3, 1e30)


def get(address: str, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    """A request with headers of one's own."""
    host = urlsplit(address).netloc
    connection = http.client.HTTPConnection(host, timeout=20)
    connection.request(method, path, headers={"Host": host, **{k.replace("_", "-"): v for k, v in headers.items()}})
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, {name.lower(): value for name, value in response.getheaders()}, body


def asked(address: str, **options: str) -> Any:
    status, _, body = get(address, f"/api/plan?{urlencode(options)}")
    assert status == 200
    return json.loads(body)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    """Any question that can be put, whether or not it has an answer."""
    kind = draw(st.sampled_from([Flops, DeviceHours, Dollars, Deadline, QualityOf, TargetLoss]))
    hardware = draw(st.sampled_from(["H100-SXM5-80GB", "GB200 (per GPU)"]))
    names = st.lists(st.sampled_from([*FAMILIES, "llama-3.1-8b"]), min_size=1, max_size=4, unique=True)
    laws = st.lists(st.sampled_from(["hoffmann-2022", "besiroglu-2024"]), min_size=1, max_size=2, unique=True)
    unique = draw(st.none() | AMOUNTS)
    return Question(
        goal=kind(draw(AMOUNTS)),
        laws=tuple(LawChoice(name=name, weight=draw(st.sampled_from([1.0, 0.3]))) for name in draw(laws)),
        families=tuple(draw(names)),
        hardware=hardware,
        devices=draw(st.integers(1, 10**6)),
        price=draw(st.sampled_from([None, "2.5@2026-01", "2,3,4@2026-01"])),
        unique_tokens=unique,
        most_repeats=None if unique is None else draw(st.none() | st.floats(1, 100)),
        served=Served(
            tokens=draw(st.just(0.0) | AMOUNTS),
            context=draw(st.integers(2, 10**6)),
            prompt_share=draw(st.floats(0.01, 0.99)),
            latency_ms=draw(st.none() | AMOUNTS),
            weights=draw(st.sampled_from(["bf16", "fp8", "int4"])),
        ),
        serve_memory_gib=draw(st.none() | AMOUNTS),
        context=draw(st.integers(1, 10**6)),
        count=draw(st.sampled_from(["exact", "6nd"])),
        within=draw(st.floats(1e-4, 0.5)),
        level=draw(st.floats(0.1, 0.99)),
    )


@given(question=questions())
@settings(max_examples=60)
def test_a_question_comes_back_from_its_address(question):
    assert question_of(query_of(question)) == question


@given(options=st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), max_size=4))
@settings(max_examples=60)
def test_any_address_is_a_question_or_one_line(options):
    assert command_line(options).startswith("isoflop plan")
    try:
        question_of(options)
    except ValueError as mistake:
        assert str(mistake)
        assert "usage" not in str(mistake)


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:1", 200),
        ("localhost", 200),
        ("[::1]:80", 200),
        ("evil.example", 421),
        ("127.0.0.1.evil.example:80", 421),
        ("", 421),
    ],
)
def test_only_this_machines_names_are_answered(address, host, status):
    assert get(address, "/", Host=host)[0] == status


def test_other_sites_may_link_here_and_not_ask(address):
    assert get(address, "/?flops=1e22", Sec_Fetch_Site="cross-site")[0] == 200
    for path in ("/api/plan?flops=1e22", "/report.html", "/page/page.js"):
        assert get(address, path, Sec_Fetch_Site="cross-site")[0] == 403
        assert get(address, path.split("?")[0], Sec_Fetch_Site="same-site")[0] == 403


def test_nothing_but_a_query_is_taken(address):
    assert get(address, "/api/plan", method="POST")[0] == 405
    assert get(address, "/api/plan?flops=" + "1" * 9000)[0] == 414
    assert get(address, "/page/../server.py")[0] == 404
    assert get(address, "/page/index.html")[0] == 404
    assert get(address, "/docs")[0] == 404


def test_the_page_is_held_to_its_own_parts(address):
    _, headers, body = get(address, "/")
    assert "default-src 'none'" in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "server" not in headers
    assert b"{families}" not in body
    assert b"H100-SXM5-80GB" in body


@pytest.mark.parametrize(
    ("options", "flag", "word"),
    [
        ({"flops": "1e22", "law": "/etc/passwd"}, "law", "no published law"),
        ({"flops": "1e22", "law": "../runs.csv*2"}, "law", "no published law"),
        ({"flops": "1e22", "family": "./config.json"}, "family", "neither"),
        ({"flops": "1e22", "family": "dense,nonesuch"}, "family", "neither"),
        ({"flops": "1e22", "figure": "plan.html"}, "figure", "is no option"),
        ({"flops": "-1"}, "flops", "positive"),
        ({"flops": "many"}, "flops", "many"),
        ({"flops": "1e22", "dollars": "3"}, "dollars", "not allowed with"),
        ({"context": "4096"}, "flops", "required"),
        ({"flops": "1e22", "devices": "8"}, "devices", "--hardware"),
        ({"dollars": "1e6"}, "dollars", "--hardware"),
        ({"flops": "1e22", "repeats": "4"}, "repeats", "--unique-tokens"),
    ],
)
def test_a_mistake_names_its_option(address, options, flag, word):
    told = asked(address, **options)
    assert told["kind"] == "wrong"
    assert told["flag"] == flag
    assert word in told["line"]
    assert "\n" not in told["line"]


def test_a_mistake_in_a_report_is_one_line(address):
    status, headers, body = get(address, "/report.html?flops=-1")
    assert status == 400
    assert headers["content-type"].startswith("text/plain")
    assert b"positive" in body


def test_names_are_shown_and_not_obeyed(address):
    told = asked(address, flops="1e22", family="<img src=x onerror=alert(1)>")
    assert told["kind"] == "wrong"
    assert "<img" in told["line"]  # the page sets it as text
    told = asked(address, flops="1e22", law="llama-3-2024")
    assert told["kind"] == "answer"
    assert told["charts"][0]["panels"] == []
    assert told["charts"][0]["absent"]


def test_a_law_of_ones_own_is_named_at_the_start(tmp_path):
    table = tmp_path / "runs.csv"
    table.write_text("n,d,loss\n1,2,3\n")
    query = [("flops", "1e20"), ("law", str(table))]
    assert question_of(query, [str(table)]).laws[0].name == str(table)
    with pytest.raises(ValueError, match="named at the start"):
        question_of(query)


def test_the_verb_says_what_is_wrong(capsys):
    assert main(["ui", "--port", "70000"]) == 2
    assert "--port 70000" in capsys.readouterr().err
    assert main(["ui", "no/such/runs.csv", "--no-open"]) == 2
    assert "no/such/runs.csv: no such file" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "isoflop", "ui", "--no-open", "--port", port]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "--port 0 takes a free one" in done.stderr
    assert len(done.stderr.splitlines()) == 1
