"""The numbers in the figures and tables are those of the study's tables and of the law, worked out another way."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from report_studies import BUDGETS, DENSE, TARGET_FLOPS, backtest, best_size, row, true_loss

from isoflop.report import frontier, groups
from isoflop.report.backtest import backtest_table
from isoflop.report.chart import Axis, Chart, Series, family_colours, log_ticks, power, ramp_of, short, tick_text
from isoflop.report.curves import MOST_POINTS, learning_curves, read_curves, size_bins, thinned
from isoflop.report.families import best_within, flops, levels, seconds, verdicts
from isoflop.report.figures import panels
from isoflop.report.load import Law, load
from isoflop.report.series import charts
from isoflop.report.tables import optima
from isoflop.table import RunRow, write_table


def chart(study: Path, key: str) -> Chart:
    return next(one for one in charts(load(study)) if one.key == key)


def named(one: Chart, name: str, panel: int = 0) -> Series:
    return next(series for series in one.panels[panel].series if series.name == name)


def law(**constants: float) -> Law:
    return Law(family="dense", certificate={}, intervals={}, band=(), **constants)


def test_isoflop_points_are_the_runs_of_each_budget(study):
    folder = study()
    one, rows = chart(folder, "isoflop"), load(folder).done
    for budget in BUDGETS:
        mine = sorted((r.n_params_matmul, r.loss_valid) for r in rows if abs(r.flops_exact / budget - 1) < 0.01)
        points = named(one, f"{power(budget)} FLOPs")
        assert len(mine) == 7
        assert list(zip(points.x, points.y, strict=True)) == mine


def test_isoflop_minima_are_hoffmanns_closed_form(study):
    one = chart(study(), "isoflop")
    diamonds = [series for series in one.panels[0].series if series.symbol == "diamond"]
    assert len(diamonds) == len(BUDGETS)
    for diamond, budget in zip(diamonds, BUDGETS, strict=True):
        n = best_size(DENSE, budget)
        assert diamond.x[0] == pytest.approx(n, rel=0.01)
        assert diamond.y[0] == pytest.approx(true_loss(DENSE, n, budget / 6 / n), rel=1e-4)


def test_a_grid_is_grouped_by_tokens(study):
    one = chart(study(grid=True), "isoflop")
    names = list(dict.fromkeys(series.name for series in one.panels[0].series))
    assert names == ["100M tokens", "200M tokens", "400M tokens", "800M tokens"]
    assert named(one, "400M tokens").x == (1e6, 3e6, 1e7, 3e7)
    assert "diamond" not in {series.symbol for series in one.panels[0].series}


def test_frontier_and_band_are_those_stored(study):
    folder = study()
    stored = json.loads((folder / "law.json").read_text())["band"]
    one = chart(folder, "compute")
    line, band = named(one, "compute-optimal frontier"), named(one, "prediction interval")
    assert line.x == band.x == tuple(entry["flops"] for entry in stored)
    assert line.y == tuple(entry["loss"] for entry in stored)
    assert band.low == tuple(entry["low"] for entry in stored)
    assert band.high == tuple(entry["high"] for entry in stored)


def test_frontier_without_a_stored_band_agrees_with_the_closed_form(study):
    one = chart(study(with_band=False), "allocation")
    size = named(one, "best under the fitted law")
    tokens = named(one, "best under the fitted law", panel=1)
    for c, n, d in zip(size.x, size.y, tokens.y, strict=True):
        assert n == pytest.approx(best_size(DENSE, c), rel=0.01)
        assert n * d == pytest.approx(c / 6, rel=1e-4)


def test_twenty_tokens_a_parameter(study):
    one = chart(study(), "allocation")
    name = "20 tokens a parameter"
    for c, n, d in zip(named(one, name).x, named(one, name).y, named(one, name, panel=1).y, strict=True):
        assert d / n == pytest.approx(20)
        assert 6 * n * d == pytest.approx(c, rel=1e-4)


def test_forecast_bar_and_star(study):
    folder = study()
    entry = json.loads((folder / "forecast.json").read_text())["targets"][0]
    one = chart(folder, "compute")
    bar, star = named(one, "forecast"), named(one, "measured")
    told = entry["forecast"]
    assert (bar.x, bar.y) == ((entry["flops_exact"],), (told["loss"],))
    assert (bar.low, bar.high) == ((told["low"],), (told["high"],))
    assert star.y == (entry["measured"],)
    checked = named(chart(folder, "forecast"), "held-out runs")
    assert (checked.x, checked.y) == ((entry["measured"],), (told["loss"],))


def test_residuals_are_per_cent_of_the_law(study):
    folder = study()
    residuals = named(chart(folder, "forecast"), "fitted runs", panel=1)
    rows = [r for r in load(folder).done if r.role == "fit"]
    expected = [100 * (r.loss_valid / true_loss(DENSE, r.n_params_matmul, r.tokens) - 1) for r in rows]
    assert residuals.y == pytest.approx(expected, abs=1e-9)


def test_learning_curves_are_rows_of_the_files(study):
    folder = study()
    rows = {
        (float(line.split(",")[3]), float(line.split(",")[4]))
        for path in folder.glob("jobs/*/curve.csv")
        for line in path.read_text().splitlines()[1:]
    }
    drawn = learning_curves(load(folder)).panels[0].series
    assert len(drawn) == 2 * 29  # a trunk and a decay a run
    assert all(len(series.x) <= MOST_POINTS for series in drawn)
    assert {point for series in drawn for point in zip(series.x, series.y, strict=True)} <= rows


def test_torn_and_diverged_curve_rows_are_skipped(tmp_path):
    path = tmp_path / "trunk-a" / "curve.csv"
    path.parent.mkdir()
    head = "run,phase,step,tokens,loss_train,lr,tokens_per_s\n"
    path.write_text(head + ",trunk,1,100,9.5,1e-3,1\n,trunk,2,200,nan,1e-3,1\nr1,decay,3,300,8.5,1e-3,1\n,trunk,4,40")
    assert [(c.run, c.tokens, c.loss) for c in read_curves(path)] == [("", (100.0,), (9.5,)), ("r1", (300.0,), (8.5,))]


@given(st.integers(1, 100_000))
def test_thinning_keeps_ends_and_order(count):
    kept = thinned(count)
    assert kept[0] == 0
    assert kept[-1] == count - 1
    assert len(kept) <= MOST_POINTS
    assert kept == sorted(set(kept))


@given(st.lists(st.floats(1e5, 1e11), min_size=1, max_size=40))
def test_size_bins_cover_every_size_with_few_names(sizes):
    bins = size_bins(sizes)
    assert set(bins) == set(sizes)
    assert len(set(bins.values())) <= 6


@given(
    st.floats(0.1, 1.2),
    st.floats(0.1, 1.2),
    st.floats(10, 1e4),
    st.floats(10, 1e4),
    st.floats(14, 24),
)
def test_optimum_is_the_closed_form_where_flops_are_6nd(alpha, beta, A, B, log_c):
    constants = {"E": 1.7, "A": A, "B": B, "alpha": alpha, "beta": beta}
    flat, c = frontier.Price(0.0, math.log(6), 0.0, 0.0), 10**log_c
    found, n = frontier.optimum(law(**constants), flat, c), best_size(constants, c)
    if found is not None:
        assert found.n_params == pytest.approx(n, rel=0.006)
        assert found.loss == pytest.approx(true_loss(constants, n, c / 6 / n), rel=1e-4)
    else:
        assert not 10**-4.4 < n / math.sqrt(c / 6) < 10**4.4


def test_law_without_a_term_has_no_optimum():
    flat = frontier.Price(0.0, math.log(6), 0.0, 0.0)
    assert frontier.optimum(law(E=2.0, A=0.0, B=400.0, alpha=0.3, beta=0.3), flat, 1e18) is None
    loss = frontier.law_loss(law(E=2.0, A=0.0, B=0.0, alpha=0.3, beta=0.3), np.array([1e6]), np.array([1e9]))
    assert loss[0] == 2.0


def test_price_follows_the_runs_exact_flops(study):
    found = load(study())
    rows = [row("dense", i, n, 1e9, 3.0, flops_exact=n**0.95 * 1e9 * 14) for i, n in enumerate((1e6, 1e7, 1e8))]
    cost = frontier.price(found, rows)
    assert float(cost.of(1e7)) == pytest.approx(14 * 1e7**-0.05)
    assert float(cost.of(1e12)) == pytest.approx(14 * 1e8**-0.05)  # flat beyond the runs
    n, d = frontier.at_ratio(cost, 1e18, 20)
    assert d / n == pytest.approx(20)
    assert float(cost.of(n)) * n * d == pytest.approx(1e18, rel=1e-6)


def test_budgets_within_fifteen_per_cent_are_one(study):
    flops_of = (1.0e15, 1.14e15, 1.2e15, 5e15)
    rows = [row("dense", i, 1e6, 1e8, 3.0, flops_exact=c) for i, c in enumerate(flops_of)]
    parts = groups.by_flops(rows)
    assert [len(part.rows) for part in parts] == [2, 1, 1]
    assert parts[0].nominal == pytest.approx(math.sqrt(1.0e15 * 1.14e15))


def test_families_at_equal_cost_are_the_lowest_affordable_runs(two_families):
    found = load(two_families)
    for cost in (flops, seconds):
        shown = levels(found, cost)
        assert shown
        for level in shown:
            for family, best in level.best.items():
                affordable = [r for r in found.done if r.family == family and cost(r) <= level.cost]
                assert best.loss_valid == min(r.loss_valid for r in affordable)
    budgets = [level.cost for level in levels(found, flops)]
    assert budgets == pytest.approx([*BUDGETS, TARGET_FLOPS], rel=1e-4)
    assert best_within(found.done, flops, 1.0) is None


def test_verdicts_name_the_winner_at_the_highest_shared_cost(two_families):
    by_flops, by_seconds = verdicts(two_families)
    best = levels(load(two_families), flops)[-1].best
    winner = min(best, key=lambda family: best[family].loss_valid)
    assert f"{winner} reaches {best[winner].loss_valid:.4f}" in by_flops
    assert f"{winner} leads by" in by_flops
    assert "exact (active) FLOPs" in by_flops
    assert "s of training alone, on one thread, without compiling" in by_seconds
    assert all("(one seed)" in said for said in (by_flops, by_seconds))


def rewrite(folder: Path, change: Callable[[RunRow], RunRow]) -> None:
    """Change the rows of a study's table."""
    write_table([change(row) for row in load(folder).rows], folder)


def test_seconds_are_compared_at_equal_threads_and_of_fitted_runs_only(two_families):
    def change(one: RunRow) -> RunRow:
        if one.role == "target":  # would win at any wall-clock, were it let in
            return replace(one, threads=2, wall_s=1e-3, loss_valid=0.5)
        slower = one.family == "experts" and one.run.endswith(("4", "5", "6"))
        return replace(one, threads=4 if slower else 2)

    rewrite(two_families, change)
    found = load(two_families)
    for level in levels(found, seconds):
        assert all((best.threads, best.role) == (2, "fit") for best in level.best.values())
    assert any(best.role == "target" for level in levels(found, flops) for best in level.best.values())
    by_flops, by_seconds = verdicts(two_families)
    assert "0.5000" in by_flops
    assert "on 2 threads" in by_seconds
    second = chart(two_families, "families").panels[1]
    points = [x for series in second.series if series.kind == "points" for x in series.x]
    assert sorted(points) == sorted(r.wall_s for r in found.done if r.role == "fit" and r.threads == 2)


def test_families_that_share_no_threads_are_not_compared_by_seconds(two_families):
    rewrite(two_families, lambda one: replace(one, threads=1 if one.family == "dense" else 2))
    (said,) = verdicts(two_families)
    assert "FLOPs" in said
    one = chart(two_families, "families")
    assert len(one.panels) == 1
    assert "Wall-clock cannot be compared" in one.caption


def test_verdicts_count_the_seeds(two_families):
    rewrite(two_families, lambda one: replace(one, seed=int(one.run[-1] == "2") if one.role == "fit" else 0))
    assert all("(2 seeds)" in said for said in verdicts(two_families))


def test_a_budget_of_two_sizes_has_no_lowest_run(study):
    folder = study(with_law=False, with_forecast=False)
    stars = lambda: [s for s in chart(folder, "isoflop").panels[0].series if s.symbol == "star"]  # noqa: E731
    assert len(stars()) == len(BUDGETS)
    few = {r.run for r in load(folder).rows if r.flops_exact < 2 * BUDGETS[0]}
    write_table([r for r in load(folder).rows if r.run not in sorted(few)[2:]], folder)
    assert len(stars()) == len(BUDGETS) - 1


def test_a_budget_of_two_sizes_has_no_circle_in_the_allocation(study):
    folder = study(with_forecast=False)
    assert len(named(chart(folder, "allocation"), "lowest run of a budget").x) == len(BUDGETS)
    few = {r.run for r in load(folder).rows if r.flops_exact < 2 * BUDGETS[0]}
    write_table([r for r in load(folder).rows if r.run not in sorted(few)[2:]], folder)
    assert len(named(chart(folder, "allocation"), "lowest run of a budget").x) == len(BUDGETS) - 1


def test_a_band_may_call_its_n_by_either_name(study):
    folder = study()
    document = json.loads((folder / "law.json").read_text())
    one = load(folder).laws["dense"].band
    for entry in document["band"]:
        entry["n_params"] = entry.pop("n_params_matmul")
    (folder / "law.json").write_text(json.dumps(document))
    assert load(folder).laws["dense"].band == one
    assert all(point.n for point in one)


@given(st.floats(1e-3, 1e25), st.floats(1, 1e8))
def test_log_ticks_are_written_in_full(low, ratio):
    for unit in ("power", "short"):
        axis = Axis("", log=True, unit=unit)
        ticks = log_ticks([low, low * ratio])
        assert ticks[0] <= low
        assert ticks[-1] >= low * ratio * 0.99
        texts = [tick_text(axis, value) for value in ticks]
        assert len(set(texts)) == len(texts)
    assert [tick_text(Axis("", log=True, unit="power"), v) for v in (2e11, 1e12, 1.5e-3)] == [
        "2·10¹¹",
        "10¹²",
        "1.5·10⁻³",
    ]


def test_one_family_has_no_rival(study):
    assert verdicts(study()) == []


def test_step_lines_are_running_minima(two_families):
    one = chart(two_families, "families")
    for panel in one.panels:
        for steps in (series for series in panel.series if series.kind == "steps"):
            points = next(s for s in panel.series if s.name == steps.name and s.kind == "points")
            assert [min(points.y[: i + 1]) for i in range(len(points.y))] == list(steps.y)


def test_families_keep_one_colour_and_one_legend_entry(two_families):
    for one in charts(load(two_families)):
        for drawn in panels(one):
            shown = [trace["name"] for trace in drawn["data"] if trace["showlegend"]]
            assert len(shown) == len(set(shown))
            if one.key in ("compute", "families"):
                assert set(shown) == {"dense", "experts"}
    assert len(set(family_colours(("dense", "experts")).values())) == 2


def test_which_n_comes_from_the_certificate_then_from_the_forecast(study):
    folder = study()
    document = json.loads((folder / "law.json").read_text())
    document["certificate"]["convention"] = "N non-embedding"
    (folder / "law.json").write_text(json.dumps(document))
    assert load(folder).n_column == "n_params_non_embedding"
    document["certificate"]["convention"] = "N is column 'n_params', every parameter; compute is 6 N D"
    (folder / "law.json").write_text(json.dumps(document))
    assert load(folder).n_column == "n_params"
    document["certificate"]["convention"] = "N and D as given; compute is 6 N D"
    (folder / "law.json").write_text(json.dumps(document))
    assert (load(folder).n_column, load(folder).n_presumed) == ("n_params_matmul", False)
    (folder / "forecast.json").unlink()
    assert (load(folder).n_column, load(folder).n_presumed) == ("n_params_matmul", True)


def test_short_numbers():
    values = (950, 1e3, 12_345, 999_600, 4.56e6, 7.8e9, 1.5e13)
    assert [short(v) for v in values] == ["950", "1k", "12.3k", "1M", "4.56M", "7.8B", "15T"]
    assert power(1.234e15) == "1.23e15"
    assert len(set(ramp_of(5))) == 5


def test_the_backtest_is_drawn_and_tabulated_as_stored(study):
    folder = study()
    document = json.loads((folder / "law.json").read_text())
    (folder / "law.json").write_text(json.dumps(document | {"backtest": backtest()}))
    one = chart(folder, "backtest")
    ours, plain = named(one, "calibrated forecast"), named(one, "plain law")
    assert ours.y == pytest.approx((0.4, -2.0)) and plain.y == pytest.approx((1.0,))
    assert ours.low == pytest.approx((-1.1, -4.5)) and ours.high == pytest.approx((1.9, 0.5))
    assert ours.x[0] == pytest.approx(3**0.5) and ours.x[1] > 30
    words = backtest_table(load(folder))
    for cell in ("1 to 3", "over 30", "all hold-outs", "+0.40 %", "-2.00 %", "90 %", "3.00 %", "+1.00 %"):
        assert cell in words
    assert not [one for one in charts(load(study())) if one.key == "backtest"]


def test_intervals_of_the_best_sizes_are_drawn_and_tabulated_as_stored(study):
    folder = study()
    document = json.loads((folder / "law.json").read_text())
    for entry in document["band"]:
        for size, ends in (("n_params_matmul", "n_interval"), ("tokens", "tokens_interval")):
            entry[ends] = {"low": entry[size] / 2, "high": entry[size] * 3, "level": 0.8}
    (folder / "law.json").write_text(json.dumps(document))
    one = chart(folder, "allocation")
    for panel, size in ((0, "n_params_matmul"), (1, "tokens")):
        shaded = next(series for series in one.panels[panel].series if series.kind == "band")
        assert shaded.low == tuple(entry[size] / 2 for entry in document["band"])
        assert shaded.high == tuple(entry[size] * 3 for entry in document["band"])
    last = document["band"][-1]
    told = optima(load(folder).laws["dense"])
    for value in (last["n_params_matmul"], last["n_params_matmul"] * 3, last["tokens"], last["tokens"] / 2):
        assert short(value) in told
    assert "80 % intervals of the best N and D" in one.caption
