"""Stage `rows`: read every source, write its conversations, count and write rejected records. Knows no model.

python -m jobs.prepare PRESET.yaml [key.path=value ...]
"""

import json
from collections import Counter
from collections.abc import Iterator

from cluster.masking import masked
from data.attributes import AttributeSchema
from data.conversation import Conversation, Rejected, to_table
from data.lab import SCHEMA as LAB_SCHEMA
from data.lab import Lab
from data.sources import files_of, read
from data.stage_metrics import RowsMetrics
from data.storage import Storage
from jobs.pipelines.map_rows import write_table
from jobs.runner.cli import main
from jobs.runner.preset import LAB, Preset, RowsSettings, SourceSettings
from jobs.runner.stage import Run, Stage, StageError, log


def source_rows(
    source: SourceSettings, settings: RowsSettings, schema: AttributeSchema
) -> Iterator[Conversation | Rejected]:
    """The rows of one source, in a fixed order."""
    if source.format == LAB:
        schema.require_same(LAB_SCHEMA, "the run", "the synthetic world")
        return iter(Lab(settings.lab).rows())
    return read(source.uri, source.format, schema, source.name, source.limit)


def work(run: Run, folder: Storage) -> RowsMetrics:
    """Write `rows/part-*.parquet` and `rejected.jsonl`; raises StageError if too many records are rejected."""
    settings = run.preset.rows
    seen: set[str] = set()
    counts: dict[str, Counter[str]] = {}
    rejected: list[Rejected] = []
    pending: list[Conversation] = []
    num_files = 0

    def flush() -> None:
        nonlocal num_files, pending
        if pending:
            write_table(to_table(pending, run.schema), folder / "rows", f"part-{num_files:05d}.parquet")
            num_files, pending = num_files + 1, []

    for source in settings.sources:
        count = counts[source.name] = Counter()
        for row in source_rows(source, settings, run.schema):
            count["read"] += 1
            if isinstance(row, Rejected):
                rejected.append(row)
                count[f"rejected: {row.reason}"] += 1
            elif row.id in seen:
                count["duplicate"] += 1
            else:
                seen.add(row.id)
                pending.append(row)
                count["rows"] += 1
                count["answers"] += row.num_answers
                count["rated_answers"] += sum(bool(v) for v in row.human)
            if len(pending) >= settings.rows_per_file:
                flush()
                log(f"rows: {source.name}: {count['read']:,} read, {count['rows']:,} kept")
    flush()
    lines = (json.dumps(vars(r) | {"file": masked(r.file)}, ensure_ascii=False) + "\n" for r in rejected)
    (folder / "rejected.jsonl").write_bytes("".join(lines).encode())
    _check(settings, counts, rejected, folder)
    log(f"rows: {json.dumps(counts)}")
    return RowsMetrics(counts={name: dict(count) for name, count in counts.items()}, rows=len(seen))


def _check(settings: RowsSettings, counts: dict[str, Counter[str]], rejected: list[Rejected], folder: Storage) -> None:
    if torn := [r for r in rejected if r.reason == "broken_file"]:
        # One rejection, but an unknown number of lost rows: `max_rejected` cannot allow for it.
        raise StageError(
            f"{torn[0].file} is broken from line {torn[0].line} on ({torn[0].detail}); get the whole file and run again"
        )
    num_read = sum(c["read"] for c in counts.values())
    worst = "; ".join(f"{r.file} line {r.line}: {r.reason} {r.detail}" for r in rejected[:3])
    where = f"{worst}; all of them are in {folder.uri}/rejected.jsonl"
    if not sum(c["rows"] for c in counts.values()):
        sources = ", ".join(s.uri or s.format for s in settings.sources)
        raise StageError(
            f"no row could be read from {sources}: {num_read} records read, {len(rejected)} rejected"
            + (f": {where}" if rejected else "")
        )
    if len(rejected) > settings.max_rejected * num_read:
        share = f"{len(rejected) / num_read:.1%}), rows.max_rejected allows {settings.max_rejected:.1%}"
        raise StageError(
            f"{len(rejected)} of {num_read} records were rejected ({share}: {where}; "
            "fix them or raise rows.max_rejected"
        )


def _inputs(run: Run) -> dict[str, str]:
    """Checksum of every file read, so that a changed file is read again."""
    files = [f for s in run.preset.rows.sources if s.format != LAB for f in files_of(s.uri)]
    return {file: Storage(file).checksum() for file in files}


def _settings(preset: Preset) -> object:
    return {"rows": preset.rows}


STAGE = Stage("rows", (), _settings, work, _inputs)

if __name__ == "__main__":
    main(__doc__, [STAGE])
