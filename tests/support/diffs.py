"""Two runs that differ where a test says so, and what `jobs.diff` makes of them."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from support.manifests import manifest

from data.attributes import AttributeSchema, shipped
from data.conversation import Conversation, Message, to_table
from data.run_layout import MANIFEST, write_record
from data.shards import write
from data.stage_files import record_files
from data.storage import Storage
from jobs.diff import main

SCHEMA = shipped("helpsteer")
ROWS = [
    Conversation(
        "s",
        "",
        (Message("user", f"q{n}"), Message("assistant", f"a{n}"), Message("user", "and"), Message("assistant", "so")),
        predicted=({"helpfulness": n % 5, "verbosity": 1.5}, {"helpfulness": 2.0}),
    )
    for n in range(23)
]
PART = 6


def stage(
    folder: Storage,
    rows: Sequence[Conversation] = ROWS,
    *,
    per_part: int = PART,
    schema: AttributeSchema = SCHEMA,
    settings: dict[str, Any] | None = None,
    metrics: dict[str, Any] | None = None,
    weights: bytes = b"weights",
) -> None:
    """A finished stage `annotated`, with rows and a model, in the run's folder."""
    for start in range(0, len(rows), per_part):
        table = to_table(rows[start : start + per_part], schema)
        write([table], table.schema, folder / "annotated" / "rows" / f"part-{start:05d}.parquet")
    (folder / "annotated" / "model" / "model.safetensors").write_bytes(weights)
    done = manifest("annotated").model_copy(
        update={
            "description": {"settings": settings or {}, "schema": schema.model_dump(mode="json")},
            "metrics": metrics or {},
            "files": record_files(folder / "annotated"),
        }
    )
    write_record(folder / "annotated" / MANIFEST, done)


def differ(capsys: pytest.CaptureFixture[str], a: Storage, b: Storage, *words: str) -> tuple[int, str, dict[str, Any]]:
    """Exit code, lines and the last line of `jobs.diff`."""
    code = main([a.uri, b.uri, *words])
    *lines, last = capsys.readouterr().out.splitlines()
    return code, "\n".join(lines), json.loads(last)


def changed(number: int, **fields: Any) -> list[Conversation]:
    return [*ROWS[:number], replace(ROWS[number], **fields), *ROWS[number + 1 :]]
