"""Stage `rows`: read every source, write its conversations, count and write rejected records. Knows no model.

python -m jobs.prepare PRESET.yaml [key.path=value ...]
"""

import contextlib
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import IO

import pyarrow.parquet as pq

from cluster.masking import masked
from data.attributes import AttributeSchema
from data.conversation import Conversation, Rejected, from_table, to_table
from data.lab import Lab
from data.lab_mix import SCHEMA as LAB_SCHEMA
from data.printable import printable
from data.raters import RepeatedRows
from data.source_checksums import CheckedSource, checked, read_index, together, write_index
from data.source_files import shown_path
from data.sources import found, read, suffixes_of
from data.stage_metrics import RowsMetrics
from data.storage import Storage
from jobs.pipelines.map_rows import write_table
from jobs.runner.cli import main
from jobs.runner.preset import LAB, Preset, RowsSettings, SourceSettings
from jobs.runner.stage import Run, Stage, StageError, log, warn

MAX_SENTENCE = 396
"""Characters of an error."""
SHOWN_REJECTIONS = 3
"""A message shows at most so many rejected records."""


class Rejections:
    """Rejected records, written as they come; only the first are held."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._first: list[Rejected] = []
        self.num = 0
        self.broken: Rejected | None = None
        """The first file that could not be read to its end."""

    def add(self, rejected: Rejected) -> None:
        # Half surrogates, of names that are no UTF-8, become JSON's own escapes.
        line = json.dumps(vars(rejected) | {"file": masked(rejected.file)}, ensure_ascii=False) + "\n"
        self._file.write(line.encode(errors="backslashreplace"))
        self.num += 1
        if len(self._first) < SHOWN_REJECTIONS:
            self._first.append(rejected)
        if rejected.reason == "broken_file" and not self.broken:
            self.broken = rejected

    def told(self, sentence: str, folder: Storage) -> str:
        """The sentence with the first ones, as many as fit, and where all are in place of "{}"."""
        where = f"; all of them are in {shown_path(folder.uri, 60)}/rejected.jsonl"
        room = MAX_SENTENCE - len(sentence) - len(where)
        first = [f"{shown_path(r.file, 50)} line {r.line}: {r.reason} {printable(r.detail, 140)}" for r in self._first]
        while len(first) > 1 and len("; ".join(first)) > room:
            first.pop()
        return sentence.replace("{}", printable("; ".join(first), room) + where)


def source_rows(
    source: SourceSettings, settings: RowsSettings, schema: AttributeSchema
) -> Iterator[Conversation | Rejected]:
    """The rows of one source, in a fixed order."""
    if source.format == LAB:
        schema.require_same(LAB_SCHEMA, "the run", "the synthetic world")
        return iter(Lab(settings.lab).rows())
    return read(source.uri, source.format, schema, source.name, source.limit, source.columns)


def work(run: Run, folder: Storage) -> RowsMetrics:
    """Write `rows/part-*.parquet` and `rejected.jsonl`; raises StageError if too many records are rejected."""
    with tempfile.TemporaryDirectory() as scratch, contextlib.closing(RepeatedRows(f"{scratch}/again.db")) as again:
        with open(f"{scratch}/rejected.jsonl", "wb") as file:
            rejections = Rejections(file)
            counts, num_rows, sources = _write(run, folder, again, rejections)
        write_index(_checked(run), folder)
        (folder / "rejected.jsonl").put(file.name)
        _check(run.preset.rows, counts, rejections, folder)
        _merge(run, folder / "rows", again)
    for name, merged in again.counts.items():
        count = counts[name]
        found = {"duplicate": merged.duplicates, "merged": merged.merged, "several_raters": merged.answers}
        count.update({what: num for what, num in found.items() if num})
        count["rated_answers"] += merged.newly_rated
    log(f"rows: {json.dumps(counts)}")
    spread = {name: merged.spread() for name, merged in again.counts.items() if merged.answers}
    for name, by_attribute in spread.items():
        log(f"rows: {name}: standard deviation between raters of one answer: {json.dumps(by_attribute)}")
    of_sources = {name: dict(count) for name, count in counts.items()}
    return RowsMetrics(counts=of_sources, rows=num_rows, sources=tuple(sorted(sources)), rater_spread=spread)


def _write(
    run: Run, folder: Storage, again: RepeatedRows, rejections: Rejections
) -> tuple[dict[str, Counter[str]], int, set[str]]:
    """Each row once, in the order of reading; returns the counts of each source, how many rows there are, and theirs.

    Rows of ours keep the name of the source that they came with.
    """
    settings = run.preset.rows
    seen: dict[str, int] = {}
    counts: dict[str, Counter[str]] = {}
    sources: set[str] = set()
    pending: list[Conversation] = []
    num_parts = 0
    for source in settings.sources:
        if source.format != LAB and (sentence := found(source.uri, source.format).passed_by()):
            warn(f"rows: {source.name}: {sentence}")
        count = counts[source.name] = Counter()
        for row in source_rows(source, settings, run.schema):
            count["read"] += 1
            if isinstance(row, Rejected):
                rejections.add(row)
                count[f"rejected: {row.reason}"] += 1
            elif row.id in seen:
                again.add(seen[row.id], source.name, row)
            else:
                seen[row.id] = num_parts
                sources.add(row.source)
                pending.append(row)
                count["rows"] += 1
                count["answers"] += row.num_answers
                count["rated_answers"] += sum(bool(v) for v in row.human)
            if len(pending) >= settings.rows_per_file:
                write_table(to_table(pending, run.schema), folder / "rows", _part(num_parts))
                num_parts, pending = num_parts + 1, []
                log(f"rows: {source.name}: {count['read']:,} read, {count['rows']:,} kept")
    if pending:
        write_table(to_table(pending, run.schema), folder / "rows", _part(num_parts))
    return counts, len(seen), sources


def _part(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _merge(run: Run, folder: Storage, again: RepeatedRows) -> None:
    """Write the parts anew in which a row has several raters."""
    for number in again.parts():
        file = folder / _part(number)
        rows = from_table(pq.read_table(file.path, filesystem=file.arrow_fs))
        if (merged := again.merged(number, rows)) is not None:
            write_table(to_table(merged, run.schema), folder, _part(number))


def _check(settings: RowsSettings, counts: dict[str, Counter[str]], rejections: Rejections, folder: Storage) -> None:
    if torn := rejections.broken:
        # One rejection, but an unknown number of lost rows: `max_rejected` cannot allow for it.
        what = printable(torn.detail, 240)
        raise StageError(f"{shown_path(torn.file)} is broken from line {torn.line} on: {what}; then run again")
    num_read = sum(c["read"] for c in counts.values())
    if not sum(c["rows"] for c in counts.values()):
        sources = ", ".join(shown_path(s.uri, 50) or s.format for s in settings.sources[:2])
        sentence = f"no row could be read from {sources}: {num_read} records read, {rejections.num} rejected"
        raise StageError(rejections.told(f"{sentence}: {{}}", folder) if rejections.num else sentence)
    if rejections.num > settings.max_rejected * num_read:
        share = f"{rejections.num / num_read:.1%}), rows.max_rejected allows {settings.max_rejected:.1%}"
        sentence = f"{rejections.num} of {num_read} records were rejected ({share}: {{}}; fix them or raise "
        raise StageError(rejections.told(f"{sentence}rows.max_rejected", folder))


def _inputs(run: Run) -> dict[str, str]:
    """Checksums of the files read, so that a changed file is read again."""
    return together(_checked(run))


def _checked(run: Run) -> list[CheckedSource]:
    sources = [source for source in run.preset.rows.sources if source.format != LAB]
    known = read_index(run.folder("rows")) if sources else {}
    return [checked(source.uri, suffixes_of(source.format), known) for source in sources]


def _settings(preset: Preset) -> object:
    return {"rows": preset.rows}


STAGE = Stage("rows", (), _settings, work, _inputs)

if __name__ == "__main__":
    main(__doc__, [STAGE])
