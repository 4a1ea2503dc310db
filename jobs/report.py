"""The pages of a finished run once more, from what it left: report/report.html and report/report.md. Samples nothing and starts no Ray.

    python -m jobs.report PRESET.yaml [key.path=value ...]

The stage `report` (`jobs.evaluate`, `jobs.run`) writes them at its end by itself.
"""

import json
import sys

from cluster.settings.load import command_line
from data.errors import is_for_people
from jobs.reporting.page import HTML, MARKDOWN, PICTURES, write_pages
from jobs.runner.preset import Preset
from jobs.runner.stage import Metrics, Run, StageError

PROGRAM = "python -m jobs.report"


def render(run: Run) -> Metrics:
    """Write the pages; raises StageError if the run has no report yet. Returns what the last line says."""
    folder = run.folder("report")
    if run.manifest("report") is None:
        raise StageError(
            f"the report of {run.root.uri} is not finished; run `python -m jobs.run` with the same preset first"
        )
    write_pages(run, (folder / "report.json").read_json(), folder)
    page = folder / HTML
    return {
        "run": run.root.uri,
        "html": page.uri,
        "markdown": (folder / MARKDOWN).uri,
        "bytes": len(page.read_text().encode()),
        "figures": len((folder / PICTURES).files(".svg")),
    }


def main(argv: list[str]) -> int:
    preset, _ = command_line(Preset, argv, PROGRAM, __doc__ or "")
    try:
        print(json.dumps(render(Run(preset)), ensure_ascii=False))
    except Exception as error:
        if not is_for_people(error):
            raise
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
