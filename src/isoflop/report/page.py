"""The report as one HTML page that needs nothing else: plotly.js, style and data are inside it."""

from html import escape
from pathlib import Path

import msgspec

from isoflop.atomic import write_atomically
from isoflop.report import tables
from isoflop.report.backtest import backtest_table
from isoflop.report.chart import Chart
from isoflop.report.figures import panels
from isoflop.report.load import Study, load
from isoflop.report.reproduce import reproduce
from isoflop.report.series import charts
from isoflop.report.style import SCRIPT, STYLE
from isoflop.report.timing import timing_table
from isoflop.report.words import headline, warnings

# The browser itself enforces that the page asks nothing of any other place.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

HINT = "Hover or tap for numbers; click a legend entry to hide it; drag to zoom, double-click to go back."


def write(study: Path) -> Path:
    """Write `report.html` into the study directory, atomically; returns its path. Errors as `build`."""
    page = build(study)
    path = study / "report.html"
    write_atomically(path, page.encode())
    return path


def build(study: Path) -> str:
    """The report of a study directory as HTML; the same directory gives the same text.

    Stages that have not run yet are said to be missing. ValueError where `study` is no study directory, where a file
    in it cannot be read, or where plotly is not installed.
    """
    found = load(study)
    drawn = charts(found)
    title = f"Isoflop study: {found.name}"
    return document(title, f"{_top(found, title)}\n{_figures(drawn)}\n{_sections(found, drawn)}", drawn)


def document(title: str, body: str, drawn: list[Chart]) -> str:
    """A whole page around a body that is HTML already, with what its figures need. ValueError without plotly."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n<link rel="icon" href="data:,">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n{_scripts(drawn)}\n"
        "</body>\n</html>\n"
    )


def _top(study: Study, title: str) -> str:
    answers = "".join(f'<p class="answer">{escape(sentence)}</p>' for sentence in headline(study))
    links = [("figures", "Figures"), ("forecasts", "Forecasts"), ("runs", "Runs"), ("law", "Law and certificate")]
    if len(study.families) > 1:
        links.insert(1, ("families", "Families compared"))
    items = "".join(f'<li><a href="#{anchor}">{text}</a></li>' for anchor, text in [*links, ("reproduce", "Reproduce")])
    nav = f'<nav aria-label="Sections"><ul>{items}</ul></nav>'
    return f"<header><h1>{escape(title)}</h1>{answers}</header>{_warnings(study)}{nav}"


def _warnings(study: Study) -> str:
    found = warnings(study)
    if not found:
        return ""
    items = "".join(f"<li>{escape(text)}</li>" for text in found)
    title = '<h2 id="warned">Before you rely on this</h2>'
    return f'<section class="warnings" aria-labelledby="warned">{title}<ul>{items}</ul></section>'


def _figures(drawn: list[Chart]) -> str:
    alone = [chart for chart in drawn if chart.key != "families"]
    return _section("figures", "Figures", f"<p>{HINT}</p>" + "".join(figure(chart) for chart in alone))


def figure(chart: Chart) -> str:
    """A figure with its caption and data; where there is nothing to draw, the reason."""
    heading = f"<h3>{escape(chart.title)}</h3>"
    if not chart.panels:
        return f'{heading}<p class="absent" id="figure-{chart.key}">{escape(chart.absent)}</p>'
    label = escape(f"{chart.title}. {chart.caption}", quote=True)
    parts = []
    for index, panel in enumerate(panels(chart)):
        name = f"{chart.key}-{index + 1}"
        parts.append(f'<div class="plot" id="{name}" role="img" aria-label="{label}">{NO_SCRIPT}</div>')
        parts.append(f'<script type="application/json" id="{name}-data">{_json(panel)}</script>')
    caption = f"<figcaption>{escape(chart.caption)}</figcaption>"
    return f'{heading}<figure id="figure-{chart.key}"><div class="panels">{"".join(parts)}</div>{caption}</figure>'


NO_SCRIPT = "<noscript>Figures need JavaScript; the tables below hold their numbers.</noscript>"


def _json(value: object) -> str:
    """JSON that cannot close its script element, whatever its strings hold."""
    return msgspec.json.encode(value).decode().replace("<", "\\u003c")


def _section(anchor: str, title: str, body: str) -> str:
    return (
        f'<section id="{anchor}" aria-labelledby="{anchor}-title"><h2 id="{anchor}-title">{title}</h2>{body}</section>'
    )


def _sections(study: Study, drawn: list[Chart]) -> str:
    parts = []
    if len(study.families) > 1:
        both = "".join(figure(chart) for chart in drawn if chart.key == "families")
        parts.append(_section("families", "Families compared", both + tables.family_levels(study)))
    parts.append(_section("forecasts", "Forecasts", _forecasts(study) + backtest_table(study)))
    runs = tables.runs(study) + timing_table(study) if study.rows else _absent("No run has finished yet.")
    parts.append(_section("runs", "Runs", runs))
    parts.append(_section("law", "Law and certificate", _laws(study)))
    parts.append(_section("reproduce", "Reproduce", reproduce(study)))
    return "\n".join(parts)


def _forecasts(study: Study) -> str:
    if study.targets:
        return tables.targets(study)
    if study.asked is not None and not study.asked:
        return _absent("No held-out run was asked for: [[targets]] in the study file names what to forecast.")
    return _absent("No held-out run has been forecast yet.")


def _laws(study: Study) -> str:
    fits = "".join(tables.law(fit) + tables.optima(fit) + tables.certificate(fit) for fit in study.laws.values())
    lost = "".join(_absent(f"No law for {family}: {reason}.") for family, reason in study.no_law.items())
    return fits + lost or _absent("No law has been fitted yet.")


def _absent(text: str) -> str:
    return f'<p class="absent">{escape(text)}</p>'


def _scripts(drawn: list[Chart]) -> str:
    if not any(chart.panels for chart in drawn):
        return ""
    return f"<script>{_plotly_js()}</script>\n<script>{SCRIPT}</script>"


def _plotly_js() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ValueError("report: the report needs plotly: pip install 'isoflop[report]'") from error
    source = str(get_plotlyjs())
    assert "</script" not in source.lower()
    return source
