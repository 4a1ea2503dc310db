"""The other sides of bench `prepare`: one loop over the records, and a map of Hugging Face `datasets`; and their input.

Each runs in a process of its own, with the readers that stage `rows` has. Knows no ratios.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data.attributes import shipped
from data.conversation import Conversation, to_table
from data.formats import prompt_output
from data.lines import BadRecord, Line
from data.sources import read
from data.storage import Storage
from jobs.bench.rows import real_rows
from jobs.pipelines.map_rows import write_table

SOURCE, FORMAT, SCHEMA = "bench", "prompt_output", shipped("lab")
DIFFERENT_ROWS = 5000
"""Real rows that are repeated under other prompts."""
TWICE_EVERY = 20
BATCH_ROWS = 1000
"""The default of `datasets.map`."""


@dataclass(frozen=True)
class Written:
    """What one side wrote."""

    seconds: float
    read: int
    rows: int
    folder: str
    """Of the Parquet files."""

    def __str__(self) -> str:
        return f"{self.seconds} s"


def write_lines(files: Mapping[Path, int]) -> None:
    """Files of so many JSON lines, one for each row; every twentieth row stands there twice."""
    rows = real_rows("oasst_model_eval_20k", FORMAT, min(max(files.values()), DIFFERENT_ROWS), SCHEMA)
    for file, num_rows in files.items():
        _write(file, num_rows, rows)


def _write(file: Path, num_rows: int, rows: Sequence[Conversation]) -> None:
    with file.open("w") as lines:
        for number in range(num_rows):
            different = number - 1 if number % TWICE_EVERY == 1 else number
            row = rows[different % len(rows)]
            prompt = f"{row.messages[0].content} [{different}]"
            lines.write(json.dumps({"prompt": prompt, "output": row.messages[1].content}) + "\n")


def one_loop(lines: Path, target: Path, rows_per_file: int) -> Written:
    """Read, drop what was there before by a set of all ids, write: no task, no second pass."""
    started, num_read, num_parts = time.perf_counter(), 0, 0
    seen: set[str] = set()
    pending: list[Conversation] = []
    folder = Storage(str(target))

    def write() -> None:
        write_table(to_table(pending, SCHEMA), folder, f"part-{num_parts:05d}.parquet")

    for row in read(str(lines), FORMAT, SCHEMA, SOURCE):
        num_read += 1
        if isinstance(row, Conversation) and row.id not in seen:
            seen.add(row.id)
            pending.append(row)
        if len(pending) == rows_per_file:
            write()
            num_parts, pending = num_parts + 1, []
    if pending:
        write()
    return Written(round(time.perf_counter() - started, 3), num_read, len(seen), str(target))


def datasets_map(lines: Path, target: Path, processes: int) -> Written:
    """Lines through a map with our parser, in Arrow and in `processes`, into Parquet; what comes twice stays."""
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    import datasets  # a few seconds that no other bench needs

    started = time.perf_counter()
    text = datasets.load_dataset(
        "text", data_files=str(lines), split="train", cache_dir=str(target / "cache"), keep_linebreaks=False
    )
    mapped = text.with_format("arrow").map(
        _parsed, batched=True, batch_size=BATCH_ROWS, num_proc=processes, remove_columns=["text"]
    )
    mapped.to_parquet(str(target / "rows.parquet"))
    seconds = round(time.perf_counter() - started, 3)
    return Written(seconds, len(text), len(mapped), str(target))


def _parsed(batch: pa.Table) -> pa.Table:
    found: list[Conversation] = []
    for number, line in enumerate(batch.column("text").to_pylist(), 1):
        try:
            rows = prompt_output(Line("", number, json.loads(line)), SCHEMA, SOURCE)
            found += [row for row in rows if isinstance(row, Conversation)]
        except (BadRecord, ValueError):
            continue
    return to_table(found, SCHEMA).replace_schema_metadata(None)


def digests_of(folders: Sequence[str]) -> list[str]:
    """Of each folder a digest of the ids in its Parquet files, in order."""
    return [_digest(Path(folder)) for folder in folders]


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(columns=["id"]):
            digest.update("\n".join(batch.column("id").to_pylist()).encode() + b"\n")
    return digest.hexdigest()[:16]
