"""Stage `rows`: read every source, write its conversations once, count and write rejected records. Knows no model.

python -m jobs.prepare PRESET.yaml [key.path=value ...]
"""

from data.iceberg import ICEBERG
from data.lab import LAB
from data.source_checksums import CheckedSource, checked, read_index, together, write_index
from data.sources import suffixes_of
from data.stage_metrics import RowsMetrics
from data.storage import Storage
from jobs.pipelines.rows import write_rows
from jobs.pipelines.table_sources import tables
from jobs.runner.cli import main
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, Stage


def work(run: Run, folder: Storage) -> RowsMetrics:
    """Write `rows/part-*.parquet` and `rejected/part-*.jsonl`; raises StageError if too many records are rejected."""
    write_index(_checked(run), folder)
    return write_rows(run, folder)


def _inputs(run: Run) -> dict[str, str]:
    """Checksums of the files read, so that a changed file is read again; of a table its snapshot."""
    return together(_checked(run)) | tables(run)


def _checked(run: Run) -> list[CheckedSource]:
    sources = [source for source in run.preset.rows.sources if source.format not in (LAB, ICEBERG)]
    known = read_index(run.folder("rows")) if sources else {}
    return [checked(source.uri, suffixes_of(source.format), known) for source in sources]


def _settings(preset: Preset) -> object:
    return {"rows": preset.rows}


STAGE = Stage("rows", (), _settings, work, _inputs, resumes=True)

if __name__ == "__main__":
    main(__doc__, [STAGE])
