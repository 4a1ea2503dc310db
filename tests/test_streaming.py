"""A corpus that is still being made reads as the finished one does, and nobody waits for more than they want."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from data.counters import with_counters
from data.examples import Split
from data.loader import Corpus, DataLoader
from data.shards import Input, Output, inputs_of, merge, write_piece
from data.storage import Storage
from data.streaming import StreamingDataset
from jobs.pipelines.map_rows import write_table
from tests.test_loader import _table

PIECE_ROWS = 8


@pytest.fixture
def source(tmp_path: Path) -> Storage:
    """Five files of examples; the output is the same rows."""
    table, folder = _table(), Storage(str(tmp_path)) / "rows"
    for start in range(0, len(table), 24):
        write_table(table.slice(start, 24), folder, f"part-{start:05d}.parquet")
    return folder


def _write(source: Storage, part: Input, output: Output, pieces: int | None = None, merged: bool = False) -> None:
    shards = part.shards(PIECE_ROWS)
    for shard in shards[:pieces]:
        rows = _rows(source, part).slice(shard.start, shard.stop - shard.start)
        write_piece(with_counters(rows, {"rows": len(rows)}), shard, output)
    if merged:
        merge(part.part, [s.piece for s in shards], output)


def _rows(source: Storage, part: Input) -> pa.Table:
    return next(t for t, i in zip(source.tables(), inputs_of([source]), strict=True) if i.part == part.part)


def _ids(loader: DataLoader) -> list[list[str]]:
    return [[step.examples.ids[i] for row in step.packs for i in row] for step in loader.steps()]


def test_it_reads_as_what_it_becomes(source: Storage, tmp_path: Path) -> None:
    output, inputs = Output(str(tmp_path / "out"), "fingerprint"), inputs_of([source])
    for number, part in enumerate(inputs):
        _write(source, part, output, merged=number % 2 == 0)  # parts and pieces
    streaming = Corpus.from_inputs(inputs, output, PIECE_ROWS)
    settings = {"split": Split(5, 1), "pack_tokens": 64, "packs_per_step": 4, "window_rows": 50}
    found = _ids(DataLoader(streaming, **settings))  # type: ignore[arg-type]
    for number, part in enumerate(inputs):
        if number % 2:
            _write(source, part, output, merged=True)
    made = Corpus.of(output.parts)
    assert streaming.num_rows == made.num_rows
    assert found == _ids(DataLoader(made, **settings))  # type: ignore[arg-type]


def test_the_first_window_does_not_wait_for_the_second(source: Storage, tmp_path: Path) -> None:
    output, inputs = Output(str(tmp_path / "out"), "fingerprint"), inputs_of([source])
    corpus = Corpus.from_inputs(inputs, output, PIECE_ROWS)
    loader = DataLoader(corpus, Split(), pack_tokens=64, packs_per_step=4, window_rows=50)
    first, *others = ([corpus.shards[i].part for i in window] for window in loader.windows(0))
    by_part = {i.part: i for i in inputs}
    for part in first:
        _write(source, by_part[part], output)
    steps = loader.steps()
    begun = next(steps)
    assert begun.is_first
    later = threading.Timer(
        1.0, lambda: [_write(source, by_part[part], output, merged=True) for window in others for part in window]
    )
    later.start()
    assert sum(len(row) for step in [begun, *steps] for row in step.packs) == 101
    later.join()


def test_a_slice_is_there_when_all_of_its_pieces_are(source: Storage, tmp_path: Path) -> None:
    output, part = Output(str(tmp_path / "out"), "fingerprint"), inputs_of([source])[0]
    streaming = StreamingDataset(output, PIECE_ROWS, {part.part: part.num_rows})
    slice_ = replace(part, uri=(output.parts / part.part).uri).shards(part.num_rows)[0]
    slice_ = replace(slice_, start=5, stop=19)
    _write(source, part, output, pieces=2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(streaming.read, slice_)
        time.sleep(0.7)
        assert not waiting.done()
        _write(source, part, output)
        assert waiting.result(10).column("id").to_pylist() == _rows(source, part).column("id").to_pylist()[5:19]


def test_what_will_never_come_is_an_error(source: Storage, tmp_path: Path) -> None:
    output, part = Output(str(tmp_path / "out"), "fingerprint"), inputs_of([source])[0]
    streaming = StreamingDataset(output, PIECE_ROWS, {part.part: part.num_rows})
    streaming.failed.write_bytes(b"")
    with pytest.raises(ValueError, match=r"tokenizing ended before rows 0 to 24 of part-00000\.parquet"):
        streaming.read(replace(part, uri=(output.parts / part.part).uri).shards(24)[0])
