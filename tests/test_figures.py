"""Names from settings and data in a plot are text: no formula, no line break, no escape."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from support.manifests import training

from data.storage import Storage
from data.verdicts import Verdict
from jobs.judging.report import draw_report, metrics_of
from jobs.reporting.figures import as_svg, heat_map, save_png
from jobs.reporting.figures_training import losses

NAMES = {
    r"$4\frac$": r"$4\frac$",
    "$": "$",
    r"a$_{x$b": r"a$_{x$b",
    "line\nbreak": r"line\nbreak",
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "half \ud800": r"half \ud800",
    "<b>&amp;": "<b>&amp;",
}
"""Name -> what a plot shows."""


@pytest.mark.case("C14: $ in the title of a plot")
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_text_in_a_plot(name: str, tmp_path: Path) -> None:
    title, grid = losses("loss", name, training()), heat_map("h", "t", [name], ["b"], [[0.5]], [["x"]], "scale")
    for plot in (title, grid):
        svg = as_svg(plot).svg
        assert NAMES[name] in [
            text.text for text in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
        ]
    save_png([title], Storage(str(tmp_path / "p.png")), f"{name}: {'long ' * 200}")
    assert (tmp_path / "p.png").stat().st_size > 0


@pytest.mark.case("C14: $ in the name of a judged model")
def test_models_of_any_name_are_drawn(tmp_path: Path) -> None:
    one, other = r"$4\frac$", "b\n$"
    found = [
        Verdict("pair", n, "$math", 1, pair, "j", winner="first") for n, pair in ((1, (one, other)), (1, (other, one)))
    ]
    found += [Verdict("single", 1, r"\frac$", 1, (name,), "j", rating=5.0) for name in (one, other)]
    draw_report(metrics_of(found, [one, other], one, 10, 0), f"judged by {one}", Storage(str(tmp_path / "r.png")))
    assert (tmp_path / "r.png").stat().st_size > 0
