"""The page in a real browser: every figure is drawn, nothing is logged, nothing scrolls sideways, both themes read."""

from collections.abc import Iterator
from typing import Any

import pytest
from report_studies import DENSE, EXPERTS, Plan, write_study

from chromium import chromium
from isoflop import report

wait = pytest.importorskip("selenium.webdriver.support.wait", reason="selenium is not installed (the extra `test`)")

DRAWN = """
return [...document.querySelectorAll(".plot")].map(plot => [plot.id,
  plot.classList.contains("js-plotly-plot") && plot.querySelectorAll("svg.main-svg").length > 0,
  plot.querySelectorAll(".scatterlayer .trace").length, plot.data ? plot.data.length : 0])
"""
FITS = """
return [...document.querySelectorAll(".plot .main-svg")].every(
  svg => svg.getBoundingClientRect().right <= innerWidth)
"""
COLOURS = """
const style = element => getComputedStyle(element);
return [style(document.body).backgroundColor, style(document.querySelector(".xtick text")).fill,
  style(document.querySelector(".legendtext")).fill]
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    warned = Plan(laws={"dense": DENSE, "experts": EXPERTS}, warnings=("E is pinned at 0; " + "long" * 60,))
    return report.write(write_study(tmp_path_factory.mktemp("study"), warned)).as_uri()


def show(browser: Any, address: str, width: int, theme: str = "light") -> None:
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    browser.get(address)


@pytest.mark.parametrize("width", [1280, 390, 320])
def test_every_figure_is_drawn_and_nothing_scrolls_sideways(browser, address, width):
    show(browser, address, width)
    drawn = browser.execute_script(DRAWN)
    assert len(drawn) == 10
    for name, has_svg, traces, series in drawn:
        assert has_svg, name
        assert traces == series > 0, name
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")
    assert browser.execute_script("return performance.getEntriesByType('resource').length") == 0


def test_plots_follow_the_window(browser, address):
    show(browser, address, 1280)
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 500, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    wait.WebDriverWait(browser, 10).until(lambda driver: driver.execute_script(FITS), "figures wider than the window")
    assert browser.execute_script("return document.scrollingElement.scrollWidth <= innerWidth")


def test_text_of_figures_follows_the_theme(browser, address):
    def lightness(colour: str) -> int:
        return sum(int(part) for part in colour.removeprefix("rgb(").removesuffix(")").split(","))

    for theme, text_is_lighter in (("light", False), ("dark", True)):
        show(browser, address, 1280, theme)
        back, *texts = (lightness(colour) for colour in browser.execute_script(COLOURS))
        assert all((text - back > 300) if text_is_lighter else (back - text > 300) for text in texts)
