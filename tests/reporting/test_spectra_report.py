"""The report on measured updates: its files, its command, and its page in a real browser."""

import base64
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from lowrank_study.config.run import composed
from lowrank_study.errors import InputError, Unfinished
from lowrank_study.measurement.records import Measurement, Step
from lowrank_study.reporting.spectra_report import report_spectra, write
from lowrank_study.reporting.spectra_report.progress import line_of

ROOT = Path(__file__).parents[2]
FILES = {
    "report.html", "spectra.csv", "spectra.parquet", "spectra.json", "spectra.tex",
    "singular_values.parquet", "vectors.csv", "skipped.csv", "files.csv",
}  # fmt: skip


def changed_copy(base: Path, folder: Path, seed: int, *, rounded: bool) -> Path:
    """Write a model that differs by rank 3 and, if `rounded`, is kept in bfloat16."""
    shutil.copytree(base, folder)
    torch.manual_seed(seed)
    tensors = load_file(base / "model.safetensors")
    for name, tensor in tensors.items():
        change = torch.randn_like(tensor)
        if tensor.dim() == 2:
            change = torch.randn(tensor.shape[0], 3) @ torch.randn(3, tensor.shape[1])
        scale = 1e-5 if rounded and "layer.1" in name else 0.05
        tensors[name] = tensor + scale * change
        if rounded:
            tensors[name] = tensors[name].bfloat16()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def models(
    tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """A base; a tuned one of which layer 1 is lost in bfloat16's rounding; a second tuned one."""
    folder, base = tmp_path_factory.mktemp("models"), tiny_model("bert")
    return {
        "base": base,
        "rounded": changed_copy(base, folder / "rounded", 1, rounded=True),
        "second": changed_copy(base, folder / "second", 2, rounded=False),
    }


@pytest.fixture(scope="module")
def reported(
    models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Measurement]:
    """A report on two updates with everything in it."""
    return report_spectra(
        before=models["base"],
        after=models["rounded"],
        other=models["second"],
        compare_with_base=True,
        out=tmp_path_factory.mktemp("reported") / "report",
    )


HOSTILE = "<img src=x onerror=alert(1)>.\u202e\x00\nname"
FORMULA = "=HYPERLINK(1)"


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on checkpoints whose tensors have names meant to do harm."""
    folder = tmp_path_factory.mktemp("hostile")
    torch.manual_seed(0)
    names = (f"layer.0.{HOSTILE}", f"{FORMULA}.weight", "layer.1.</script><b>bold</b>", "fine")
    for file in ("before", "after"):
        tensors = {name: torch.randn(6, 5) for name in names}
        tensors["@vector"] = torch.randn(4)
        tensors["-left\nout"] = torch.full((3, 3), float("nan"))
        save_file(tensors, folder / f"{file}.safetensors")
    path, _ = report_spectra(
        before=folder / "before.safetensors",
        after=folder / "after.safetensors",
        out=folder / "report",
        allow_partial=True,
    )
    return path


def test_all_files_are_there_and_agree(reported: tuple[Path, Measurement]) -> None:
    path, found = reported
    assert {file.name for file in path.parent.iterdir()} == FILES
    csv = pd.read_csv(path.parent / "spectra.csv")
    parquet = pd.read_parquet(path.parent / "spectra.parquet")
    record = json.loads((path.parent / "spectra.json").read_text())
    assert len(csv) == len(parquet) == len(record["matrices"]) == 32
    assert list(parquet["update"].unique()) == ["first", "other"]
    for row, matrix in zip(parquet.itertuples(), found.matrices, strict=False):
        assert row.module == matrix.spectrum.module
        ours = matrix.readings["effective_rank"]
        assert row.effective_rank_as_read == ours.as_read
        assert row.effective_rank_status == ours.status
    sigma = pd.read_parquet(path.parent / "singular_values.parquet")
    first = sigma[
        (sigma["update"] == "first") & (sigma["module"] == found.matrices[3].spectrum.module)
    ]
    assert np.array_equal(first["singular_value"], found.matrices[3].spectrum.singular_values)
    files = pd.read_csv(path.parent / "files.csv")
    assert list(files["sha256"]) == [file["sha256"] for file in record["files"]]
    assert record["files"][0]["part"] == "other: before"
    assert record["matrices"][3]["similarity"]["right_dimension"] == 16
    assert len(record["matrices"][3]["intruder_cosines"]) == 10


def test_what_is_not_resolvable_is_never_a_number_alone(
    reported: tuple[Path, Measurement],
) -> None:
    path, found = reported
    hidden = {
        matrix.spectrum.module
        for matrix in found.matrices
        if matrix.readings["energy_rank_90"].status == "not resolvable"
    }
    assert hidden == {m.spectrum.module for m in found.matrices if m.spectrum.layer == 1}
    csv = pd.read_csv(path.parent / "spectra.csv")
    parquet = pd.read_parquet(path.parent / "spectra.parquet")
    lost = parquet["module"].isin(hidden) & (parquet["update"] == "first")
    for name in ("energy_rank_90", "energy_rank_95", "energy_rank_99", "effective_rank",
                 "stable_rank", "participation_ratio", "numerical_rank"):  # fmt: skip
        assert set(csv.loc[lost, name]) == {"not resolvable"}
        assert parquet.loc[lost, name].isna().all()
        assert set(parquet.loc[lost, f"{name}_status"]) == {"not resolvable"}
    assert (parquet.loc[lost, "energy_rank_90_as_read"] > 3).all()
    assert (csv.loc[~lost, "energy_rank_90"].astype(float) <= 3).all()
    tex = (path.parent / "spectra.tex").read_text()
    assert tex.count("not resolvable &") >= 4 * len(hidden)
    page = path.read_text()
    assert page.count('class="unresolved"') >= 7 * len(hidden)
    assert "In 6 of 16 changed matrices the rank is not resolvable" in page


def test_the_page_needs_nothing_and_allows_only_its_own_scripts(
    reported: tuple[Path, Measurement],
) -> None:
    page = reported[0].read_bytes().decode()
    [policy] = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'")
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 3
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert re.findall(r"'sha256-([^']*)'", policy) == hashes
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    outside = page
    for script in scripts:
        outside = outside.replace(script, "")
    assert not re.search(r"""(src|href|action)\s*=\s*["']?(?!data:)\S*//""", outside)
    assert str(reported[1].files[0].sha256) in outside


def test_names_are_escaped_in_every_file(hostile: Path) -> None:
    for name in FILES - {"singular_values.parquet", "spectra.parquet"}:
        text = (hostile.parent / name).read_bytes().decode()
        assert "\u202e" not in text
        assert "\x00" not in text
    page = hostile.read_text()
    assert "<img" not in page.rpartition("</script>")[0].partition("<script>")[0]
    assert "<b>bold" not in page
    assert r"\u202e\x00\nname" in page
    csv = (hostile.parent / "spectra.csv").read_text()
    assert f"first,'{FORMULA}," in csv
    assert "\n'@vector," in (hostile.parent / "vectors.csv").read_text()
    skipped = (hostile.parent / "skipped.csv").read_text()
    assert "'-left\\nout,18 NaN and 0 infinite values" in skipped
    modules = pd.read_parquet(hostile.parent / "spectra.parquet")["module"]
    assert all(module.isprintable() for module in modules)
    assert r"\textless{}img" in (hostile.parent / "spectra.tex").read_text()


def test_the_same_measurement_gives_the_same_bytes(
    reported: tuple[Path, Measurement], tmp_path: Path
) -> None:
    path, found = reported
    write.report_measurement(found, tmp_path / "again")
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (path.parent / name).read_bytes(), name


@pytest.mark.parametrize("present", [False, True])
def test_a_failure_leaves_no_part_of_a_report(
    reported: tuple[Path, Measurement],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    present: bool,
) -> None:
    folder, found = tmp_path / "out", reported[1]
    if present:
        write.report_measurement(found, folder)
        (folder / "mine.txt").write_text("kept")
    before = {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    real, calls = os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write.report_measurement(found, folder)
    after = {file.name: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    assert after == before
    assert folder.exists() == present
    assert [p.name for p in tmp_path.iterdir()] == (["out"] if present else [])


def test_a_folder_that_cannot_be_one_is_refused(
    reported: tuple[Path, Measurement], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="file"):
            write.report_measurement(reported[1], folder)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(InputError, match=r"'rank'.*before, after, adapter"):
        report_spectra(rank=3)


@pytest.mark.parametrize(
    ("done", "share", "seconds", "expected"),
    [
        (3, 0.25, 10.0, "[ 3/12] q: fine (0:30 left)"),
        (12, 1.0, 10.0, "[12/12] q: fine"),
        (1, 0.001, 30.0, "[ 1/12] q: fine (8:19:30 left)"),
    ],
)
def test_a_line_of_progress(done: int, share: float, seconds: float, expected: str) -> None:
    step = Step(done=done, total=12, share=share, name="q", outcome="fine")
    assert line_of(step, seconds) == expected


# ---------------------------------------------------------------- the command


def command(*overrides: str, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(ROOT / "analysis" / "measure_spectra.py"), *overrides],
        cwd=cwd, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_measures_and_says_what_it_found(
    models: dict[str, Path], tmp_path: Path
) -> None:
    done = command(
        f"before={models['base']}",
        f"after={models['second']}",
        f"out={tmp_path / 'out'}",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    assert len([line for line in lines if re.match(r"\[ ?\d+/16\] ", line)]) == 17
    assert "left)" in lines[3]
    assert lines[-1].startswith(f"{tmp_path / 'out' / 'report.html'}: 90 % of the energy of ΔW")
    assert {file.name for file in (tmp_path / "out").iterdir()} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def measured_by_the_command(**settings: Any) -> None:
    """Run the command's function with the command's error handling."""
    spec = importlib.util.spec_from_file_location("main", ROOT / "analysis" / "measure_spectra.py")
    assert spec is not None
    assert spec.loader is not None
    main = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(main)
    given = {key: str(v) if isinstance(v, Path) else v for key, v in settings.items()}
    main.measure(OmegaConf.create(composed("measure_spectra") | given))


def test_what_is_left_out_comes_first_everywhere(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensors = load_file(models["base"] / "model.safetensors") | {"head.weight": torch.ones(2, 16)}
    save_file(tensors, tmp_path / "tuned.safetensors")
    given = {"before": models["base"], "after": tmp_path / "tuned.safetensors"}
    out = tmp_path / "out"
    told = "eft out: 32 of 6,080 parameters of after (0.53 %): only in the tuned checkpoint: head"
    with pytest.raises(Unfinished, match=f"l{re.escape(told)}"):
        measured_by_the_command(**given, out=out)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"l{told}"
    assert lines[-1].endswith("Only 16 of 17 matrices were compared, and none of these changed.")
    first = re.search(r"</h1>.*?<p[^>]*>(.*?)</p>", (out / "report.html").read_text(), re.DOTALL)
    assert first is not None
    assert first[1] == f"<strong>L{told}.</strong>"
    assert (out / "spectra.tex").read_text().startswith(r"\noindent Left out: 32 of 6,080")
    record = json.loads((out / "spectra.json").read_text())
    (part,) = record["left_out"]
    assert part["share"] == pytest.approx(32 / 6080)
    assert not any("No matrix changed" in finding["text"] for finding in record["findings"])
    measured_by_the_command(**given, out=out, allow_partial=True)  # the exit code is 0
    assert capsys.readouterr().out.splitlines()[0] == f"l{told}"


def test_no_matrix_changed_does_not_hide_that_a_vector_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, bias in (("before", 0.0), ("after", 1.0)):
        state = {"q.weight": torch.ones(4, 4), "q.bias": torch.full((4,), bias)}
        save_file(state, tmp_path / f"{name}.safetensors")
    before, after = (tmp_path / f"{name}.safetensors" for name in ("before", "after"))
    measured_by_the_command(before=before, after=after, out=tmp_path / "out")
    assert (
        capsys.readouterr()
        .out.rstrip()
        .endswith("No matrix changed: rank 0, ratios undefined; 1 vector changed.")
    )


@pytest.mark.slow
def test_bad_input_is_one_line_exit_code_2_and_nothing_written(
    models: dict[str, Path], tmp_path: Path
) -> None:
    save_file({"tower.weight": torch.ones(3, 4)}, tmp_path / "tower.safetensors")
    (tmp_path / "pickle.bin").write_bytes(b"\x80\x02}q\x00.")
    before = sorted(tmp_path.iterdir())
    for overrides, words in (
        ([f"before={tmp_path / 'tower.safetensors'}", f"after={models['base']}"], ["tower.weight"]),
        ([f"before={tmp_path / 'pickle.bin'}", f"after={models['base']}"], ["safetensors"]),
        (["before=./none", "after=./none"], ["./none", "existing path"]),
        (["adaptor=x"], ["adaptor"]),
    ):
        done = command(*overrides, cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stderr.startswith("error: ")
        for word in words:
            assert word in done.stderr
        assert sorted(tmp_path.iterdir()) == before


# ---------------------------------------------------------------- in a browser


class Browser:
    """Chromium driven over WebDriver's own protocol: what is clicked here, people can click."""

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
        """Run a script in the page and give what it returns."""
        return self._call("POST", "/execute/sync", {"script": script, "args": []})

    def element(self, selector: str) -> str:
        body = {"using": "css selector", "value": selector}
        return str(next(iter(self._call("POST", "/element", body).values())))

    def click(self, selector: str) -> None:
        self._bring_into_view(selector)
        self._call("POST", f"/element/{self.element(selector)}/click", {})

    def _bring_into_view(self, selector: str) -> None:
        # At once: the page scrolls smoothly, and a click doesn't wait for it.
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
        reason = "NO BROWSER: install chromium and chromedriver, or no one has clicked the report"
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
    # every measure can be shown
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
    # the other update has nothing hidden
    browser.click("#map-update option:nth-child(2)")
    assert browser.run(MAP)["crossed"] == "0"
    browser.click("#map-update option:nth-child(1)")
    # spectra: both updates of two modules in two layers
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
    # direction by direction
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
    # sorted by a click, with what isn't resolvable at the end both times it is asked upwards
    heading = "#table-matrices th:nth-child(9) button"
    cells = (
        "return [...document.querySelectorAll('#table-matrices tbody tr')]"
        ".map((row) => row.cells[8].textContent)"
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
