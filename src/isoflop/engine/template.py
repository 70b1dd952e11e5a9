"""A conversation as the text that a model continues.

A checkpoint's own Jinja template is a program from a stranger. It runs in jinja2's sandbox in a process of its own,
with bounded memory and time (isoflop.engine.render): no sandbox inside a process can bound a loop or a product.
"""

import json
import select
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from isoflop.data.plain_json import read_json
from isoflop.weights.folder import inside

FILE = "chat_template.jinja"
CONFIG = "tokenizer_config.json"
MOST_TEMPLATE = 1 << 18  # bytes
PATIENCE_S = 5.0  # for one conversation
START_S = 30.0  # for the process to start
PLAIN_STOPS = ("\nUser:",)


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """One turn of a conversation. `name`: of the speaker, for templates that tell it."""

    role: str
    content: str
    name: str | None = None


class Template:
    """How a model's conversations are written: by its own Jinja `source`, or, where it has none, as a transcript that a
    base model can go on with. `stops` end an answer besides the model's end tokens. One process serves all threads."""

    def __init__(self, source: str | None, variables: dict[str, str]) -> None:
        self.source, self._variables = source, variables
        self.stops = PLAIN_STOPS if source is None else ()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def render(self, messages: Sequence[Message], patience_s: float = PATIENCE_S) -> str:
        """The text up to where the assistant answers. Raises ValueError where the template refuses, fails or does not
        end in time."""
        if not messages:
            raise ValueError("messages: there are none; a conversation has at least one")
        if self.source is None:
            if any(message.name is not None for message in messages):
                raise ValueError("name: this model has no chat template of its own that could tell it")
            return "".join(f"{m.role.capitalize()}: {m.content.strip()}\n\n" for m in messages) + "Assistant:"
        turns = [msgspec.to_builtins(message) for message in messages]
        variables = self._variables | {"messages": turns, "add_generation_prompt": True}
        answer = self._ask({"template": self.source, "variables": variables}, patience_s)
        if "text" not in answer:
            raise ValueError(f"the chat template failed: {answer.get('error', 'no answer')}")
        return str(answer["text"])

    def close(self) -> None:
        """End the process, where there is one."""
        with self._lock:
            self._end()

    def _ask(self, question: dict[str, Any], patience_s: float) -> dict[str, Any]:
        line = json.dumps(question).encode() + b"\n"
        with self._lock:
            process = self._process
            if process is None or process.poll() is not None:
                process = self._start()
            threading.Thread(target=_write, args=(process, line), daemon=True).start()  # a pipe holds 64 KiB
            answer = _line(process, patience_s)
            if answer is None:
                self._end()
                raise ValueError(f"the chat template failed: it took over {patience_s:g} s or too much memory")
            return dict(json.loads(answer))

    def _start(self) -> "subprocess.Popen[bytes]":
        self._end()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "isoflop.engine.render"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # the terminal's Ctrl-C is the parent's
        )
        if _line(self._process, START_S) is None:
            self._end()
            raise ValueError("the chat template failed: the process that renders it did not start")
        return self._process

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()


def _write(process: "subprocess.Popen[bytes]", line: bytes) -> None:
    assert process.stdin is not None
    view = memoryview(line)
    try:
        while view:
            view = view[process.stdin.write(view) or 0 :]
    except (OSError, ValueError):  # it ended, and its reader sees that too
        return


def _line(process: "subprocess.Popen[bytes]", patience_s: float) -> bytes | None:
    """Its next line; None where it ends or takes longer."""
    assert process.stdout is not None
    deadline, parts = time.monotonic() + patience_s, b""
    while not parts.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        part = process.stdout.read(1 << 16) if ready else b""
        if not part:
            return None
        parts += part
    return parts


def open_template(folder: Path) -> Template:
    """The template of the model in a folder. Raises ValueError naming the file where it is damaged or too large."""
    config = read_json(inside(folder, CONFIG)) if (folder / CONFIG).exists() else {}
    config = config if isinstance(config, dict) else {}
    names = {key: _content(config.get(key)) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
    variables = {key: name for key, name in names.items() if name is not None}
    if (folder / FILE).exists():
        source: str | None = _read(inside(folder, FILE))
    else:
        source = _named(config.get("chat_template"))
    if source is not None and len(source) > MOST_TEMPLATE:
        raise ValueError(f"{folder}: a chat template of {len(source)} characters; at most {MOST_TEMPLATE} are read")
    return Template(source, variables)


def _read(file: Path) -> str:
    if file.stat().st_size > MOST_TEMPLATE:
        raise ValueError(f"{file}: {file.stat().st_size} bytes; a template has at most {MOST_TEMPLATE}")
    try:
        return file.read_text()
    except UnicodeDecodeError:
        raise ValueError(f"{file}: is not UTF-8 text") from None


def _named(value: Any) -> str | None:
    """The template itself, or the one named 'default' of several."""
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None


def _content(token: Any) -> str | None:
    value = token.get("content") if isinstance(token, dict) else token
    return value if isinstance(value, str) else None
