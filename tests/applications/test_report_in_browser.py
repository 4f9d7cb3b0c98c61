"""The page in headless Chromium, through chromedriver: `make browser-test` (Debian: chromium chromium-driver)."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastdm.applications.report.page import write_report
from tests.applications.test_report import dataset_of, make_run

pytestmark = pytest.mark.browser

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --window-size=1200,900"
)
LEFT, RIGHT, END, ENTER = "\ue012", "\ue014", "\ue010", "\ue007"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""Keys, and the name of an element's reference, as the WebDriver standard has them."""


class Browser:
    """A session of WebDriver, as far as these tests need it."""

    def __init__(self, port: int, profile: Path) -> None:
        self._url = f"http://127.0.0.1:{port}/session"
        options = {"args": [*FLAGS.split(), f"--user-data-dir={profile}"]}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        self._url += "/" + self._ask("POST", "", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _ask(self, method: str, path: str, body: object = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, content, headers, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error

    def open(self, page: Path) -> None:
        self._ask("POST", "/url", {"url": page.resolve().as_uri()})

    def run(self, script: str) -> Any:
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def press(self, selector: str, keys: str) -> None:
        """Focus an element and press keys: no mouse is needed."""
        element = self._ask("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]
        self._ask("POST", f"/element/{element}/value", {"text": keys})

    def log(self, kind: str) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self._ask("POST", "/se/log", {"type": kind})
        return entries

    def command(self, name: str, **parameters: object) -> Any:
        """One of Chromium's own commands."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def until(self, script: str) -> None:
        """Wait until a condition holds; decoding an image takes a moment."""
        for _ in range(1200):
            if self.run(f"return {script}"):
                return
            time.sleep(0.05)
        raise AssertionError(f"{script} did not become true in a minute")

    def close(self) -> None:
        self._ask("DELETE", "")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    assert driver is not None, "there is no chromedriver: apt-get install chromium chromium-driver"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(1200):
            with socket.socket() as connection:
                if connection.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        session = Browser(port, tmp_path_factory.mktemp("profile"))
        yield session
        session.close()
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    data = dataset_of(3)
    runs = [make_run(folder / "first", data), make_run(folder / "second", data, seed=1, picture_every=3)]
    return write_report(runs, folder / "page.html", dataset=data)[0]


SHOWN = "getComputedStyle(document.querySelectorAll('.tile.run-{}')[0]).backgroundImage"
TILE = SHOWN.format(0)


def test_the_slider_moves_the_picture_by_keyboard(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("return document.querySelector('.slider').hidden") is False
    last = browser.run(f"return {TILE}")
    assert last.startswith('url("data:image/webp;base64,')
    sheets = browser.run("return JSON.parse(document.getElementById('frames').textContent)")
    assert sheets["iterations"] == [0, 2, 3, 4, 6]
    browser.press("#iteration", LEFT)
    browser.until(f"{TILE} === 'url(\"{sheets['runs'][0]['sheets'][2]}\")'")
    assert browser.run("return document.getElementById('at').textContent") == "4"
    assert browser.run("return document.getElementById('iteration').getAttribute('aria-valuetext')") == "iteration 4"
    # The second run was recorded after iterations 3 and 6: it shows what it had then.
    browser.until(f"{SHOWN.format(1)} === 'url(\"{sheets['runs'][1]['sheets'][1]}\")'")
    browser.press("#iteration", END)
    browser.until(f"{TILE} === {json.dumps(last)}")
    assert browser.run("return document.getElementById('at').textContent") == "6"


def test_play_goes_through_all_and_stops(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.press("#play", ENTER)
    assert browser.run("return document.getElementById('play').getAttribute('aria-pressed')") == "true"
    assert int(browser.run("return document.getElementById('iteration').value")) < 4
    browser.until("document.getElementById('play').textContent === 'Play'")
    assert browser.run("return document.getElementById('at').textContent") == "6"


def test_curves_and_images_are_drawn(browser: Browser, page: Path) -> None:
    browser.open(page)
    sizes = browser.run(
        "return [...document.querySelectorAll('figure > svg .curve')].map(curve => [curve.getBBox().width, "
        "curve.getBBox().height, getComputedStyle(curve).stroke])"
    )
    assert len(sizes) == 2
    assert all(width > 400 and height > 20 for width, height, _ in sizes)
    assert sizes[0][2] != sizes[1][2]
    tile = browser.run("const b = document.querySelector('.tile').getBoundingClientRect(); return [b.width, b.height]")
    assert tile == [56, 56]


def test_no_console_message_and_no_outside_request(browser: Browser, page: Path) -> None:
    browser.log("browser")
    browser.log("performance")
    browser.open(page)
    browser.press("#iteration", LEFT)
    browser.until("document.getElementById('at').textContent === '4'")
    assert browser.log("browser") == []
    messages = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
    asked = {m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"}
    assert page.resolve().as_uri() in asked
    assert [url[:40] for url in asked if not url.startswith(("data:", "blob:", page.resolve().as_uri()))] == []


@pytest.mark.parametrize("width", [320, 390, 1200])
def test_the_page_is_never_wider_than_the_screen(browser: Browser, page: Path, width: int) -> None:
    browser.open(page)
    browser.command("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=True)
    try:
        assert browser.run("return document.documentElement.scrollWidth") <= width
    finally:
        browser.command("Emulation.clearDeviceMetricsOverride")


def test_text_has_contrast_in_light_dark_and_on_paper(browser: Browser, page: Path) -> None:
    """WCAG AA: 4.5 to 1 for texts, 3 to 1 for curves and marks."""
    browser.open(page)
    for features, media in (("light", ""), ("dark", ""), ("light", "print")):
        scheme = [{"name": "prefers-color-scheme", "value": features}]
        browser.command("Emulation.setEmulatedMedia", media=media, features=scheme)
        names = ["ink", "soft", "accent", *(f"c{number}" for number in range(6))]
        colours = browser.run(
            "const s = getComputedStyle(document.documentElement); "
            f"return Object.fromEntries({json.dumps([*names, 'paper', 'card', 'warn'])}"
            ".map(name => [name, s.getPropertyValue('--' + name).trim()]))"
        )
        for background in ("paper", "card", "warn"):
            for name in names:
                needed = 3 if name.startswith("c") else 4.5
                assert _contrast(colours[name], colours[background]) >= needed, (features, media, name, background)
    browser.command("Emulation.setEmulatedMedia", media="", features=[])


def _contrast(one: str, other: str) -> float:
    """The ratio of relative luminances that WCAG 2 defines."""
    high, low = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    digits = colour.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(2 * digit for digit in digits)
    values = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_reader_without_javascript_sees_the_result(browser: Browser, page: Path) -> None:
    browser.command("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert browser.run("return document.querySelector('.slider').hidden") is True
        assert browser.run(f"return {TILE}").startswith('url("data:image/webp')
    finally:
        browser.command("Emulation.setScriptExecutionDisabled", value=False)
