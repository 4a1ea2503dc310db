"""Write the pages of a finished run again: report/report.html and report/report.md. Samples nothing and starts no Ray.

    python -m jobs.report PRESET.yaml [key.path=value ...]
    python -m jobs.report --live URI [--out FOLDER]

The stage `report` (`jobs.evaluate`, `jobs.run`) writes them as well. With --live, the pages are about production: what
callers requested and the predictor measured, from the records in the endpoint's live.store, by team and by day.
"""

import argparse
import sys
from collections.abc import Sequence

from cluster.masking import mask_streams
from cluster.settings.load import command_line
from data.errors import UserError
from data.live_records import read_live
from data.run_layout import MANIFEST, REPORT, read_record, write_record
from data.stage_files import PICTURES, recorded_names, with_pages
from data.steering_metrics import ReportMetrics
from data.storage import Storage
from data.uris import kept_uri, shown_uri
from jobs.evaluation.live_metrics import live_sums
from jobs.reporting.figures import save_png
from jobs.reporting.figures_live import live_plots
from jobs.reporting.page import HTML, MARKDOWN, write_pages, write_parts
from jobs.reporting.sections_live import live_lines, live_parts
from jobs.runner.ending import print_last_line, user_errors_reported
from jobs.runner.lease import held, lease_of
from jobs.runner.preset import Preset
from jobs.runner.stage import Metrics, Run, StageError, log, warn

PROGRAM = "python -m jobs.report"
LIVE, LIVE_OUT, LIVE_PNG = "--live", "runs/live", "live.png"


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


def render_live(uri: str, out: str) -> Metrics:
    """Write the pages about the live records at `uri` into the folder `out`; raises UserError if there is none.

    Returns the content of the last line.
    """
    folder = Storage(kept_uri(out))
    sums = live_sums(read_live(uri))
    found = sums.metrics()
    if found is None:
        bad = f"; {sums.bad.total():,} lines are no records" if sums.bad else ""
        raise UserError(f"no live record at {shown_uri(uri)}{bad}; name the endpoint's live.store")
    for line in live_lines(found):
        log(line)
    if found.bad_lines:
        warn(f"{found.bad_lines:,} lines are no records and were left out; the first: {found.first_bad}")
    title = "Production: requested and measured"
    about = f"{found.answers:,} answers from {found.first} to {found.last}, out of {shown_uri(uri)}."
    write_parts(title, about, live_parts(found), folder)
    save_png(live_plots(found), folder / LIVE_PNG, f"{title}, {about}")
    write_record(folder / REPORT, found)
    return {
        "live": shown_uri(uri),
        "html": (folder / HTML).uri,
        "markdown": (folder / MARKDOWN).uri,
        "png": (folder / LIVE_PNG).uri,
        "answers": found.answers,
        "bad_lines": found.bad_lines,
        "bad_reasons": found.bad_reasons,
        "first": found.first,
        "last": found.last,
        "gap": {name: curve.gap for name, curve in found.curves.items()},
    }


def live_main(argv: Sequence[str]) -> None:
    """The command line with --live, which reads no preset."""
    mask_streams()
    parser = argparse.ArgumentParser(prog=PROGRAM, allow_abbrev=False)
    parser.add_argument(LIVE, metavar="URI", required=True, help="the endpoint's live.store, or files of it")
    parser.add_argument("--out", metavar="FOLDER", default=LIVE_OUT, help="where the pages go (any URI); %(default)s")
    given = parser.parse_args(argv)
    with user_errors_reported(PROGRAM, "run it again for the pages"):
        print_last_line(render_live(given.live, given.out))


def main(argv: list[str]) -> None:
    if any(word == LIVE or word.startswith(f"{LIVE}=") for word in argv):
        live_main(argv)
        return
    preset, _ = command_line(Preset, argv, PROGRAM, __doc__ or "")
    with user_errors_reported(PROGRAM, "run it again for the pages"):
        run = Run(preset)
        with held(lease_of(run.root), PROGRAM):
            done = render(run)
        print_last_line(done)


if __name__ == "__main__":
    main(sys.argv[1:])
