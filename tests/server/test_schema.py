"""The API against its own OpenAPI document: schemathesis' systematic and random requests, valid and not, a bounded
number. What a valid document asks may still not fit the model (its tokens, its context, a schema that means nothing),
so that 400 is an answer to it; everything else that schemathesis knows is checked."""

import json
import subprocess
import sys
from pathlib import Path

from serving import Served, serving


def test_schemathesis(checkpoint: Path, tmp_path: Path) -> None:
    with serving(checkpoint, "--memory", "8M", "--token", "abc", "--context", "48") as guarded:
        line = [
            *(str(Path(sys.executable).with_name("schemathesis")), "run", guarded.base + "/openapi.json"),
            *("--header", "Authorization: Bearer abc", "--checks", "all"),
            *("--exclude-checks", "positive_data_acceptance", "--phases", "coverage,fuzzing", "--max-examples", "2"),
            *("--generation-deterministic", "--suppress-health-check", "all", "--no-color"),
        ]
        ran = subprocess.run(line, capture_output=True, text=True, timeout=240, cwd=tmp_path)
        assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
        right = {"Authorization": "Bearer abc"}
        metrics = guarded.ask("GET", "/metrics", headers=right)[1]
        assert "isoflop_live_requests 0.0" in metrics and 'status="500"' not in metrics


def test_the_document(server: Served) -> None:
    status, document = server.ask("GET", "/openapi.json")
    assert status == 200 and document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{name}",
        "/tokenize",
        "/detokenize",
        "/health",
        "/metrics",
    }
    assert "422" not in json.dumps(document["paths"])
