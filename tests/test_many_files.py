"""A source of thousands of files on an object store: how many requests a start costs, with work to do and without."""

import json
from pathlib import Path

import fsspec
import pytest
from support.source_lines import DEMO, line

from cluster.settings.load import load
from data.storage import options
from jobs.prepare import STAGE
from jobs.runner.preset import Preset
from jobs.runner.stage import Run, perform

LISTINGS = 4
"""Of the source at a start: is it a file, is it a folder, what is in it; and of the stage's own folder."""
PER_PAGE = 1000


def _run(s3: str, number: int) -> Run:
    fs = fsspec.filesystem("s3", **options("s3://"))
    fs.pipe({f"bucket/many-{number}/{i:05d}.jsonl": line(f"question {i}", humor=i % 5).encode() for i in range(number)})
    sources = f"rows.sources=[{{name: many, format: messages, uri: {s3}/many-{number}}}]"
    return Run(load(Preset, DEMO, [f"storage={s3}/many-runs", f"run=of-{number}", sources]))


def _requests(log: Path) -> int:
    return log.read_bytes().count(b"HTTP/1.1")


@pytest.mark.ray
@pytest.mark.slow
def test_requests_of_a_start_grow_by_pages_of_a_listing(
    s3: str, s3_log: Path, s3_requests: list[str], ray_cluster: object
) -> None:
    idle: dict[int, int] = {}
    for number in (1_000, 10_000):
        run = _run(s3, number)
        before = _requests(s3_log)
        assert perform(run, STAGE).manifest.metrics["rows"] == number
        first = _requests(s3_log) - before
        assert first >= number, "the tasks' own requests count too"
        print(f"\n{number:,} files: {first:,} requests to read them", end="")
        assert first <= 2 * number + LISTINGS * 2 * number / PER_PAGE + 100, "for each file: its size and its content"
        s3_requests.clear()
        assert perform(run, STAGE).skipped
        idle[number] = len(s3_requests)
        print(f", {idle[number]} at a start with nothing to do", end="")
    print()
    assert idle[10_000] - idle[1_000] <= LISTINGS * (10_000 - 1_000) / PER_PAGE
    inputs = run.manifest("rows").description["inputs"]  # type: ignore[union-attr]
    assert len(json.dumps(inputs)) < 200, "a manifest does not name ten thousand files"
