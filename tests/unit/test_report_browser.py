"""The page in a real browser: headless Chromium, where there is one."""

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from test_report import TABLE, report, result
from test_report_formats import BLOCKED, THERE

from gatepost.listeners import Listener
from gatepost.verify.model import Sight, Verdict
from gatepost.verify.report import html

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Nothing of the page's is asked of the network, and nothing of the browser's own either.
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
DARK = "--blink-settings=preferredColorScheme=0"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: the page is not looked at in a browser")


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page with everything on it: long words, eight listeners, a blocked port, changes."""
    names = [Listener(f"submission-number-{n}", 10000 + n, "submission", "starttls", ("0.0.0.0/0",)) for n in range(4)]
    subject = report(
        *(
            result(f"TLS-VER-{n:02}", Verdict.FAIL if n == 7 else Verdict.PASS, port, found="X" * 400)
            for n in range(1, 27)
            for port in (25, 587, 465, 2525)
        ),
        *BLOCKED.results,
        result("CRT-07", Verdict.INCONCLUSIVE, None),
        interrupted=True,
    )
    sights = (*BLOCKED.sights, Sight(THERE, "relay", 25, "fd00::2", False, "Y" * 300, 0.1))
    target = replace(subject.target, listeners=(*TABLE.listeners, *names))
    subject = replace(subject, target=target, sights=sights, diagnoses=BLOCKED.diagnoses)
    path = tmp_path / "report.html"
    path.write_text(html.render(subject, replace(subject, results=subject.results[:9], interrupted=False)))
    return path


def browse(page: Path, *options: str) -> str:
    command = (str(CHROMIUM), *QUIET, f"--user-data-dir={page.parent / 'profile'}", *options, page.as_uri())
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout


def measured(page: Path, script: str, *options: str) -> str:
    """Return what a script, added to a copy of the page without its policy, found there."""
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page.read_text())
    copy = page.with_name("measured.html")
    copy.write_text(text.replace("</body>", f"<script>document.title = String((() => {{{script}}})())</script></body>"))
    found = re.search(r"<title>(.*?)</title>", browse(copy, "--dump-dom", *options), re.DOTALL)
    assert found
    return found[1]


@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_is_wider_than_the_window_but_tables_that_scroll(page: Path, width: int) -> None:
    # A window cannot be narrower than 500 pixels everywhere; a frame can.
    frame = page.with_name("frame.html")
    frame.write_text(f'<iframe src="{page.name}" style="width: {width}px; height: 900px; border: 0"></iframe>')
    script = "const d = document.documentElement; return d.scrollWidth <= d.clientWidth ? 'fits' : d.scrollWidth"
    inside = page.with_name("measured.html")
    measured(page, script)
    frame.write_text(frame.read_text().replace(page.name, inside.name))
    frame.write_text(
        frame.read_text() + "<script>onload = () => { document.title = frames[0].document.title }</script>"
    )
    found = re.search(
        r"<title>(.*?)</title>",
        browse(frame, "--dump-dom", "--window-size=1400,1000", "--allow-file-access-from-files"),
    )
    assert found and found[1] == "fits"


@pytest.mark.parametrize("scheme", [(), (DARK,)], ids=["light", "dark"])
def test_every_text_has_contrast(page: Path, scheme: tuple[str, ...]) -> None:
    # WCAG 2.2, 1.4.3: 4.5 to 1, against the nearest ground that is painted.
    script = """
      const light = c => c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const rgb = c => c.match(/[\\d.]+/g).map(Number);
      const ground = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
        if (c.length < 4 || c[3] > 0) return c.slice(0, 3) } return [255, 255, 255] };
      document.querySelectorAll('details').forEach(d => d.open = true);
      const poor = new Set();
      const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      while (walk.nextNode()) { const e = walk.currentNode.parentElement;
        if (!walk.currentNode.data.trim() || ['SCRIPT', 'STYLE'].includes(e.tagName)) continue;
        const [a, b] = [light(rgb(getComputedStyle(e).color).slice(0, 3)), light(ground(e))].sort((x, y) => y - x);
        if ((a + .05) / (b + .05) < 4.5) poor.add(e.className || e.tagName) }
      const dark = light(ground(document.body)) < .5;
      return (dark ? 'dark' : 'light') + ' ' + [...poor].join(',')"""
    assert measured(page, script, *scheme).split(" ", 1) == ["dark" if scheme else "light", ""]


def test_a_cell_opens_without_script_to_what_was_said(page: Path) -> None:
    script = """
      const cell = document.querySelector('td > details'); const panel = cell.querySelector('.panel');
      const closed = panel.checkVisibility(); cell.open = true;
      return [closed, panel.checkVisibility(), panel.textContent.includes('220 mx')]"""
    assert measured(page, script) == "false,true,true"


def test_it_goes_onto_paper(page: Path) -> None:
    sheet = page.with_name("report.pdf")
    browse(page, f"--print-to-pdf={sheet}", "--no-pdf-header-footer")
    assert sheet.read_bytes().startswith(b"%PDF-") and sheet.stat().st_size > 20_000


@pytest.mark.parametrize("scheme", [(), (DARK,)], ids=["light", "dark"])
def test_it_can_be_looked_at(page: Path, scheme: tuple[str, ...]) -> None:
    picture = page.with_name("report.png")
    browse(page, f"--screenshot={picture}", "--window-size=1280,1600", *scheme)
    assert picture.read_bytes().startswith(b"\x89PNG")
