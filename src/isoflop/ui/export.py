"""The page's answer as a report: one file that works offline."""

from html import escape
from importlib.resources import files

from isoflop.decide.question import Question
from isoflop.report.page import document, figure
from isoflop.ui.answer import answer

TITLE = "Isoflop: what to train"


def report(question: Question) -> str:
    """The HTML page. Raises ValueError without plotly, and as `isoflop.ui.answer.answer`."""
    found = answer(question)
    drawn = {chart.key: figure(chart) for chart in found.charts}
    told = found.sections
    head = f'<header><h1>{TITLE}</h1><p class="answer">{escape(found.plan.sentence)}</p></header>{told["facts"]}'
    parts = [head, drawn["isoflop"], told["candidates"], told["points"], told["levers"], drawn["lifetime"]]
    parts += [drawn.get("equal-loss", ""), *(told[name] for name in ("memory", "serving", "reasons", "built"))]
    parts.append(f"<h3>The same from a command line</h3><pre>{escape(found.plan.command)}</pre>")
    style = files("isoflop.ui").joinpath("page/report.css").read_text(encoding="utf-8")
    return document(TITLE, f"<style>{style}</style>{''.join(parts)}", found.charts)
