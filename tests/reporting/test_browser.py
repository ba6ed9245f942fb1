"""That a browser opens the report without a complaint, at the width of a telephone too.

Needs Chromium. Without it these tests are skipped with a reason, and fail where CI is set.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

PHONE_WIDTHS = (360, 390)


@pytest.fixture(scope="module")
def chromium() -> str:
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    reason = "NO BROWSER: install chromium, or the report is not checked as people see it"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture
def page(report_folder: Path) -> Path:
    return report_folder / "report.html"


def opened(chromium: str, page: Path, profile: Path) -> tuple[str, list[str]]:
    """Open a page; give its document as it ends up, and what the console was told."""
    done = subprocess.run(
        [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--enable-logging=stderr",
            "--v=0",
            "--window-size=1280,900",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=3000",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


def test_the_console_stays_silent(chromium: str, page: Path, tmp_path: Path) -> None:
    dom, console = opened(chromium, page, tmp_path / "profile")
    assert console == []
    # The script ran: it shows the button that is hidden without it.
    button = re.search(r'<button id="scheme"[^>]*>', dom)
    assert button is not None
    assert "hidden" not in button[0]
    bad = tmp_path / "bad.html"
    bad.write_text("<script>console.warn('heard')</script>")
    assert any("heard" in line for line in opened(chromium, bad, tmp_path / "profile")[1])


def test_nothing_overflows_and_tables_sort(chromium: str, page: Path, tmp_path: Path) -> None:
    """In frames as wide as telephones, of a copy that measures itself and tells the outer page."""
    probe = """<script>
      const table = document.getElementById("table-score_by_rank");
      const folded = [...document.querySelectorAll("details")].every((details) => !details.open);
      table.closest("details").open = true;
      const button = [...table.querySelectorAll("thead button")]
        .find((button) => button.textContent === "test accuracy");
      const column = button.closest("th").cellIndex;
      const values = () => [...table.tBodies[0].rows].map((row) => row.cells[column].textContent);
      button.click(); const up = values().join(" ");
      button.click(); const down = values().join(" ");
      const narrow = getComputedStyle(document.querySelector(".narrow")).display;
      const scroller = table.parentElement;
      const before = getComputedStyle(document.body).backgroundColor;
      document.getElementById("scheme").click();
      const after = getComputedStyle(document.body).backgroundColor;
      parent.postMessage([innerWidth, document.documentElement.scrollWidth, narrow,
        scroller.scrollWidth > scroller.clientWidth, up, down, before !== after, folded,
      ].join("|"), "*");
    </script></body>"""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    (tmp_path / "copy.html").write_text(text.replace("</body>", probe), encoding="utf-8")
    frames = "".join(
        f'<iframe src="copy.html" style="border:0;width:{width}px;height:700px"></iframe>'
        for width in PHONE_WIDTHS
    )
    outer = tmp_path / "outer.html"
    outer.write_text(
        "<title></title><script>addEventListener('message', (event) => {"
        "document.title += event.data + ';'; });</script>" + frames
    )
    dom, _ = opened(chromium, outer, tmp_path / "profile")
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    told = sorted(line.split("|") for line in title[1].split(";") if line)
    assert [int(fields[0]) for fields in told] == list(PHONE_WIDTHS)
    for inner, scrolled, narrow, table_scrolls, up, down, switched, folded in told:
        assert int(scrolled) <= int(inner)
        assert narrow == "block"
        assert table_scrolls == "true"
        assert up.split() == sorted(up.split())
        assert down.split() == sorted(up.split(), reverse=True)
        assert len(up.split()) == 3
        assert switched == "true"
        assert folded == "true"
