"""The page as a visitor has it: what is seen, what is clicked, what is typed."""

import json
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

# Idle: no request is under way, and the answer on the page is that of the address.
IDLE = """
return !document.querySelector("#decision[aria-busy]") && document.body.dataset.answered === (location.search || "?")
"""


class Page:
    """One visit."""

    def __init__(self, browser: Any, address: str) -> None:
        self.browser, self.address = browser, address

    def open(self, query: str = "", width: int = 1280, theme: str = "light") -> "Page":
        """Show an address on a screen of that width."""
        self.resize(width)
        scheme = {"features": [{"name": "prefers-color-scheme", "value": theme}]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        self.browser.get(self.address + query)
        return self.settled()

    def resize(self, width: int, height: int = 900) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def settled(self) -> "Page":
        """Wait for the answer to the address; a change of a control reaches the address a moment later."""
        wait = WebDriverWait(self.browser, 20, poll_frequency=0.02)
        wait.until(lambda driver: driver.execute_script(IDLE), "the page did not come to rest")
        return self

    def moved(self, before: str) -> "Page":
        """Wait until the address is another one, and for its answer."""
        WebDriverWait(self.browser, 10, poll_frequency=0.02).until(lambda driver: driver.current_url != before)
        return self.settled()

    def find(self, css: str) -> Any:
        return self.browser.find_element(By.CSS_SELECTOR, css)

    def text(self, css: str) -> str:
        return str(self.find(css).text)

    def script(self, text: str, *arguments: Any) -> Any:
        return self.browser.execute_script(text, *arguments)

    def click(self, css: str) -> "Page":
        """A real click on what is seen there, and the answer to it."""
        before, found = self.browser.current_url, self.find(css)
        self.script("arguments[0].scrollIntoView({block: 'center'})", found)
        ActionChains(self.browser).move_to_element(found).click().perform()
        return self.moved(before)

    def write(self, css: str, text: str) -> "Page":
        """Type into a field in the place of what it holds."""
        before, found = self.browser.current_url, self.find(css)
        found.send_keys(Keys.CONTROL, "a")
        found.send_keys(text or Keys.DELETE)
        return self.moved(before)

    def keys(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        ActionChains(self.browser).send_keys(*keys).perform()

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.browser.current_url).query, keep_blank_values=True))

    @property
    def sentence(self) -> str:
        return self.text("#sentence")

    def asked(self) -> Any:
        """The document behind what is shown, asked for by the page itself."""
        got = self.browser.execute_async_script(
            "const done = arguments[0]; fetch('/api/plan' + location.search).then((r) => r.text()).then(done)"
        )
        return json.loads(got)

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]
