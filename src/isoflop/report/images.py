"""Charts as PNG and SVG files through matplotlib (the extra `figures`), for papers and slides."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isoflop.report.chart import Axis, Chart, Panel, Series, legend_heads, log_digits, tick_text

if TYPE_CHECKING:
    pass

FORMATS = ("png", "svg", "pdf")
MARKERS = {"circle": "o", "circle-open": "o", "diamond": "D", "star": "*", "cross": "x", "square-open": "s"}
DASHES = {"solid": "-", "dash": "--", "dot": ":"}
PANEL_INCHES = (6.0, 4.6)
DPI = 160
LEGEND_LIMIT = 14  # beyond this many entries a legend is no help in print


def export_figures(study: Path, folder: Path, formats: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Draw every figure of the report of `study` into `folder`; returns the files.

    ValueError for an unknown format or where matplotlib is not installed.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise ValueError(f"report: cannot export {unknown[0]!r}: the formats are {', '.join(FORMATS)}")
    require_matplotlib()
    from isoflop.report.load import load
    from isoflop.report.series import charts

    folder.mkdir(parents=True, exist_ok=True)
    return [path for chart in charts(load(study)) if chart.panels for path in _save(chart, folder, formats)]


def require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError("report: exporting figures needs matplotlib: pip install 'isoflop[figures]'") from error


def _save(chart: Chart, folder: Path, formats: Sequence[str]) -> list[Path]:
    import matplotlib as mpl

    paths = [folder / f"{chart.key}.{name}" for name in formats]
    # A fixed salt and no date: the same study gives the same SVG. No math mode: labels are data.
    with mpl.rc_context({"svg.hashsalt": "isoflop", "text.parse_math": False, "font.size": 9}):
        figure = draw(chart)
        for path in paths:
            figure.savefig(path, dpi=DPI, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def draw(chart: Chart) -> Any:
    """The chart as a matplotlib Figure, outside pyplot's global state."""
    from matplotlib.figure import Figure

    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * len(chart.panels), height), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(chart.panels), squeeze=False)[0], chart.panels, strict=True):
        _draw_panel(axes, panel)
    figure.suptitle(chart.title)
    return figure


def _draw_panel(axes: Any, panel: Panel) -> None:
    heads = legend_heads(panel)
    for index, series in enumerate(panel.series):
        _draw_series(axes, series, series.name if index in heads else None)
    if panel.x.log:
        axes.set_xscale("log")
    if panel.y.log:
        axes.set_yscale("log")
    _draw_axis(axes.xaxis, panel.x)
    _draw_axis(axes.yaxis, panel.y)
    axes.grid(True, alpha=0.25)
    if 0 < len(heads) <= LEGEND_LIMIT:
        axes.legend(fontsize=7, frameon=True, framealpha=0.8)


def _draw_series(axes: Any, series: Series, label: str | None) -> None:
    if series.kind == "band":
        axes.fill_between(series.x, series.low, series.high, color=series.colour, alpha=0.18, linewidth=0, label=label)
        return
    style: dict[str, Any] = {"color": series.colour, "label": label, "linewidth": series.width * 0.75}
    style["linestyle"] = "none" if series.kind == "points" else DASHES[series.dash]
    if series.kind == "steps":
        style["drawstyle"] = "steps-post"
    if "points" in series.kind:
        style |= {"marker": MARKERS[series.symbol], "markersize": series.size * 0.7}
        style |= {"markerfacecolor": "none"} if series.symbol.endswith("-open") else {}
    axes.errorbar(series.x, series.y, yerr=_errors(series), capsize=3, **style)


def _errors(series: Series) -> list[list[float]] | None:
    if series.low is None or series.high is None:
        return None
    below = [max(y - low, 0.0) for low, y in zip(series.low, series.y, strict=True)]
    above = [max(high - y, 0.0) for high, y in zip(series.high, series.y, strict=True)]
    return [below, above]


def _draw_axis(target: Any, axis: Axis) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    target.set_label_text(axis.title)
    if axis.log:
        low, high = target.get_view_interval()
        target.set_major_locator(LogLocator(subs=log_digits(high / low)))
        target.set_minor_formatter(NullFormatter())
    target.set_major_formatter(FuncFormatter(lambda value, _: tick_text(axis, value)))
