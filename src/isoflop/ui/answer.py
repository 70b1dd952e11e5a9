"""What the page shows of a question: the plan, its figures as plain data, its tables as HTML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from isoflop.decide.answer import NoPlan, Plan
from isoflop.decide.devices import cluster_of
from isoflop.decide.family_plan import family_plan, settled
from isoflop.decide.planner import plan
from isoflop.decide.question import Question
from isoflop.report.chart import Chart
from isoflop.ui import fragments
from isoflop.ui.address import Query, command_line, question_of
from isoflop.ui.figures import charts, colour_of
from isoflop.ui.memory import memory_of

_FLAG = re.compile(r"(?:one of the arguments )?--([a-z][a-z0-9-]*)")


@dataclass(frozen=True)
class Answer:
    """`sections`: HTML by the id of its place on the page."""

    plan: Plan
    charts: list[Chart]
    sections: dict[str, str]


def answer(question: Question) -> Answer:
    """Everything about a question. Raises as `isoflop.decide.planner.plan`."""
    told = plan(question)
    asked, cluster = settled(question), cluster_of(question)
    best = family_plan(asked, told.recommended.architecture.family, cluster)
    colours = {one.family: colour_of(one.family, question.families) for one in told.candidates}
    sections = {
        "facts": fragments.facts(told),
        "candidates": fragments.candidates(told.candidates, colours),
        "points": fragments.points(told),
        "levers": fragments.levers(told.levers),
        "memory": fragments.memory(memory_of(asked, best)),
        "serving": fragments.serving(told.serving),
        "reasons": fragments.reasons(told),
        "built": fragments.built(told),
    }
    return Answer(told, charts(told, best), sections)


def document(query: Query, files: Sequence[str]) -> dict[str, Any]:
    """The JSON document of a query: its `kind` is `answer`; `no` with the `line` that says what would have to change;
    or `wrong` with the `line` that says what would be valid, and the option it is about where there is one."""
    try:
        found = answer(question_of(query, files))
    except NoPlan as no:
        return {"kind": "no", "line": str(no), "command": command_line(query)}
    except ValueError as mistake:
        flag = _FLAG.match(str(mistake))
        return {
            "kind": "wrong",
            "line": str(mistake),
            "flag": None if flag is None else flag[1],
            "command": command_line(query),
        }
    drawn = [msgspec.to_builtins(chart) for chart in found.charts]
    told = {"kind": "answer", "plan": msgspec.to_builtins(found.plan), "command": found.plan.command}
    return {**told, "charts": drawn, "sections": found.sections}
