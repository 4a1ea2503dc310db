"""The audit of a pipeline: each row of its sources is in its target once. Ray tasks read files; the driver gets counts.

Knows nothing of how the target was made. `data.audit` explains what is compared, and why that is a proof.
"""

import hashlib
from collections.abc import Sequence

import ray

from data.audit import FileAudit, audit_files, num_doubled
from data.shards import Output, inputs_of
from data.stage_metrics import AuditMetrics
from data.storage import Storage
from jobs.pipelines.over_files import neighbors
from jobs.runner.stage import StageError, log

IDS_PER_BUCKET = 1_000_000
"""Ids that one task compares among each other: about 100 MB of strings."""
ROWS_PER_TASK, ROWS_PER_TASK_AND_BUCKET = 50_000, 5_000
"""A task reads files until it has so many rows. Ray keeps results under 100 KB in the driver's own memory: a task for
each file would fill it with ids."""
CPUS_PER_TASK = 0.25
"""They read and compare; beside a pool's actors there is always one CPU."""


def audit(what: str, sources: Sequence[Storage], target: Storage, fingerprint: str = "") -> AuditMetrics:
    """Raises StageError, with counts of lost, doubled and unknown rows and the file, unless each row is there once."""
    inputs, output = inputs_of(sources), Output(target.uri, fingerprint)
    num_rows = sum(i.num_rows for i in inputs)
    num_buckets = max(1, -(-num_rows // IDS_PER_BUCKET))
    read = ray.remote(num_cpus=CPUS_PER_TASK, max_retries=-1, num_returns=1 + num_buckets)(audit_files)
    compare = ray.remote(num_cpus=CPUS_PER_TASK, max_retries=-1)(num_doubled)
    rows_per_task = max(ROWS_PER_TASK, ROWS_PER_TASK_AND_BUCKET * num_buckets)
    refs = [read.remote(files, output, num_buckets) for files in neighbors(inputs, rows_per_task)]
    doubled = [compare.remote(*bucket) for bucket in zip(*(r[1:] for r in refs), strict=True)]
    files: list[FileAudit] = [file for audited in ray.get([r[0] for r in refs]) for file in audited]
    extra = sorted(set(target.names(".parquet")) - {i.part for i in inputs})
    _require(what, files, sum(ray.get(doubled)), extra, fingerprint)
    digest = hashlib.sha256("".join(f.digest for f in files).encode()).hexdigest()[:16]
    log(f"{what}: audit: {num_rows:,} rows in, each of them out once, in {len(files)} files; ids {digest}")
    return AuditMetrics(files=len(files), rows=num_rows, digest=digest)


def _require(what: str, files: Sequence[FileAudit], doubled: int, extra: Sequence[str], fingerprint: str) -> None:
    bad = [f for f in files if not f.holds or f.fingerprint != fingerprint]
    if not (bad or doubled or extra):
        return
    lost, unknown = (sum(getattr(f, name) for f in files) for name in ("lost", "unknown"))
    names = [f.part for f in bad] + list(extra)
    reasons = ["rows in another order" for f in bad if not f.in_order and not (f.lost or f.unknown)][:1]
    others = [f for f in bad if f.fingerprint != fingerprint and f.found]
    reasons += [f"{f.part} has another fingerprint ({f.fingerprint or 'none'})" for f in others][:1]
    where = f"see {', '.join(names[:3])}{' and others' if len(names) > 3 else ''}"
    num_in, num_out = sum(f.rows for f in files), sum(f.found for f in files)
    counts = [f"{lost} lost", f"{unknown} unknown", f"{doubled} doubled", *reasons]
    raise StageError(
        f"{what}: {num_in} rows in, {num_out} out: {', '.join(counts)}; "
        f"{where if names else 'the same id is in two files of the input'}; delete the stage's folder and run again"
    )
