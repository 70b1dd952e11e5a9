"""Two ladders side by side: runs and frontiers with bands, and the compute multiplier against compute."""

from pathlib import Path

from isoflop.atomic import write_atomically
from isoflop.laws.forms import Array
from isoflop.laws.multiplier import Comparison, Point, Side
from isoflop.report.chart import FAMILY_COLOURS, LAW_COLOUR, Axis, Chart, Panel, Series, power, short
from isoflop.report.common import percent
from isoflop.report.images import DPI, FORMATS, draw, require_matplotlib
from isoflop.report.page import document, figure

COLOURS = FAMILY_COLOURS[0], FAMILY_COLOURS[1]
COMPUTE = "training compute C, FLOPs"


def comparison_chart(told: Comparison, sides: tuple[Side, Side], names: tuple[str, str], loss: str) -> Chart:
    """Both ladders with their laws, and how much more compute A needs, each with its interval."""
    points = told.curve or [told.at]
    between = f"how much more compute {names[0]} needs to reach the loss of {names[1]}"
    return Chart(
        "ladders",
        f"{names[0]} and {names[1]}",
        f"Left: runs, and the lowest loss each law allows at a compute, with {percent(told.level)} intervals of that"
        f" expected loss. Right: {between}, with its {percent(told.level)} interval; where the band holds 1, the"
        " ladders are within noise.",
        (_losses(points, sides, names, loss), _multipliers(told, points, names)),
    )


def write_comparison(path: Path, chart: Chart, words: str) -> None:
    """Write the chart as .html (self-contained), .png, .svg or .pdf. ValueError for other endings."""
    if path.suffix == ".html":
        page = document(
            chart.title, f"<h1>{_escaped(chart.title)}</h1><p>{_escaped(words)}</p>{figure(chart)}", [chart]
        )
        write_atomically(path, page.encode())
        return
    if path.suffix.removeprefix(".") not in FORMATS:
        raise ValueError(f"--figure {path}: must end in .html, {', '.join('.' + name for name in FORMATS)}")
    require_matplotlib()
    draw(chart).savefig(path, dpi=DPI)


def _escaped(text: str) -> str:
    from html import escape

    return escape(text)


def _losses(points: list[Point], sides: tuple[Side, Side], names: tuple[str, str], loss: str) -> Panel:
    x = tuple(point.flops for point in points)
    series = []
    for which, side, name, colour in zip("ab", sides, names, COLOURS, strict=True):
        low, mid, high = (
            tuple(getattr(point, f"{end}_{which}") for point in points) for end in ("low", "loss", "high")
        )
        series.append(Series(f"{name}: law", "band", colour, x, low=low, high=high))
        series.append(Series(f"{name}: law", "line", colour, x, mid))
        flops: Array = 6 * side.n * side.d
        notes = tuple(
            f"{name}\nN {short(float(n))} · D {short(float(d))} · C {power(float(6 * n * d))} FLOPs\nloss {value:.4f}"
            for n, d, value in zip(side.n, side.d, side.loss, strict=True)
        )
        runs = tuple(map(float, flops)), tuple(map(float, side.loss))
        series.append(Series(f"{name}: runs", "points", colour, *runs, size=7, notes=notes))
    return Panel(Axis(COMPUTE, log=True, unit="power"), Axis(loss), tuple(series))


def _multipliers(told: Comparison, points: list[Point], names: tuple[str, str]) -> Panel:
    known = [point for point in points if point.multiplier is not None]
    ends = [(p.flops, p.low, p.high) for p in known if p.low is not None and p.high is not None]
    x = tuple(point.flops for point in known)
    y = tuple(float(point.multiplier or 0) for point in known)
    every = tuple(point.flops for point in points)
    series = [Series("equal", "line", LAW_COLOUR, every, tuple(1.0 for _ in every), dash="dash", width=1.5)]
    if ends:
        at, low, high = (tuple(map(float, column)) for column in zip(*ends, strict=True))
        series.append(Series("multiplier", "band", COLOURS[1], at, low=low, high=high))
    if known:
        series.append(Series("multiplier", "line+points", COLOURS[1], x, y, size=6))
    title = f"compute {names[0]} needs for {names[1]}'s loss, times"
    return Panel(Axis(COMPUTE, log=True, unit="power"), Axis(title), tuple(series))
