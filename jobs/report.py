"""Write the pages of a finished run again: report/report.html and report/report.md. Samples nothing and starts no Ray.

    python -m jobs.report PRESET.yaml [key.path=value ...]

The stage `report` (`jobs.evaluate`, `jobs.run`) writes them as well.
"""

import sys

from cluster.settings.load import command_line
from data.run_layout import MANIFEST, REPORT, read_record, write_record
from data.stage_files import PICTURES, recorded_names, with_pages
from data.steering_metrics import ReportMetrics
from jobs.reporting.page import HTML, MARKDOWN, write_pages
from jobs.runner.ending import print_last_line, user_errors_reported
from jobs.runner.lease import held, lease_of
from jobs.runner.preset import Preset
from jobs.runner.stage import Metrics, Run, StageError

PROGRAM = "python -m jobs.report"


def render(run: Run) -> Metrics:
    """Write the pages; raises StageError if the run has no report yet. Returns the content of the last line."""
    folder, manifest = run.folder("report"), run.manifest("report")
    if manifest is None:
        raise StageError(
            f"the report of {run.root.uri} is not finished; run `python -m jobs.run` with the same preset first"
        )
    pictures = write_pages(run, read_record(folder / REPORT, ReportMetrics), folder)
    before = [name for name in recorded_names(folder) if name.startswith(f"{PICTURES}/")]
    folder.remove_files(set(before).difference(pictures))
    if manifest.files:
        files = with_pages(folder, manifest.files, [HTML, MARKDOWN, *pictures])
        write_record(folder / MANIFEST, manifest.model_copy(update={"files": files}))
    page = folder / HTML
    return {
        "run": run.root.uri,
        "html": page.uri,
        "markdown": (folder / MARKDOWN).uri,
        "bytes": len(page.read_text().encode()),
        "figures": len(pictures),
    }


def main(argv: list[str]) -> None:
    preset, _ = command_line(Preset, argv, PROGRAM, __doc__ or "")
    with user_errors_reported(PROGRAM, "run it again for the pages"):
        run = Run(preset)
        with held(lease_of(run.root), PROGRAM):
            done = render(run)
        print_last_line(done)


if __name__ == "__main__":
    main(sys.argv[1:])
