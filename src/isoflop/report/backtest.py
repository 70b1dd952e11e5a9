"""Figure 6 and its table: how forecasts of each family's dearer runs from its cheaper ones came out."""

from html import escape

from isoflop.report.chart import LAW_COLOUR, Axis, Chart, Panel, Series, family_colours
from isoflop.report.common import label, percent
from isoflop.report.load import Json, Study, as_dict, number
from isoflop.report.tables import table

FURTHEST = 2.0  # times the start of the last band, which has no end: where it is drawn
APART = 1.05  # bars of several families stand side by side
CAPTION = (
    "The study's own backtest: laws of the cheaper runs, tried on the dearer ones. Points are the mean signed error "
    "of the forecasts that reach so far beyond what they were fitted to, bars the mean interval about it, crosses the "
    "same error of the plain law. A bar that reaches zero is a forecast that mostly held; points on one side of zero "
    "are a bias that the forecast of the held-out run may share."
)
HEAD = ("family", "times the fitted compute", "forecasts", "signed error", "error", "held", "interval", "plain law")


def bands(study: Study, family: str) -> list[Json]:
    """A family's errors by extrapolation factor, nearest first."""
    law = study.laws.get(family)
    found = law.backtest.get("bands") if law is not None else None
    return [as_dict(band) for band in found] if isinstance(found, list) else []


def backtest_chart(study: Study) -> Chart | None:
    """Signed error against extrapolation; None where no family has enough runs for a hold-out."""
    series = []
    for place, (family, colour) in enumerate(family_colours(study.families).items()):
        series += _series(study, family, colour, APART**place)
    if not series:
        return None
    x = [value for one in series for value in one.x]
    zero = Series("", "line", LAW_COLOUR, (min(x), max(x)), (0.0, 0.0), dash="dash", width=1.5)
    axes = Axis("compute over the largest fitted", log=True, unit="short"), Axis("forecast above measured, %")
    title = "Backtest: forecasts of the dearer runs from the cheaper ones"
    return Chart("backtest", title, CAPTION, (Panel(*axes, (zero, *series)),))


def _series(study: Study, family: str, colour: str, shift: float) -> list[Series]:
    ours, plain = (_points(study, family, error, shift) for error in ("bias", "plain_bias"))
    out = []
    if ours:
        x, y, half, notes = zip(*ours, strict=True)
        low, high = (tuple(b + side * h for b, h in zip(y, half, strict=True)) for side in (-1, 1))
        name = label(study, family, "calibrated forecast")
        out.append(Series(name, "points", colour, x, y, low, high, size=9, notes=notes))
    if plain:
        x, y, _, notes = zip(*plain, strict=True)
        out.append(Series(label(study, family, "plain law"), "points", colour, x, y, symbol="cross", notes=notes))
    return out


def _points(study: Study, family: str, error: str, shift: float) -> list[tuple[float, float, float, str]]:
    """Extrapolation, mean signed error and half an interval in per cent, and a note: of every band that has them."""
    points = []
    for band in bands(study, family):
        errors = as_dict(band.get("errors"))
        bias, width = number(errors.get(error)), number(errors.get("width"))
        if bias is not None:
            points.append((_middle(band) * shift, 100 * bias, 50 * (width or 0.0), _note(band)))
    return points


def _middle(band: Json) -> float:
    above, up_to = number(band.get("above")) or 1.0, number(band.get("up_to"))
    return float((above * (up_to or above * FURTHEST**2)) ** 0.5)


def _span(band: Json) -> str:
    above, up_to = number(band.get("above")) or 1.0, number(band.get("up_to"))
    return f"{above:g} to {up_to:g}" if up_to else f"over {above:g}"


def _note(band: Json) -> str:
    errors = as_dict(band.get("errors"))
    held = number(errors.get("coverage"))
    return f"{_span(band)} times the fitted compute\n{errors.get('forecasts')} forecasts" + (
        "" if held is None else f", {percent(held)} inside their interval"
    )


def backtest_table(study: Study) -> str:
    """Every family's errors by extrapolation factor and pooled; a sentence for each family that has none."""
    body, absent = [], []
    for family, law in study.laws.items():
        rows = [(_span(band), as_dict(band.get("errors"))) for band in bands(study, family)]
        if rows:
            body += [_row(family, *row) for row in [*rows, ("all hold-outs", as_dict(law.backtest.get("pooled")))]]
        elif law.backtest.get("why"):
            absent.append(f'<p class="absent">No backtest of {escape(family)}: {escape(str(law.backtest["why"]))}.</p>')
    caption = "Forecasts of the dearer runs from the cheaper ones, by how far they reach; errors are of the loss"
    return (table(caption, HEAD, body, range(1, len(HEAD)), "wide") if body else "") + "".join(absent)


def _row(family: str, span: str, errors: Json) -> list[str]:
    def cell(name: str, form: str) -> str:
        value = number(errors.get(name))
        return "–" if value is None else f"{100 * value:{form}} %"

    return [
        *(escape(family), span, str(errors.get("forecasts", "–")), cell("bias", "+.2f"), cell("absolute_error", ".2f")),
        *(cell("coverage", ".0f"), cell("width", ".2f"), cell("plain_bias", "+.2f")),
    ]
