"""The report of a run as pages: `report.html`, one file that needs nothing else, and `report.md` with the same figures beside `figures/`.

Reads what the stages left and decides nothing: what a number means is said by the parts. Knows no sampling and no Ray.
"""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from data.storage import Storage
from jobs.evaluation.ask import synthetic_world
from jobs.reporting.blocks import Gallery, Part, Table, shown, without_secrets
from jobs.reporting.markdown import markdown
from jobs.reporting.rows import across_dials
from jobs.reporting.sections_steering import answers_part, steering_parts
from jobs.reporting.sections_training import training_parts
from jobs.reporting.svg_figures import COLOURS, standing_alone
from jobs.runner.stage import Metrics, Run

HTML, MARKDOWN, PICTURES = "report.html", "report.md", "figures"
QUESTIONS_PER_DIAL = 2
"""Whose answers are shown at each value of a dial."""


def write_pages(run: Run, report: Metrics, folder: Storage) -> None:
    """Write the pages about `report`, the content of `report.json`, into `folder`, where the answers lie. Twice the same if nothing changed."""
    parts = page_parts(run, report, folder)
    title, about = f"{run.preset.run}: do the dials turn?", _about(run, report)
    (folder / PICTURES).remove()
    for figure in (
        figure for part in parts for block in part.blocks if isinstance(block, Gallery) for figure in block.figures
    ):
        (folder / PICTURES / f"{figure.name}.svg").write_bytes(standing_alone(figure).encode())
    (folder / MARKDOWN).write_bytes(markdown(title, about, parts).encode())
    (folder / HTML).write_bytes(_html(title, about, parts).encode())


def page_parts(run: Run, report: Metrics, folder: Storage) -> list[Part]:
    """All parts of which there is something to say: what the dials do first, how the model was made after."""
    steering = list(steering_parts(run.schema, report))
    return [part for part in (*steering, _answers(run, folder), *training_parts(run, report)) if part]


def _answers(run: Run, folder: Storage) -> Part | None:
    lab, rated = synthetic_world(run), folder / "rated"
    rows = rated if rated.exists() else folder / "answers"
    found = across_dials(rows, run.schema, QUESTIONS_PER_DIAL)
    return answers_part(found, lambda row: lab.measure(row.messages) if lab else row.predicted[-1])


def _about(run: Run, report: Metrics) -> str:
    policy = str(report["policy"])
    # Where a run lies is nobody's business but its owner's; what matters is which of its policies this is.
    stage = policy.rpartition(f"/{run.preset.run}/")[2]
    sources = ", ".join(source.name for source in run.preset.rows.sources)
    dials = ", ".join(run.schema.names)
    return f"Run “{run.preset.run}” on {sources}; attributes: {dials}. The policy that was asked: {without_secrets(stage)}."


def _html(title: str, about: str, parts: Sequence[Part]) -> str:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("report.html.jinja")
    return template.render(title=title, about=about, parts=parts, colours=COLOURS, shown=shown, words=_has_words)


def _has_words(table: Table, column: int) -> bool:
    """Is it a column of texts, which stand to the left? Numbers stand to the right."""
    return any(isinstance(cell, str) and not cell[:1].isdigit() for cell in (row[column] for row in table.rows))
