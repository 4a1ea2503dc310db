"""The report of a run as pages: `report.html`, which needs no other file, and `report.md` beside `figures/`.

Reads what the stages left; the parts explain what a number means. Knows no sampling and no Ray.
"""

from collections.abc import Sequence
from pathlib import Path

import jinja2

from cluster.masking import without_secrets
from data.stage_files import PICTURES
from data.steering_metrics import ReportMetrics
from data.storage import Storage
from jobs.evaluation.ask import synthetic_world
from jobs.reporting.blocks import Gallery, Part
from jobs.reporting.figures import COLORS, standalone
from jobs.reporting.markdown import markdown
from jobs.reporting.rows import answers_by_value
from jobs.reporting.sections_benchmarks import run_benchmarks
from jobs.reporting.sections_comparison import comparison_parts
from jobs.reporting.sections_predictor import predictor_parts
from jobs.reporting.sections_steering import answers_part, steering_parts
from jobs.reporting.sections_training import rounds_part, training_parts
from jobs.reporting.sections_witnesses import witnesses_part
from jobs.reporting.tables import as_html
from jobs.runner.stage import Run

HTML, MARKDOWN = "report.html", "report.md"
QUESTIONS_PER_ATTRIBUTE = 2
"""Whose answers are shown at each requested value of an attribute."""


def write_pages(run: Run, report: ReportMetrics, folder: Storage) -> list[str]:
    """Write the pages about `report` into `folder`, where the answers lie; returns the names of their pictures.

    The same input gives the same bytes.
    """
    parts = page_parts(run, report, folder)
    return write_parts(f"{run.preset.run}: steering report", _about(run, report), parts, folder)


def write_parts(title: str, about: str, parts: Sequence[Part], folder: Storage) -> list[str]:
    """Write any parts as pages into `folder`; returns the names of their pictures."""
    galleries = [block for part in parts for block in part.blocks if isinstance(block, Gallery)]
    pictures = {f"{PICTURES}/{figure.name}.svg": figure for gallery in galleries for figure in gallery.figures}
    for name, figure in pictures.items():
        (folder / name).write_bytes(standalone(figure).encode())
    (folder / MARKDOWN).write_bytes(markdown(title, about, parts).encode())
    (folder / HTML).write_bytes(_html(title, about, parts).encode())
    return list(pictures)


def page_parts(run: Run, report: ReportMetrics, folder: Storage) -> list[Part]:
    """All parts that have content: steering first, then how the model was made."""
    parts = [
        *steering_parts(run.schema, report),
        witnesses_part(report),
        *comparison_parts(run, report),
        *run_benchmarks(run),
        _answers(run, folder),
        rounds_part(run, report.rounds),
        *predictor_parts(run),
        *training_parts(run),
    ]
    return [part for part in parts if part]


def _answers(run: Run, folder: Storage) -> Part | None:
    world, rated = synthetic_world(run), folder / "rated"
    rows = rated if rated.exists() else folder / "answers"
    found = answers_by_value(rows, run.schema, QUESTIONS_PER_ATTRIBUTE)
    return answers_part(found, lambda row: world.measure(row.messages) if world else row.predicted[-1])


def _about(run: Run, report: ReportMetrics) -> str:
    # The folder of a run is private; the stage names the policy.
    stage = without_secrets(report.policy.rpartition(f"/{run.preset.run}/")[2])
    sources = ", ".join(source.name for source in run.preset.rows.sources)
    return f"Run “{run.preset.run}” on {sources}; attributes: {', '.join(run.schema.names)}. Evaluated policy: {stage}."


def _html(title: str, about: str, parts: Sequence[Part]) -> str:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.get_template("report.html.jinja")
    return template.render(title=title, about=about, parts=parts, colors=COLORS, rows_of=as_html)
