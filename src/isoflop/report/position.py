"""The page of an extended context: loss against position, before and after, from its position.json."""

import shlex
from html import escape

import isoflop
from isoflop.evaluate.curve import Curve, LossByPosition, Mean
from isoflop.report.chart import FAMILY_COLOURS, LAW_COLOUR, Axis, Chart, Dash, Panel, Series
from isoflop.report.page import HINT, document, figure
from isoflop.report.tables import plain, table

NEUTRAL = "#5b6575"
DASHES: dict[str, Dash] = {"scaled": "dash", "beside": "dot"}
WIDTHS = {"tuned": 3.5}
CAPTION = (
    "Held-out loss of the token at each position, predicted from all the tokens before it; bands are one standard "
    "error over documents. The vertical line is the trained context. A model that gains from what it now sees lies "
    "below “{reference}”: the model that was given, whose window of its own context slides along."
)


def build(result: LossByPosition) -> str:
    """The report as one self-contained HTML page. ValueError where plotly is not installed."""
    title = f"Isoflop: {result.model} at {result.context} tokens"
    charts = [loss_chart(result), difference_chart(result)]
    answers = "".join(f'<p class="answer">{escape(sentence)}</p>' for sentence in answer(result))
    figures = f"<p>{HINT}</p>" + "".join(figure(chart) for chart in charts)
    body = (
        f"<header><h1>{escape(title)}</h1>{answers}</header>"
        f'<section id="figures"><h2>Loss against position</h2>{figures}</section>'
        f'<section id="numbers"><h2>Numbers</h2>{summary(result)}{buckets(result)}</section>'
        f'<section id="reproduce"><h2>Reproduce</h2>{_reproduce(result)}</section>'
    )
    return document(title, body, charts)


def answer(result: LossByPosition) -> list[str]:
    """What came of it, in sentences: beyond the trained context, beside the model that was given."""
    untouched = next(curve for curve in result.curves if curve.kind == "untouched").beyond
    own = next(curve for curve in result.curves if curve.name == result.reference).beyond
    first = (
        f"Beyond its {result.border} trained tokens, up to {result.context}, the model as it was loses {own.nats:.3f} "
        f"nats a token where it sees only as many as it was trained on, and {untouched.nats:.3f} where it sees all."
    )
    written = [curve for curve in result.curves if curve.kind in ("scaled", "tuned")]
    return [first, *(f"{curve.name[:1].upper() + curve.name[1:]}: {_verdict(curve.beyond)}." for curve in written)]


def _verdict(beyond: Mean) -> str:
    size = f"{abs(beyond.difference):.3f} ± {beyond.difference_se:.3f}"
    if abs(beyond.difference) < 2 * beyond.difference_se:
        return f"{beyond.nats:.3f} nats a token there, not told apart from the first ({size})"
    return f"{beyond.nats:.3f} nats a token there, {size} {'less' if beyond.difference < 0 else 'more'} than the first"


def loss_chart(result: LossByPosition) -> Chart:
    """Loss against position for every model."""
    values = [bucket.nats for curve in result.curves for bucket in curve.buckets]
    lines = []
    for curve in result.curves:
        points = [(bucket.nats, bucket.nats_se) for bucket in curve.buckets]
        lines += _line(curve, _colour(result, curve), curve.buckets, points)
    axes = Axis("position, tokens", log=True, unit="short"), Axis("held-out loss, nats per token")
    panel = Panel(*axes, (*lines, _border(result, min(values), max(values))))
    caption = CAPTION.format(reference=result.reference)
    return Chart("position", "Loss against position", caption, (panel,))


def difference_chart(result: LossByPosition) -> Chart:
    """The same around and beyond the border, as differences on the same windows: small effects show."""
    shown = [curve for curve in result.curves if curve.kind in ("scaled", "tuned") or curve.name == result.reference]
    lines = []
    for curve in shown:
        late = [bucket for bucket in curve.buckets if bucket.last > result.border // 4]
        points = [(bucket.difference, bucket.difference_se) for bucket in late]
        lines += _line(curve, _colour(result, curve), late, points)
    values = [y for series in lines for y in series.y]
    axes = Axis("position, tokens", log=True, unit="short"), Axis("nats per token above the model as it was")
    panel = Panel(*axes, (*lines, _border(result, min(values), max(values))))
    caption = (
        f"Loss above “{result.reference}” on the same windows: what scaling costs within the trained context (left of "
        "the line), and what the longer context brings (right; below zero is a gain). Bands are one standard error."
    )
    return Chart("difference", "What the longer context brings", caption, (panel,))


def _line(curve: Curve, colour: str, buckets: list[Mean], points: list[tuple[float, float]]) -> list[Series]:
    """A line through values at the middles of buckets, and the band of their standard errors."""
    x = tuple((bucket.first * bucket.last) ** 0.5 for bucket in buckets)
    y = tuple(value for value, _ in points)
    low, high = (tuple(value + side * error for value, error in points) for side in (-1, 1))
    notes, dash, width = _notes(curve.name, buckets), DASHES.get(curve.kind, "solid"), WIDTHS.get(curve.kind, 2.0)
    return [
        Series(curve.name, "band", colour, x, low=low, high=high),
        Series(curve.name, "line+points", colour, x, y, size=5, dash=dash, width=width, notes=notes),
    ]


def _notes(name: str, buckets: list[Mean]) -> tuple[str, ...]:
    return tuple(
        f"{name}\npositions {b.first} to {b.last}\n{b.nats:.4f} ± {b.nats_se:.4f} nats a token · "
        f"{b.bits_per_byte:.4f} bits per byte\n{b.difference:+.4f} ± {b.difference_se:.4f} above the model as it was"
        for b in buckets
    )


def _colour(result: LossByPosition, curve: Curve) -> str:
    """Neutral for the model as it was; the written method and its fine-tuning share a colour."""
    if curve.kind == "own-context":
        return LAW_COLOUR
    if curve.kind == "untouched":
        return NEUTRAL
    names = [c.name for c in result.curves if c.kind in ("scaled", "beside")]
    return FAMILY_COLOURS[names.index(curve.name) % len(FAMILY_COLOURS) if curve.name in names else 0]


def _border(result: LossByPosition, low: float, high: float) -> Series:
    x = float(result.border)
    return Series("trained context", "line", LAW_COLOUR, (x, x), (low, high), dash="dot", width=1.5)


def summary(result: LossByPosition) -> str:
    """Every curve within and beyond the trained context."""
    head = (
        "model",
        "within",
        "± s.e.",
        "bits per byte",
        "beyond",
        "± s.e.",
        "bits per byte",
        "beyond, above",
        "± s.e.",
    )
    body = [
        [escape(curve.name), *_cells(curve.inside), *_cells(curve.beyond), *_above(curve)] for curve in result.curves
    ]
    caption = (
        f"Loss within the trained context (positions 1 to {result.border}) and beyond it (to {result.context}), nats "
        f"per token; above: beyond it, above “{result.reference}” on the same windows. {result.n_windows} windows of "
        f"{result.n_documents} held-out documents."
    )
    return table(caption, head, body, range(1, len(head)), "wide")


def _cells(mean: Mean) -> list[str]:
    return [f"{mean.nats:.4f}", f"{mean.nats_se:.4f}", f"{mean.bits_per_byte:.4f}"]


def _above(curve: Curve) -> list[str]:
    return [f"{curve.beyond.difference:+.4f}", f"{curve.beyond.difference_se:.4f}"]


def buckets(result: LossByPosition) -> str:
    """Loss in each bucket of positions, a column a model."""
    head = ("positions", *(curve.name for curve in result.curves))
    rows = zip(*(curve.buckets for curve in result.curves), strict=True)
    body = [[_span(row[0]), *(f"{mean.nats:.4f} ± {mean.nats_se:.4f}" for mean in row)] for row in rows]
    caption = "Loss by position, nats per token, with standard errors over documents"
    return table(caption, head, body, range(1, len(head)), "wide tall")


def _span(mean: Mean) -> str:
    return str(mean.first) if mean.first == mean.last else f"{mean.first} to {mean.last}"


def _reproduce(result: LossByPosition) -> str:
    rows = [["text", plain(result.data)], ["digest of its tokens", f"<code>{result.data_digest}</code>"]]
    rows += [
        [escape(f"digest of {c.name}"), f"<code>{c.digest}</code>"] for c in result.curves if c.kind != "own-context"
    ]
    rows += [[escape(key), plain(value)] for key, value in result.environment.items()]
    if result.tuning is not None:
        t = result.tuning
        batch = f"{t.batch} x {result.context} tokens"
        words = f"{t.steps} steps of {batch}, peak lr {t.lr:.3g}, seed {t.seed}, {t.seconds:.0f} s"
        rows.append(["fine-tuning", words])
    rows.append(["this page", escape(f"isoflop {isoflop.__version__}")])
    command = f"<pre><code>{escape(shlex.join(result.command))}</code></pre>"
    return command + table("What the numbers depend on", ("what", "value"), rows)
