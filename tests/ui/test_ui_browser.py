"""The page in a real browser: clicked, typed into, walked through by keys, reloaded, on a phone, in both themes."""

import contextlib
import io
import json
import re
import shlex
import urllib.request
from pathlib import Path
from statistics import median

import pytest

from isoflop.cli.main import main

actions = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (the extra `test`)")
ActionChains, Keys = actions.ActionChains, actions.Keys

ON_DEVICES = (
    "?dollars=2e6&hardware=H100-SXM5-80GB&devices=512&served-tokens=2e12&unique-tokens=1e12&repeats=4"
    "&family=dense,hybrid,llama-3.1-8b&law=besiroglu-2024&law=muennighoff-2023"
)
PANELS = ("isoflop", "lifetime", "equal-loss", "candidates", "levers", "memory", "serving", "reasons", "built")
STATE = """
return [...document.querySelectorAll("#controls input:not([type=range]), #controls select")].map(
  (control) => [control.id || control.value, control.type === "checkbox" ? control.checked : control.value])
"""
WIDER = "return document.scrollingElement.scrollWidth - innerWidth"
BEYOND = """
const right = (text) => text.getBoundingClientRect().right;
return [...document.querySelectorAll(".plot text")].filter((text) => right(text) > innerWidth + 1)
"""
# The least contrast of text on what it stands on (WCAG 2, relative luminance), over every element that holds text.
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
const rgb = (colour) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data]; };
const bright = (c) => { const [r, g, b] = c.map((v) => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * r + .7152 * g + .0722 * b; };
const behind = (e) => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
  if (c[3] === 255) return c; } return [255, 255, 255, 255]; };
let least = [99, ""];
for (const e of document.querySelectorAll("body *")) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
  if (!own || !e.checkVisibility() || e.closest("noscript, datalist, option, .hidden")) continue;
  const style = getComputedStyle(e), colour = e.closest("svg") ? style.fill : style.color;
  const [a, b] = [bright(rgb(colour)), bright(behind(e))];
  const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
  if (ratio < least[0]) least = [ratio, e.outerHTML.slice(0, 120)];
}
return least
"""


def said(command: str) -> object:
    """What the command line prints, as JSON."""
    program, *words = shlex.split(command)
    assert program == "isoflop"
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main([*words, "--json"]) == 0
    return json.loads(out.getvalue())


def test_a_first_visit_is_answered(page):
    page.open()
    assert page.sentence.startswith("Train ")
    for panel in PANELS:
        assert page.find(f"#{panel}").is_displayed(), panel
        assert page.text(f"#{panel}").strip(), panel
    assert len(page.browser.find_elements("css selector", ".plot svg path")) > 10
    loads = "return performance.getEntriesByType('resource').map((e) => new URL(e.name).host)"
    assert set(page.script(loads)) == {page.script("return location.host")}


def test_clicks_change_address_answer_and_command_and_going_back_undoes_them(page):
    page.open("?flops=1e22")
    first = page.sentence
    page.click("#families input[value=experts]")
    assert page.query == {"flops": "1e22", "family": "dense,latent,mamba-2,hybrid"}
    assert "--family dense,latent,mamba-2,hybrid" in page.text("#command")
    assert "experts" not in page.text("#candidates")
    before = page.browser.current_url
    page.browser.back()
    page.moved(before)
    assert page.sentence == first
    assert page.find("#families input[value=experts]").is_selected()
    before = page.browser.current_url
    page.browser.forward()
    page.moved(before)
    assert not page.find("#families input[value=experts]").is_selected()


def test_typing_and_sliders_keep_step(page):
    page.open("?flops=1e22")
    page.write("#amount", "1.5e23")
    assert page.query["flops"] == "1.5e23"
    middle = float(page.find("#amount-slider").get_attribute("value"))
    page.write("#served", "2T")  # as people write it
    assert page.query["served-tokens"] == "2e12"
    assert page.find("#lifetime .legend").text.count("asked for") == 1
    before = page.browser.current_url
    page.find("#amount-slider").send_keys(Keys.ARROW_RIGHT)
    page.moved(before)
    assert float(page.find("#amount-slider").get_attribute("value")) > middle
    assert float(page.query["flops"]) > 1.5e23
    assert page.find("#amount").get_attribute("value") == page.query["flops"]


def test_another_architecture_is_named(page):
    page.open("?flops=1e22&family=dense")
    before = page.browser.current_url
    page.find("#another").send_keys("llama-3.1-8b", Keys.ENTER)
    page.moved(before)
    assert page.query["family"] == "dense,llama-3.1-8b"
    assert "llama-3.1-8b" in page.text("#candidates")


def test_hardware_comes_with_devices_and_goes_with_them(page):
    page.open("?flops=1e22&family=dense")
    before = page.browser.current_url
    page.find("#hardware").send_keys("H100-SXM")
    page.moved(before)
    assert page.query["hardware"] == "H100-SXM5-80GB"
    assert int(page.query["devices"]) > 1
    assert "Training, each of" in page.text("#memory")
    assert "$" in page.text("#facts")
    page.click("#reset")
    assert page.query == {}
    assert page.find("#devices").get_attribute("value") == ""


def test_what_no_control_shows_goes_with_the_next_change(page):
    page.open("?flops=1e22&dollars=3")
    assert "not allowed" in page.text("[data-flag=goal] .problem")
    page.write("#amount", "2e22")
    assert page.query == {"flops": "2e22"}
    assert page.sentence.startswith("Train ")


def test_dragging_a_slider_is_one_entry_of_the_history(page):
    page.open("?flops=1e22")
    entries = page.script("return history.length")
    slider, before = page.find("#amount-slider"), page.browser.current_url
    ActionChains(page.browser).click_and_hold(slider).perform()
    for _ in range(3):
        ActionChains(page.browser).move_by_offset(9, 0).pause(0.12).perform()
    ActionChains(page.browser).release().perform()
    page.moved(before)
    assert page.script("return history.length") == entries + 1


def test_a_reload_shows_the_same_state(page):
    page.open(ON_DEVICES)
    kept = page.script(STATE), page.sentence, page.text("#panels")
    asked = page.asked()
    page.browser.refresh()
    page.settled()
    assert (page.script(STATE), page.sentence, page.text("#panels")) == kept
    assert page.asked()["plan"] == asked["plan"]
    assert page.query["law"] == "muennighoff-2023"
    assert page.find("#families input[value='llama-3.1-8b']").is_selected()


@pytest.mark.parametrize("query", ["", "?target-loss=2.1&count=6nd&family=dense", ON_DEVICES])
def test_the_command_line_gives_the_same_document(page, query):
    page.open(query)
    shown, document = page.text("#command"), page.asked()["plan"]
    printed = said(shown)
    assert {key: printed[key] for key in document} == document


def test_every_control_is_reached_by_keys_and_shows_that_it_is(page):
    page.open("?flops=1e22&hardware=H100-SXM5-80GB&devices=64")
    for details in page.browser.find_elements("css selector", "#controls details"):
        page.script("arguments[0].open = true", details)
    page.script("document.activeElement.blur()")
    wanted = page.script("return document.querySelectorAll('input, select, button, a[href], summary').length")
    seen, hidden = [], []
    for _ in range(wanted + 30):
        page.keys(Keys.TAB)
        name, outline, label = page.script(
            "const e = document.activeElement, s = getComputedStyle(e);"
            "return [e.outerHTML.slice(0, 90), s.outlineStyle + ' ' + s.outlineWidth,"
            " e.ariaLabel || e.labels?.[0]?.textContent || e.textContent]"
        )
        if name.startswith("<body"):
            break
        seen.append(name)
        assert label.strip(), name
        if "none" in outline or " 0px" in outline:
            hidden.append(name)
    assert hidden == []
    controls = [name for name in seen if re.match("<(input|select|button|a|summary)", name)]
    assert len(controls) == wanted


def test_a_question_is_changed_by_keys_alone(page):
    page.open("?flops=1e22")
    page.script("document.getElementById('goal').focus()")
    before = page.browser.current_url
    page.keys("d", "o")  # of a list: dollars, which need hardware
    page.moved(before)
    page.keys(Keys.TAB)
    page.keys(Keys.TAB, Keys.TAB, Keys.TAB, Keys.TAB)
    assert page.script("return document.activeElement.id") == "context"
    before = page.browser.current_url
    page.keys("8192")
    page.moved(before)
    assert page.query["context"] == "8192"
    page.script("document.querySelector('#isoflop svg[tabindex]').focus()")
    page.keys(Keys.ARROW_RIGHT)
    assert "loss" in page.text("#isoflop .tip")


def test_a_wrong_question_is_told_beside_its_control(page):
    page.open("?flops=1e22")
    old = page.text("#facts")
    page.write("#devices", "12")
    assert "--hardware" in page.text("[data-flag=devices] .problem")
    control = page.find("#devices")
    assert control.get_attribute("aria-invalid") == "true"
    assert page.find("#" + control.get_attribute("aria-describedby")).is_displayed()
    assert page.text("#facts") == old  # the last answer stays, dimmed
    assert page.text("#command") == "isoflop plan --flops 1e22 --devices 12"
    page.write("#devices", "")
    assert page.browser.find_elements("css selector", ".problem, [aria-invalid]") == []
    page.write("#amount", "1e22x")
    assert "1e22x" in page.text("[data-flag=goal] .problem")


def test_a_no_says_what_would_have_to_change(page):
    page.open("?flops=1e22&serve-memory=0.001")
    assert "serving memory" in page.sentence
    assert page.browser.find_elements("css selector", ".problem") == []


def test_the_last_of_many_questions_is_the_one_answered(page):
    page.open("?flops=1e22")
    before = page.browser.current_url
    for end in "123456":
        page.script(
            "const a = document.getElementById('amount'); a.value = arguments[0];"
            "a.dispatchEvent(new Event('input', { bubbles: true }))",
            f"{end}e23",
        )
        page.script("return new Promise((done) => setTimeout(done, 75))")
    page.moved(before)
    assert page.query == {"flops": "6e23"}
    assert page.text("#command").endswith(("6e23", "6e+23"))
    assert page.asked()["plan"]["sentence"] == page.sentence


@pytest.mark.parametrize("width", [390, 320])
def test_on_a_phone_nothing_scrolls_sideways(page, width):
    page.open(ON_DEVICES, width)
    assert page.script(WIDER) <= 0
    for details in page.browser.find_elements("css selector", "details"):
        page.script("arguments[0].open = true", details)
    assert page.script(WIDER) <= 0
    assert page.script(BEYOND) == []
    assert page.script("return parseFloat(getComputedStyle(document.getElementById('amount')).fontSize)") >= 16
    page.click("#families input[value=dense]")
    assert page.find("#sentence").is_displayed()


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_is_readable_in_both_themes(page, theme, tmp_path):
    page.open(ON_DEVICES, theme=theme)
    ratio, where = page.script(CONTRAST)
    assert ratio >= 4.5, where
    shot = tmp_path / f"{theme}.png"
    assert page.browser.save_screenshot(str(shot))
    assert shot.stat().st_size > 20_000


def test_the_theme_is_switched_and_kept(page):
    page.open("?flops=1e22", theme="light")
    back = "return getComputedStyle(document.body).backgroundColor"
    light = page.script(back)
    page.find("#theme").click()
    dark = page.script(back)
    assert dark != light
    page.browser.refresh()
    page.settled()
    assert page.script(back) == dark
    page.find("#theme").click()
    assert page.script(back) == light
    page.script("localStorage.clear()")


def test_the_report_holds_the_answer_and_needs_nothing_else(page, tmp_path: Path):
    page.open(ON_DEVICES)
    link, sentence, command = page.find("#export").get_attribute("href"), page.sentence, page.text("#command")
    file = tmp_path / "plan.html"
    with urllib.request.urlopen(link) as response:
        assert "attachment" in response.headers["Content-Disposition"]
        file.write_bytes(response.read())
    page.browser.get(file.as_uri())
    assert page.text(".answer") == sentence
    assert command in page.text("main")
    assert page.script("return document.querySelectorAll('.plot svg.main-svg').length") >= 3
    assert page.script("return performance.getEntriesByType('resource').length") == 0
    assert page.script(WIDER) <= 0


def test_copying_says_so(page):
    page.open("?flops=1e22")
    grant = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"], "origin": page.address.rstrip("/")}
    page.browser.execute_cdp_cmd("Browser.grantPermissions", grant)
    page.find("#copy").click()
    page.script("return new Promise((done) => setTimeout(done, 100))")
    assert page.text("#copied") == "Command copied"
    read = "const done = arguments[0]; navigator.clipboard.readText().then(done)"
    assert page.browser.execute_async_script(read) == page.text("#command")


def test_updates_are_told_in_milliseconds(page):
    """Printed, not asserted: the machine is shared."""
    page.open("?flops=1e23")
    took = []
    for i in range(4):
        page.write("#amount", f"{1.1**i * 1e23:.3e}".replace("+", ""))
        took.append([int(ms) for ms in re.findall(r"(\d+) ms", page.text("#timing"))])
    assert all(len(one) == 2 and 0 <= one[0] <= one[1] for one in took), took
    server, whole = (median(column) for column in zip(*took, strict=True))
    print(f"\nan update: {server:.0f} ms in the server, {whole:.0f} ms until it is drawn (median of {len(took)})")
