"""Figure 2: loss against compute, the frontier and its band, and the forecasts."""

from collections.abc import Sequence

from isoflop.report.chart import (
    FORECAST_COLOUR,
    LAW_COLOUR,
    LOSS,
    Axis,
    Chart,
    Panel,
    Series,
    family_colours,
)
from isoflop.report.common import (
    NO_RUNS,
    bars,
    flops_axis,
    frontier_points,
    label,
    losses,
    note,
    optimum_note,
    percent,
    target_note,
)
from isoflop.report.load import Study
from isoflop.table import RunRow


def loss_against_compute(study: Study) -> Chart:
    """Every run's loss against its compute, with each law's compute-optimal frontier and band, and the forecasts."""
    title = "Loss against compute, and the compute-optimal frontier"
    if not study.done and not study.targets:
        return Chart("compute", title, "", absent=NO_RUNS)
    series = []
    for family, colour in family_colours(study.families).items():
        series += _frontier(study, family, colour)
        runs = [row for row in study.done if row.family == family and row.role == "fit"]
        if runs:
            series.append(_against_flops(study, label(study, family, "fitted runs"), colour, runs))
        series += _forecasts(study, family, colour)
    return Chart("compute", title, _compute_caption(study), (Panel(flops_axis(), Axis(LOSS), tuple(series)),))


def _compute_caption(study: Study) -> str:
    text = "Dots are the runs the law was fitted to; no run should lie clearly below the frontier."
    if study.laws:
        text += " The line is the loss to be expected at the best N and D that the fitted law knows for each compute."
    levels = {row.level for law in study.laws.values() for row in law.band if row.level is not None}
    if levels:
        text += f" The shaded band is its {percent(max(levels))} prediction interval, as wide as backtests ask for."
    if study.targets:
        text += " Circles with a bar are forecasts made before the run; stars are what was then measured."
    return text


def _against_flops(study: Study, name: str, colour: str, rows: Sequence[RunRow]) -> Series:
    x, y = tuple(row.flops_exact for row in rows), losses(rows)
    return Series(name, "points", colour, x, y, size=7, notes=tuple(note(study, row) for row in rows))


def _frontier(study: Study, family: str, colour: str) -> list[Series]:
    law = study.laws.get(family)
    if law is None:
        return []
    colour = colour if len(study.families) > 1 else LAW_COLOUR
    out = []
    edged = [(row.flops, row.low, row.high) for row in law.band if row.low is not None and row.high is not None]
    if edged:
        x, low, high = zip(*edged, strict=True)
        out.append(Series(label(study, family, "prediction interval"), "band", colour, x, low=low, high=high))
    points = frontier_points(study, law)
    x, y = tuple(point.flops for point in points), tuple(point.loss for point in points)
    notes = tuple(optimum_note(point) for point in points)
    return (
        [*out, Series(label(study, family, "compute-optimal frontier"), "line", colour, x, y, notes=notes)]
        if x
        else out
    )


def _forecasts(study: Study, family: str, colour: str) -> list[Series]:
    targets = [target for target in study.targets if target.family == family]
    if not targets:
        return []
    colour = colour if len(study.families) > 1 else FORECAST_COLOUR
    x = tuple(target.flops for target in targets)
    forecast = bars(label(study, family, "forecast"), colour, x, targets)
    known = [target for target in targets if target.measured is not None]
    if not known:
        return [forecast]
    measured = Series(
        label(study, family, "measured"),
        "points",
        colour,
        tuple(target.flops for target in known),
        tuple(float(target.measured or 0) for target in known),
        symbol="star",
        size=13,
        notes=tuple(target_note(target) for target in known),
    )
    return [forecast, measured]
