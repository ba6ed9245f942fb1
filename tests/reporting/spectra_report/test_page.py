"""The page of a measured report in a real browser.

Needs Chromium and its driver. Without them these tests are skipped, and fail if CI is set.
"""

import json
import os
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lowrank_study.measurement.records import Measurement


class Browser:
    """Chromium driven over the WebDriver protocol."""

    def __init__(self, url: str, chromium: str, profile: Path, width: int) -> None:
        self._url = url
        arguments = [
            "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            f"--user-data-dir={profile}", "--window-size=1280,1000",
        ]  # fmt: skip
        options: dict[str, Any] = {"binary": chromium, "args": arguments}
        if width < 500:
            metrics = {"width": width, "height": 740, "pixelRatio": 2}
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = self._call("POST", "", {"capabilities": {"alwaysMatch": capabilities}})
        self._url += f"/{session['sessionId']}"

    def _call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from error

    def open(self, page: Path) -> None:
        self._call("POST", "/url", {"url": page.as_uri()})

    def run(self, script: str) -> Any:
        """Run a script in the page and return its result."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def element(self, selector: str) -> str:
        body = {"using": "css selector", "value": selector}
        return str(next(iter(self._call("POST", "/element", body).values())))

    def click(self, selector: str) -> None:
        self._bring_into_view(selector)
        self._call("POST", f"/element/{self.element(selector)}/click", {})

    def _bring_into_view(self, selector: str) -> None:
        # Instantly, because a click does not wait for smooth scrolling.
        how = "{block: 'center', behavior: 'instant'}"
        self.run(f"document.querySelector({selector!r}).scrollIntoView({how})")

    def click_at(self, selector: str, x: int, y: int) -> None:
        """Move the mouse to a place (from the middle of an element) and press it there."""
        self._bring_into_view(selector)
        key = "element-6066-11e4-a52e-4f735466cecf"
        origin = {key: self.element(selector)}
        moves = [
            {"type": "pointerMove", "duration": 100, "origin": origin, "x": x + dx, "y": y}
            for dx in (3, 0)
        ]
        presses = [
            {"type": "pause", "duration": 250},
            {"type": "pointerDown", "button": 0},
            {"type": "pause", "duration": 60},
            {"type": "pointerUp", "button": 0},
        ]
        mouse = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}}
        self._call("POST", "/actions", {"actions": [{**mouse, "actions": moves + presses}]})

    def console(self) -> list[str]:
        return [entry["message"] for entry in self._call("POST", "/se/log", {"type": "browser"})]

    def close(self) -> None:
        self._call("DELETE", "")


@pytest.fixture(scope="module")
def driver_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    names = ("chromium", "chromium-browser", "google-chrome")
    chromium = next((path for name in names if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if chromium is None or driver is None:
        reason = "NO BROWSER: install chromium and chromedriver to test the controls of the report"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    log = tmp_path_factory.mktemp("driver") / "log"
    with log.open("w") as out:
        process = subprocess.Popen([driver, "--port=0"], stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 30
        while not (found := re.search(r"on port (\d+)\.", log.read_text())):
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{found[1]}/session", chromium
    finally:
        process.terminate()
        process.wait(timeout=20)


def opened(
    driver_url: tuple[str, str], profiles: pytest.TempPathFactory, width: int
) -> Iterator[Browser]:
    browser = Browser(*driver_url, profiles.mktemp("profile"), width)
    try:
        yield browser
    finally:
        browser.close()


@pytest.fixture(scope="module")
def browser(
    driver_url: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    yield from opened(driver_url, tmp_path_factory, 1280)


@pytest.fixture(scope="module")
def phone(
    driver_url: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Browser]:
    yield from opened(driver_url, tmp_path_factory, 360)


SIGMA = "return {...document.getElementById('sigma-plot').dataset}"
MAP = "return {...document.getElementById('heat-map').dataset}"


def test_every_control_does_what_it_says(
    browser: Browser, reported: tuple[Path, Measurement]
) -> None:
    path, found = reported
    browser.open(path)
    first = browser.run(MAP)
    assert first["measure"] == "energy_rank_90"
    assert first["crossed"] == "6"
    assert first["drawn"] == "10"
    # Every measure can be shown.
    browser.click("#measure option:nth-child(2)")
    assert browser.run(MAP)["measure"] == "energy_rank_95"
    shown = browser.run(
        "const box = document.getElementById('measure'), shown = [];"
        "for (const option of box.options) { box.value = option.value;"
        " box.dispatchEvent(new Event('change'));"
        " shown.push(document.getElementById('heat-map').dataset.measure); } return shown"
    )
    assert set(shown) == set(found.matrices[3].readings)
    browser.click("#measure option:first-child")
    # The other update is completely resolvable.
    browser.click("#map-update option:nth-child(2)")
    assert browser.run(MAP)["crossed"] == "0"
    browser.click("#map-update option:nth-child(1)")
    # Spectra of both updates, two modules and two layers.
    assert browser.run(SIGMA)["matrices"] == "8"
    browser.click("#which option:nth-child(2)")
    drawn = browser.run(SIGMA)
    assert (drawn["matrices"], drawn["floors"], drawn["drawn"]) == ("4", "4", "8")
    browser.click("#floors")
    assert browser.run(SIGMA)["drawn"] == "4"
    assert drawn["scale"] == "log log"
    browser.click("#scale-y option[value=linear]")
    browser.click("#scale-x option[value=linear]")
    assert browser.run(SIGMA)["scale"] == "linear linear"
    axis = "return document.getElementById('sigma-plot')._fullLayout.yaxis.type"
    assert browser.run(axis) == "linear"
    browser.click("#normalise")
    tops = browser.run("return document.getElementById('sigma-plot').data.map((t) => t.y[0])")
    assert tops == [1, 1, 1, 1]
    browser.click("button[data-all=roles]")
    browser.click("button[data-all=layers]")
    assert browser.run(SIGMA)["matrices"] == "16"
    # Direction by direction.
    first_alike = next(m.similarity for m in found.matrices if m.similarity is not None)
    alike = browser.run("return document.getElementById('alike-plot').data[0].z")
    assert np.array(alike) == pytest.approx(first_alike.right_grid, rel=1e-4, abs=1e-12)
    browser.click("#alike-side option[value=left]")
    alike = browser.run("return document.getElementById('alike-plot').data[0].z")
    assert np.array(alike) == pytest.approx(first_alike.left_grid, rel=1e-4, abs=1e-12)
    browser.click("#alike-side option[value=right]")
    note = "return document.getElementById('alike-note').textContent"
    assert first_alike.right_dimension == 16
    assert "φ(1, 1) = 0.063" in browser.run(note)
    # A click sorts; cells that are not resolvable come last.
    browser.run("for (const each of document.querySelectorAll('details')) each.open = true")
    heading = "#table-matrices th:nth-child(8) button"
    cells = (
        "return [...document.querySelectorAll('#table-matrices tbody tr')]"
        ".map((row) => row.cells[7].textContent)"
    )
    browser.click(heading)
    column = browser.run(cells)
    numbers = [float(text) for text in column if text != "not resolvable"]
    assert numbers == sorted(numbers)
    assert column[-6:] == ["not resolvable"] * 6
    assert browser.console() == []


def test_a_click_on_a_cell_draws_its_spectrum(
    browser: Browser, reported: tuple[Path, Measurement]
) -> None:
    browser.open(reported[0])
    browser.click("#which option:nth-child(2)")
    # columns 0, 1 and none; ten rows: just below the middle is row 6 of layer 1
    browser.click_at("#heat-map .nsewdrag", 0, 8)
    names = "return document.getElementById('sigma-plot').data.map((t) => t.name)"
    drawn = browser.run(names)
    assert browser.run(SIGMA)["matrices"] == "1"
    assert drawn[0].startswith("encoder.layer.1.")
    chosen = "return [...document.getElementById('layers').selectedOptions].map((o) => o.value)"
    assert browser.run(chosen) == ["1"]
    assert browser.console() == []


def test_dark_and_light_reach_the_plots(
    browser: Browser, reported: tuple[Path, Measurement]
) -> None:
    browser.open(reported[0])
    ink = "return document.getElementById('sigma-plot')._fullLayout.font.color"
    paper = "return getComputedStyle(document.body).backgroundColor"
    before = browser.run(ink), browser.run(paper)
    browser.click("#scheme")
    after = browser.run(ink), browser.run(paper)
    assert {before[0], after[0]} == {"#1c2024", "#e7e9ea"}
    assert before[1] != after[1]


def test_a_phone_shows_it_without_scrolling_sideways(
    phone: Browser, reported: tuple[Path, Measurement]
) -> None:
    phone.open(reported[0])
    inner, scrolled, plot = phone.run(
        "return [innerWidth, document.documentElement.scrollWidth,"
        " document.querySelector('#heat-map .main-svg').getBoundingClientRect().width]"
    )
    assert inner == 360
    assert scrolled <= 360
    assert 250 < plot <= 360
    assert phone.console() == []


def test_hostile_names_do_nothing(browser: Browser, hostile: Path) -> None:
    browser.open(hostile)
    browser.click("button[data-all=roles]")
    assert int(browser.run(SIGMA)["matrices"]) >= 2
    assert browser.run("return document.images.length") == 0
    assert browser.run("return document.querySelectorAll('td b, .plot b, .plot a').length") == 0
    labels = browser.run(
        "return [...document.querySelectorAll('#heat-map .ytick text')].map((t) => t.textContent)"
    )
    assert any("<img src=x onerror=alert(1)>" in label for label in labels)
    assert browser.console() == []
