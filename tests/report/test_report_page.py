"""The page: it answers first, warns, escapes, says what is missing, and needs nothing but itself."""

import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from plotly.offline import get_plotlyjs
from report_studies import backtest, row

from isoflop import report
from isoflop.report.page import _json
from isoflop.table import write_table

VOID = {"meta", "link", "br"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.data: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.attributes.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.data.append(data)
        elif self.open and self.open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


def page(folder: Path) -> Page:
    """The page, parsed; without plotly.js, of which parsing would take most of the time."""
    return Page(report.build(folder).replace(get_plotlyjs(), ""))


def test_answers_first(study):
    words = page(study()).words
    answer = r"Forecast 3\.956 nats a token \(80 % interval 3\.897 to 4\.015\) for N = 44M \(44\.4M parameters in"
    answer += r" all\), D = 993M tokens at 4\.1x the largest fitted"
    assert re.search(
        answer + r" compute; measured 3\.972 nats a token \(1\.36 bits per byte\): inside, 0\.4 % too low\.", words
    )
    assert words.index("Forecast 3.956") < words.index("Figures")


def test_the_forecast_of_an_older_study_has_one_n_and_no_bits(study):
    folder = study()
    (entry,) = json.loads((folder / "forecast.json").read_text())["targets"]
    entry["n_params"] = entry.pop("n_params_matmul")
    del entry["bits_per_byte"]
    (folder / "forecast.json").write_text(json.dumps([entry]))
    words = page(folder).words
    assert "for N = 44M, D = 993M tokens" in words
    assert "measured 3.972 nats a token: inside" in words


def test_tables_show_both_sizes_and_bits_per_byte(study):
    folder = study()
    words = page(folder).words
    row = r"dense-target dense 44M 44\.4M 993M 2\.62e17 3\.9561 3\.8968 to 4\.0155 \(80 %\) 3\.9719 1\.364 0\.40 % yes"
    assert re.search(row + r" 2026-05-02 10:00:00Z", words)
    assert words.count("bits per byte") >= 3


def test_what_every_run_shares_is_said_once(study):
    words = page(study()).words
    same = "Of every run: family dense; status done; learning rate 0.002; tokens a batch 65536; context 512; seed 1;"
    assert f"{same} threads 1; device NVIDIA H100." in words
    assert words.count("NVIDIA H100") == 3  # here and among the versions
    lost = page(study(status=lambda index: "diverged" if index == 3 else "done")).words
    assert "family dense; learning rate" in lost
    assert lost.count("loss rose above its start") == 2  # the warning and its row


def test_a_study_of_several_families_is_fitted_again_one_by_one(study, two_families):
    assert "fit study-0/runs.parquet --n n_params_matmul --family experts" in page(two_families).words
    assert "--family" not in page(study()).words


def test_each_family_has_its_answer(two_families):
    words = page(two_families).words
    assert "dense: Forecast" in words
    assert "experts: Forecast" in words
    assert "Of 2 held-out runs measured so far, 2 fell inside their interval." in words
    assert "Lowest loss at equal exact FLOPs" in words
    assert "Lowest loss at equal wall-clock" in words


def test_warns_of_what_the_certificate_and_the_runs_say(study):
    folder = study(warnings=("E is pinned at 0.",), status=lambda index: "diverged" if index in (3, 5) else "done")
    words = page(folder).words
    assert "E is pinned at 0." in words
    assert (
        "2 of 29 runs diverged: dense-003, dense-005. Reason: loss rose above its start at step 812 (2 runs)." in words
    )


def test_no_warning_no_box(study):
    assert "Before you rely on this" not in page(study()).words


def test_a_missed_forecast_and_a_bound_are_warned_of(study):
    folder = study()
    forecast = json.loads((folder / "forecast.json").read_text())
    forecast["targets"][0] |= {"inside": False, "measured": 4.2, "relative_error": -0.058}
    (folder / "forecast.json").write_text(json.dumps(forecast["targets"]))  # a bare list is accepted too
    law = json.loads((folder / "law.json").read_text())
    law["certificate"]["at_bound"] = ["E"]
    (folder / "law.json").write_text(json.dumps(law))
    words = page(folder).words
    assert "measured 4.200 nats a token (1.36 bits per byte): outside, 5.8 % too low" in words
    assert "lies outside the forecast's interval" in words
    assert "sits at a bound (E)" in words
    assert "forecast.json records a measured loss of 4.2" in words


def test_the_same_study_gives_the_same_page_and_write_is_whole(study):
    folder = study()
    path = report.write(folder)
    assert path == folder / "report.html"
    assert path.read_text(encoding="utf-8") == report.build(folder)
    assert not list(folder.glob(".report*"))


def test_nothing_is_fetched_and_plotly_is_inside_once(study):
    text = report.build(study())
    assert text.count("* plotly.js v") == 1
    tags = Page(text).attributes
    policy = next(a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    for tag, attributes in tags:
        assert "src" not in attributes
        assert tag != "link" or attributes["href"] == "data:,"
        assert tag != "a" or attributes["href"].startswith("#")


def test_figures_and_tables_can_be_read_without_seeing(two_families):
    tags = page(two_families).attributes
    plots = [a for tag, a in tags if a.get("class") == "plot"]
    assert len(plots) == 2 + 1 + 1 + 2 + 2 + 2
    assert all(a["role"] == "img" and len(a["aria-label"]) > 60 for a in plots)
    names = [tag for tag, _ in tags]
    assert names.count("figure") == names.count("figcaption") == 7
    assert all("scope" in a for tag, a in tags if tag == "th")
    assert names.count("table") == names.count("caption")
    headings = [int(tag[1]) for tag in names if re.fullmatch("h[1-6]", tag)]
    assert headings[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    ids = [a["id"] for _, a in tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert all(a["href"][1:] in ids for tag, a in tags if tag == "a")


def test_figure_data_is_json_with_the_loss_of_every_run(study):
    folder = study()
    data = [json.loads(text) for text in page(folder).data if text.startswith('{"data"')]
    drawn = {y for figure in data for trace in figure["data"] for y in trace["y"]}
    from isoflop.report.load import load

    assert {r.loss_valid for r in load(folder).done} <= drawn


EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"


def test_everything_untrusted_is_escaped(study, tmp_path):
    folder = study(warnings=(EVIL,))
    changes = {"device": EVIL, "trunk": EVIL, "reason": EVIL}
    rows = [row(EVIL, i, 1e6 * 2**i, 1e15 / 6e6 / 2**i, 5.0 + i, **changes) for i in range(4)]
    write_table([*rows, row(EVIL, 9, 1e6, 1e8, None, run=EVIL, status="failed", **changes)], folder)
    (folder / "study.toml").write_text(EVIL)
    (folder / "plan.json").write_text(json.dumps({"environment": {EVIL: EVIL}}))
    (folder / "data" / "dataset.json").write_text(json.dumps({EVIL: [EVIL]}))
    document = json.loads((folder / "law.json").read_text())
    (folder / "law.json").write_text(json.dumps({"families": {EVIL: document, "b": {"error": EVIL}}}))
    target = json.loads((folder / "forecast.json").read_text())["targets"][0]
    target |= {"family": EVIL, "run": EVIL, "made_at": EVIL}
    target["forecast"]["warning"] = EVIL
    (folder / "forecast.json").write_text(json.dumps([target]))
    found = Page(report.build(folder))
    assert not [tag for tag, a in found.attributes if tag == "img" or "onerror" in a]
    assert [tag for tag, _ in found.attributes].count("script") == len(found.data)
    assert "alert(1)" in found.words
    assert not any(text.strip().startswith("alert") for text in found.data)


def test_json_cannot_close_its_script():
    assert "<" not in _json({"name": EVIL + "<!--"})
    assert json.loads(_json({"name": EVIL}))["name"] == EVIL


def test_no_forecast_yet(study):
    words = page(study(with_forecast=False)).words
    assert "No forecast yet: the law is 1.69 + 406.4/N^0.340 + 410.7/D^0.280, fitted to 28 finished runs." in words
    assert "No held-out run has been forecast yet." in words


def test_a_family_of_which_no_run_is_held_out(study):
    folder = study(with_forecast=False)
    jobs = [{"runs": [{"family": "dense", "role": "fit"}]}]
    (folder / "plan.json").write_text(json.dumps({"plan": {"jobs": jobs}}))
    words = page(folder).words
    assert "No held-out run was asked for; the law is 1.69 + 406.4/N^0.340" in words
    assert "[[targets]] in the study file names what to forecast" in words
    assert "No forecast yet" not in words
    jobs[0]["runs"].append({"family": "dense", "role": "target"})
    (folder / "plan.json").write_text(json.dumps({"plan": {"jobs": jobs}}))
    assert "No forecast yet" in page(folder).words


@pytest.mark.parametrize(("coverage", "warned"), [(0.75, False), (0.5, True)])
def test_the_backtest_in_words(study, coverage, warned):
    folder = study()
    document = json.loads((folder / "law.json").read_text())
    (folder / "law.json").write_text(json.dumps(document | {"backtest": backtest(coverage=coverage)}))
    words = page(folder).words
    told = f"80 % intervals held {100 * coverage:.0f} % of 12 forecasts of dearer runs from cheaper ones"
    assert f"Backtest on its own runs: {told}; on average these were 1.1 % too low." in words
    assert ("in its own backtest: take them for too narrow" in words) == warned
    (folder / "law.json").write_text(json.dumps(document | {"backtest": {"why": "nothing to hold out: 5 runs"}}))
    assert "No backtest of dense: nothing to hold out: 5 runs." in page(folder).words


def test_a_forecast_without_an_interval_says_why(study):
    folder = study()
    (entry,) = json.loads((folder / "forecast.json").read_text())["targets"]
    why = "no interval: the law is refused (one level of compute)"
    entry["forecast"] |= {"low": None, "high": None, "status": "refused", "warning": why}
    (folder / "forecast.json").write_text(json.dumps([entry | {"inside": None}]))
    words = page(folder).words
    assert why in words and "no interval to check" in words


def test_forecast_not_measured_yet(study):
    words = page(study(measured=False)).words
    assert "the largest fitted compute; not measured yet." in words
    assert "No held-out run has been measured yet" in words


def test_no_law(study):
    folder = study(with_law=False, with_forecast=False)
    words = page(folder).words
    assert "No forecast: 28 runs finished, but there is no law (no law has been fitted yet)." in words
    assert "No law was fitted. Stars mark the run of lowest loss" in words
    (folder / "law.json").write_text(json.dumps({"law": None, "why": "only 2 rows"}))
    assert "there is no law (only 2 rows)" in page(folder).words


def test_a_law_of_another_form_says_so(study):
    folder = study(with_forecast=False)
    document = json.loads((folder / "law.json").read_text())
    document["law"]["form"] = "kaplan"
    (folder / "law.json").write_text(json.dumps(document))
    assert "its form is 'kaplan'" in page(folder).words


def test_all_diverged(study):
    words = page(study(status=lambda index: "diverged", with_law=False, with_forecast=False)).words
    assert "No forecast: none of 28 runs finished, so there is nothing to fit." in words
    assert "28 of 28 runs diverged: dense-000, dense-001, dense-002, dense-003, dense-004 and 23 more." in words
    assert "No run has finished, so there is nothing to draw." in words


def test_only_planned(tmp_path):
    (tmp_path / "study.toml").write_text("[study]\n")
    words = page(tmp_path).words
    assert "No run has been planned or finished in this study yet." in words
    assert "No run has finished yet." in words
    assert "No law has been fitted yet." in words


@pytest.mark.parametrize("missing", ["plan.json", "data/dataset.json", "study.toml", "law.json", "forecast.json"])
def test_any_piece_may_be_missing(study, missing):
    folder = study()
    (folder / missing).unlink()
    words = page(folder).words
    assert "Figures" in words
    assert "Reproduce" in words


def test_band_and_certificate_are_optional(study):
    folder = study()
    document = json.loads((folder / "law.json").read_text())
    (folder / "law.json").write_text(json.dumps({"law": document["law"]}))
    words = page(folder).words
    assert "Nothing in the study says what" not in words  # the forecast's N shows it
    (folder / "law.json").write_text(json.dumps(document | {"band": {"rows": document["band"]}}))
    page(folder)


def test_the_documents_of_the_fit_itself(study):
    """The law, certificate and intervals as `isoflop.laws` writes them, not as these tests imagine them."""
    from isoflop.laws.fit import fit_document, fit_law
    from isoflop.report.load import load

    folder = study()
    rows = [r for r in load(folder).done if r.role == "fit"]
    columns = [r.n_params_matmul for r in rows], [r.tokens for r in rows], [r.loss_valid for r in rows]
    fit = fit_law(*columns, bootstrap=20, convention="N: matmul parameters (active, with the output table)")
    (folder / "law.json").write_text(json.dumps(fit_document(fit)))
    found = load(folder)
    assert (found.n_column, found.n_presumed) == ("n_params_matmul", False)
    words = page(folder).words
    certificate = fit.certificate
    for value in (certificate.data_digest, certificate.convention, f"{certificate.residual_rms:.6g}"):
        assert value in words
    assert f"{fit.law.alpha:.6g}" in words
    assert "rank correlation: " in words


def test_a_forecast_made_too_late_is_called_so(study):
    folder = study()
    (entry,) = json.loads((folder / "forecast.json").read_text())["targets"]
    (folder / "forecast.json").write_text(json.dumps([entry | {"made_before_run": False}]))
    assert "it is a comparison, not a prediction" in page(folder).words


def test_mistakes_are_one_line(study, tmp_path):
    with pytest.raises(ValueError, match="is not a directory"):
        report.build(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="not a study directory"):
        report.build(tmp_path / "empty")
    folder = study()
    (folder / "law.json").write_text("{")
    with pytest.raises(ValueError, match=r"law\.json is not valid JSON") as caught:
        report.build(folder)
    assert "\n" not in str(caught.value)


def test_export_draws_every_figure(study, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib (the extra `figures`) is not installed")
    folder = study()
    paths = report.export_figures(folder, tmp_path / "out", formats=("svg",))
    names = ["isoflop", "compute", "curves", "forecast", "allocation"]
    assert [path.name for path in paths] == [f"{name}.svg" for name in names]
    first = [path.read_bytes() for path in paths]
    again = report.export_figures(folder, tmp_path / "again", formats=("svg",))
    assert [path.read_bytes() for path in again] == first
    with pytest.raises(ValueError, match="cannot export 'gif'"):
        report.export_figures(folder, tmp_path, formats=("gif",))


def test_export_draws_the_same_points(study):
    pytest.importorskip("matplotlib", reason="matplotlib (the extra `figures`) is not installed")
    from isoflop.report.images import draw
    from isoflop.report.load import load
    from isoflop.report.series import charts

    for chart in charts(load(study())):
        figure = draw(chart)
        for axes, panel in zip(figure.axes, chart.panels, strict=True):
            lines = [tuple(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in axes.lines]
            for series in panel.series:
                assert series.kind == "band" or tuple(zip(series.x, series.y, strict=True)) in lines
