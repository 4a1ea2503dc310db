"""The report's page in a real Chromium, at phone and desktop width, on a light and on a dark ground.

Screenshots go to the folder STEERLM_SCREENSHOTS, if it is set.
"""

import json
import re
from pathlib import Path

import pytest
from support.chromium import DESKTOP, PHONE, chromium, resize, screenshot
from support.finished_run import NAMES, finished, report

from jobs.reporting.page import write_pages

SMALLEST_TEXT = """
return Array.from(document.querySelectorAll('figure svg'), svg => {
  const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
  const texts = Array.from(svg.querySelectorAll('text'), text => parseFloat(getComputedStyle(text).fontSize) * scale);
  return [svg.getAttribute('aria-label'), box.left, box.right, box.height, texts.length ? Math.min(...texts) : 0];
});
"""


@pytest.mark.slow
def test_in_chromium_nothing_sticks_out_and_every_figure_can_be_read(tmp_path: Path) -> None:
    run = finished(tmp_path)
    write_pages(run, report(run), run.folder("report"))
    with chromium() as browser:
        browser.get(f"file://{run.folder('report').path}/report.html")
        for name, size in (("desktop", DESKTOP), ("phone", PHONE)):
            for scheme in ("light", "dark"):
                browser.execute_cdp_cmd(
                    "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
                )
                resize(browser, size)
                assert browser.execute_script(
                    "return [window.innerWidth, document.documentElement.scrollWidth <= window.innerWidth]"
                ) == [size[0], True]
                metrics = browser.execute_script(SMALLEST_TEXT)
                assert len(metrics) == 4 * len(NAMES) + 3 + 5 + len(report(run).witnesses)
                for alt, left, right, height, smallest in metrics:
                    assert 0 <= left < right <= size[0], alt
                    assert height > 150, alt
                    assert smallest >= 9, alt
                ink, ground = (
                    browser.execute_script(f"return getComputedStyle(document.querySelector('{css}')).{what}")
                    for css, what in STYLES
                )
                assert (_light(ink), _light(ground)) == ((False, True) if scheme == "light" else (True, False))
                screenshot(browser, f"report-{name}-{scheme}")
        assert browser.get_log("browser") == []
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        asked = [
            event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
        ]
        assert asked, "the page itself is in the log"
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        assert len([url for url in asked if url.startswith("file:")]) == 1


STYLES = (("figure svg text", "fill"), ("section", "backgroundColor"))


def _light(color: str) -> bool:
    return sum(map(int, re.findall(r"\d+", color)[:3])) > 3 * 128
