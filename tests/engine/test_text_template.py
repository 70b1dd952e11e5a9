"""Chat templates: Transformers' rendering, and templates that mean harm."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from isoflop.engine.template import Message, Template, open_template

TURNS = [
    Message("system", "Be <brief>."),
    Message("user", " é "),
    Message("assistant", "Yes?"),
    Message("user", "x"),
]
CHATML = """{%- for message in messages %}
    {%- if loop.index0 > 9 %}{% break %}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message.content | trim + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
{{ {"a": "é<"} | tojson }} {{ bos_token }}
"""


@pytest.fixture
def made() -> Iterator[list[Template]]:
    templates: list[Template] = []
    yield templates
    for template in templates:
        template.close()


def of(made: list[Template], source: str | None) -> Template:
    made.append(Template(source, {"bos_token": "<s>"}))
    return made[-1]


def test_as_transformers(made: list[Template]) -> None:
    conversation = [{"role": turn.role, "content": turn.content} for turn in TURNS]
    theirs, _ = render_jinja_template([conversation], chat_template=CHATML, add_generation_prompt=True, bos_token="<s>")
    template = of(made, CHATML)
    assert template.render(TURNS) == theirs[0]
    started = time.perf_counter()
    for _ in range(20):
        template.render(TURNS)
    assert time.perf_counter() - started < 2  # one process for all


def test_base_models(made: list[Template]) -> None:
    template = of(made, None)
    assert template.render(TURNS[1:]) == "User: é\n\nAssistant: Yes?\n\nUser: x\n\nAssistant:"
    assert template.stops == ("\nUser:",)
    with pytest.raises(ValueError, match="there are none"):
        template.render([])


HOSTILE = {
    "python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals": "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "mutation": "{{ messages.append(1) }}",
    "loop": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "number": "{{ 9 ** (9 ** 9) }}",
    "memory": "{{ ('a' * 99999999) * 99999 }}",
    "output": "{% for a in range(99999) %}{{ 'a' * 999 }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "file": "{% include '/etc/passwd' %}",
    "syntax": "{% for %}",
    "refusal": "{{ raise_exception('roles must alternate') }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(made: list[Template], name: str) -> None:
    template = of(made, HOSTILE[name])
    with pytest.raises(ValueError, match="the chat template failed: ") as told:
        template.render(TURNS, patience_s=0.5)
    if name == "refusal":
        assert "roles must alternate" in str(told.value)
    template.source = "{{ messages[0].content }}"
    assert template.render(TURNS) == "Be <brief>."  # and the next one is served


def test_where_templates_lie(tmp_path: Path, made: list[Template]) -> None:
    assert open_template(tmp_path).source is None
    config = {"chat_template": "{{ bos_token }}", "bos_token": {"content": "<b>"}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    made.append(open_template(tmp_path))
    assert made[0].render(TURNS) == "<b>"
    several = [{"name": "tool", "template": "t"}, {"name": "default", "template": "d"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": several}))
    assert open_template(tmp_path).source == "d"
    (tmp_path / "chat_template.jinja").write_text("own file")
    assert open_template(tmp_path).source == "own file"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ValueError, match="is not UTF-8"):
        open_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("a" * (1 << 19))
    with pytest.raises(ValueError, match="a template has at most"):
        open_template(tmp_path)
