"""The last word on a pipeline: every row of its sources is in its target once. Ray tasks read the files; the driver sees counts.

Knows nothing of how the target was made (`data.audit` says what is compared, and why that proves it).
"""

import hashlib
from collections.abc import Sequence

import ray

from data.audit import FileAudit, audit_files, num_doubled
from data.shards import Input, Output, inputs_of
from data.stage_metrics import AuditMetrics
from data.storage import Storage
from jobs.runner.stage import StageError, log

IDS_PER_BUCKET = 1_000_000
"""Ids that one task compares among each other: about 100 MB of strings."""
ROWS_PER_TASK, ROWS_PER_TASK_AND_BUCKET = 50_000, 5_000
"""A task reads files until it has so many rows: Ray keeps results under 100 KB in the driver's own memory, so a task for each file would fill it with ids."""
CPUS_PER_TASK = 0.25
"""They read and compare; beside a pool's actors there is always one CPU."""


def audit(what: str, sources: Sequence[Storage], target: Storage, fingerprint: str = "") -> AuditMetrics:
    """Files, rows and a digest of all ids, in order; raises StageError with the counts of lost, doubled and unknown rows, and the file."""
    inputs, output = inputs_of(sources), Output(target.uri, fingerprint)
    num_rows = sum(i.num_rows for i in inputs)
    num_buckets = max(1, -(-num_rows // IDS_PER_BUCKET))
    read = ray.remote(num_cpus=CPUS_PER_TASK, max_retries=-1, num_returns=1 + num_buckets)(audit_files)
    compare = ray.remote(num_cpus=CPUS_PER_TASK, max_retries=-1)(num_doubled)
    refs = [
        read.remote(files, output, num_buckets)
        for files in _tasks(inputs, max(ROWS_PER_TASK, ROWS_PER_TASK_AND_BUCKET * num_buckets))
    ]
    doubled = [compare.remote(*bucket) for bucket in zip(*(r[1:] for r in refs), strict=True)]
    files: list[FileAudit] = [file for verdicts in ray.get([r[0] for r in refs]) for file in verdicts]
    extra = sorted(set(target.names(".parquet")) - {i.part for i in inputs})
    _require(what, files, sum(ray.get(doubled)), extra, fingerprint)
    digest = hashlib.sha256("".join(f.digest for f in files).encode()).hexdigest()[:16]
    log(f"{what}: audit: {num_rows:,} rows in, each of them out once, in {len(files)} files; ids {digest}")
    return AuditMetrics(files=len(files), rows=num_rows, digest=digest)


def _tasks(inputs: Sequence[Input], rows: int) -> list[list[Input]]:
    """Neighbouring files, together just over `rows` rows."""
    tasks: list[list[Input]] = [[]]
    for file in inputs:
        if sum(i.num_rows for i in tasks[-1]) >= rows:
            tasks.append([])
        tasks[-1].append(file)
    return tasks


def _require(what: str, files: Sequence[FileAudit], doubled: int, extra: Sequence[str], fingerprint: str) -> None:
    bad = [f for f in files if not f.holds or f.fingerprint != fingerprint]
    if not (bad or doubled or extra):
        return
    lost, unknown = (sum(getattr(f, name) for f in files) for name in ("lost", "unknown"))
    names = [f.part for f in bad] + list(extra)
    reasons = ["rows in another order" for f in bad if not f.in_order and not (f.lost or f.unknown)][:1]
    reasons += [
        f"{f.part} is of another making ({f.fingerprint or 'unstamped'})"
        for f in bad
        if f.fingerprint != fingerprint and f.found
    ][:1]
    where = (
        f"; see {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
        if names
        else "; the same id is in two files of the input"
    )
    raise StageError(
        f"{what}: {sum(f.rows for f in files)} rows in, {sum(f.found for f in files)} out: {lost} lost, {unknown} unknown, {doubled} doubled"
        f"{''.join(f', {r}' for r in reasons)}{where}; delete the stage's folder and run again"
    )
