"""Stage `rows`: what is read, in which splits, and what is counted of it. Knows no command.

The reading is in `read_sources`, what comes twice in `unique_rows`.
"""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence

from cluster.masking import masked
from data.conversation import Rejected, arrow_schema
from data.iceberg import ICEBERG
from data.lab import LAB
from data.lab_mix import SCHEMA as LAB_SCHEMA
from data.own_rows import require_columns
from data.printable import printable
from data.raters import RepeatCounts
from data.row_pieces import REJECTED, SourceReader, num_rejected
from data.run_layout import PROGRESS
from data.shards import Output
from data.source_files import SourceFiles, shown_path
from data.sources import found
from data.splits import Split, is_small, splits_of
from data.stage_metrics import RowsMetrics
from data.storage import Storage
from jobs.pipelines.read_sources import BROKEN, SourcesReading, counts_of, write_rejections
from jobs.pipelines.table_sources import table_snapshot
from jobs.pipelines.tasks import Calls, ClusterCalls, HereCalls
from jobs.pipelines.unique_rows import UniqueWriting
from jobs.runner.preset import RowsSettings, SourceSettings
from jobs.runner.stage import Run, StageError, fingerprint_of, log, warn

MAX_SENTENCE = 396
"""Characters of an error."""
SHOWN_REJECTIONS = 3
"""A message shows at most so many rejected records."""


def write_rows(run: Run, folder: Storage, calls: Calls | None = None) -> RowsMetrics:
    """Write `rows/part-*.parquet` and `rejected/part-*.jsonl`; raises StageError if too many records are rejected.

    `calls`: where the work is done; None = on the cluster, or here if it is no more than one task's.
    """
    settings, output = run.preset.rows, _output(run, folder)
    planned = [_planned(number, source, run, folder) for number, source in enumerate(settings.sources)]
    readers, splits = [reader for reader, _ in planned], [own for _, own in planned]
    calls = calls or _calls(settings, splits)
    limits = [0 if source.format == LAB else source.limit for source in settings.sources]
    read = SourcesReading(readers, output, calls).read(splits, limits)
    counts = {source.name: counts_of(number, read) for number, source in enumerate(settings.sources)}
    rejected = folder / "rejected"
    write_rejections(read, rejected, output, calls)
    _check(settings, counts, rejected)
    near = {n: s.near_duplicates for n, s in enumerate(settings.sources) if s.near_duplicates is not None}
    unique = UniqueWriting(read, arrow_schema(run.schema), output, calls).write(settings.rows_per_file, near)
    output.require_owner()
    output.all_pieces.remove()
    for number, repeated in unique.counts.items():
        _count_repeated(counts[settings.sources[number].name], repeated)
    log(f"rows: {json.dumps(counts)}")
    spread = {settings.sources[n].name: r.spread() for n, r in sorted(unique.counts.items()) if r.several_raters}
    for name, by_attribute in spread.items():
        log(f"rows: {name}: standard deviation between raters of one answer: {json.dumps(by_attribute)}")
    of_sources = {name: dict(count) for name, count in counts.items()}
    return RowsMetrics(counts=of_sources, rows=unique.rows, sources=unique.names, rater_spread=spread)


def _output(run: Run, folder: Storage) -> Output:
    """Parts and pieces; those of a killed run are kept if they come from the same inputs and splits."""
    fingerprint = fingerprint_of(folder) if (folder / PROGRESS).exists() else ""
    output = Output((folder / "rows").uri, fingerprint, variant=f"-{run.preset.rows.split_bytes}")
    if not fingerprint:
        for left in (output.parts, output.all_pieces, folder / "rejected"):
            left.remove()
    output.sweep()
    return output


def _planned(number: int, source: SourceSettings, run: Run, folder: Storage) -> tuple[SourceReader, list[Split]]:
    """How the source is read, and in which splits."""
    settings = run.preset.rows
    if source.format == LAB:
        run.schema.require_same(LAB_SCHEMA, "the run", "the synthetic world")
        return SourceReader(source.name, LAB, run.schema, lab=settings.lab), [Split(number, 0)]
    files = _files(source, run, folder)
    if sentence := files.passed_by():
        warn(f"rows: {source.name}: {sentence}")
    shown = {file: masked(file) for file in files.files if masked(file) != file}
    reader = SourceReader(source.name, source.format, run.schema, source.columns, shown=shown)
    return reader, splits_of(number, source.format, files, settings.split_bytes)


def _files(source: SourceSettings, run: Run, folder: Storage) -> SourceFiles:
    if source.format != ICEBERG:
        return found(source.uri, source.format)
    snapshot = table_snapshot(folder, source.uri, arrow_schema(run.schema).names)
    require_columns(snapshot.schema, run.schema, f"the Iceberg table {source.uri}")
    return snapshot.files


def _calls(settings: RowsSettings, splits: Sequence[Sequence[Split]]) -> Calls:
    """Tasks on the cluster; what one task may read is read here, sooner than a task starts."""
    here = is_small(itertools.chain.from_iterable(splits), settings.split_bytes)
    return HereCalls() if here else ClusterCalls(settings.num_tasks)


def _count_repeated(count: Counter[str], repeated: RepeatCounts) -> None:
    """Take rows that came again out of what was read, under their own names."""
    count.subtract({"rows": repeated.rows, "answers": repeated.answers, "rated_answers": repeated.rated_answers})
    count["rated_answers"] += repeated.newly_rated
    if not count["rows"]:
        del count["rows"], count["answers"]
    named = {
        "duplicate": repeated.duplicates,
        "near_duplicate": repeated.near_duplicates,
        "merged": repeated.merged,
        "several_raters": repeated.several_raters,
    }
    count.update({name: num for name, num in named.items() if num})


def _check(settings: RowsSettings, counts: dict[str, Counter[str]], folder: Storage) -> None:
    """Raises StageError for a broken file, for no rows, and for too many rejected records, which `folder` has."""
    if any(count[BROKEN] for count in counts.values()):
        # One rejection, but an unknown number of lost rows: `max_rejected` cannot allow for it.
        torn = next(r for r in _rejected(folder) if f"{REJECTED}{r.reason}" == BROKEN)
        what = printable(torn.detail, 240)
        raise StageError(f"{shown_path(torn.file)} is broken from line {torn.line} on: {what}; then run again")
    num_read, num_bad = sum(c["read"] for c in counts.values()), sum(map(num_rejected, counts.values()))
    if not sum(c["rows"] for c in counts.values()):
        sources = ", ".join(shown_path(s.uri, 50) or s.format for s in settings.sources[:2])
        sentence = f"no row could be read from {sources}: {num_read} records read, {num_bad} rejected"
        raise StageError(_with_examples(f"{sentence}: {{}}", folder) if num_bad else sentence)
    if num_bad > settings.max_rejected * num_read:
        share = f"{num_bad / num_read:.1%}), rows.max_rejected allows {settings.max_rejected:.1%}"
        sentence = f"{num_bad} of {num_read} records were rejected ({share}: {{}}; fix them or raise "
        raise StageError(_with_examples(f"{sentence}rows.max_rejected", folder))


def _rejected(folder: Storage) -> Iterator[Rejected]:
    """The rejected records, in order, one at a time."""
    for path in folder.files(".jsonl"):
        with folder.fs.open(path, "rb") as file:
            yield from (Rejected(**json.loads(line)) for line in file)


def _with_examples(sentence: str, folder: Storage) -> str:
    """The sentence with the first rejected records, as many as fit, and where all are in place of "{}"."""
    where = f"; all of them are in {shown_path(folder.uri, 60)}"
    room = MAX_SENTENCE - len(sentence) - len(where)
    first = [
        f"{shown_path(r.file, 50)} line {r.line}: {r.reason} {printable(r.detail, 140)}"
        for r in itertools.islice(_rejected(folder), SHOWN_REJECTIONS)
    ]
    while len(first) > 1 and len("; ".join(first)) > room:
        first.pop()
    return sentence.replace("{}", printable("; ".join(first), room) + where)
