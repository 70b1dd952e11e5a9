"""A process that renders Jinja templates which nobody trusts: a JSON document a line in, one a line out.

python -m isoflop.engine.render
    out  {}, once it is ready
    in   {"template": "...", "variables": {...}}
    out  {"text": "..."} or {"error": "..."}

Defence in depth: jinja2's immutable sandbox denies Python's internals; the process has bounded memory and processor
time, opens no file and starts no process; its parent ends it where an answer takes too long.
"""

import datetime
import json
import resource
import sys
from typing import Any, NoReturn

MEMORY = 512 << 20  # bytes of address space
PROCESSOR_S = 600  # in its whole life
MOST_TEXT = 8 << 20  # characters


def environment() -> Any:
    """The sandbox with what templates of Hugging Face may use."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    sandbox = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    sandbox.filters["tojson"] = _to_json
    sandbox.globals["raise_exception"] = _raise
    sandbox.globals["strftime_now"] = lambda format: datetime.datetime.now().strftime(format)
    return sandbox


def _to_json(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)


def _raise(message: str) -> NoReturn:
    raise ValueError(message)


def render(sandbox: Any, line: str) -> dict[str, str]:
    """The answer to one line."""
    try:
        asked = json.loads(line)
        text = sandbox.from_string(asked["template"]).render(**asked["variables"])
        if len(text) > MOST_TEXT:
            return {"error": f"it gave {len(text)} characters; at most {MOST_TEXT} are taken"}
        return {"text": text}
    except Exception as error:  # of a stranger's program: any
        return {"error": f"{type(error).__name__}: {error}"[:500]}


def main() -> None:
    """Answer until standard input ends."""
    sandbox = environment()
    for source in ("{{ x | tojson }}{{ strftime_now('%Y') }}", "{{ raise_exception('') }}"):  # files are opened now
        render(sandbox, json.dumps({"template": source, "variables": {"x": ["\u00e9"]}}))
    for limit, value in (
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_CPU, PROCESSOR_S),
        (resource.RLIMIT_NOFILE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    print("{}", flush=True)
    for line in sys.stdin:
        print(json.dumps(render(sandbox, line)), flush=True)


if __name__ == "__main__":
    main()
