"""All figures of a report as plain data, in the order of the page."""

from isoflop.report.accuracy import forecast_against_measured
from isoflop.report.allocation import allocation
from isoflop.report.backtest import backtest_chart
from isoflop.report.chart import Chart
from isoflop.report.compute import loss_against_compute
from isoflop.report.curves import learning_curves
from isoflop.report.families import comparison
from isoflop.report.isoflop import isoflop_curves
from isoflop.report.load import Study


def charts(study: Study) -> list[Chart]:
    """Every figure: isoFLOP curves once a family, the backtest where there is one, families compared where several."""
    isoflops = [isoflop_curves(study, family) for family in study.families] or [isoflop_curves(study, "")]
    rest = [loss_against_compute(study), learning_curves(study), forecast_against_measured(study), allocation(study)]
    tested, several = backtest_chart(study), len(study.families) > 1
    return [*isoflops, *rest, *([tested] if tested else []), *([comparison(study)] if several else [])]
