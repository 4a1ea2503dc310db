"""Every source of a run read once: splits through tasks, a piece of rows for each, and files of rejected records.

The driver plans splits and adds counters; records stay with the tasks. Knows no duplicates (`unique_rows`).
"""

import itertools
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from data.counters import Counters
from data.row_pieces import (
    RejectedLines,
    SourceReader,
    counters_in,
    num_rejected,
    split_row,
    write_rejected,
    write_split_row,
)
from data.shards import FOOTERS_AT_ONCE, Output
from data.splits import Split
from data.storage import Storage
from jobs.pipelines.tasks import Calls
from jobs.runner.stage import log

BROKEN = "rejected: broken_file"
REJECTED_PER_FILE = 100_000
"""Rejected records of a file."""
LOG_EVERY_S = 5.0
RUN = "rows"


@dataclass(frozen=True)
class ReadSplit:
    """A split whose piece is there."""

    split: Split
    counters: Counters

    @property
    def rows(self) -> int:
        return int(self.counters.get("rows", 0))


class SourcesReading:
    """Reads the splits of all sources, each once, and goes on with the pieces that a killed run left."""

    def __init__(self, readers: Sequence[SourceReader], output: Output, calls: Calls):
        self._readers, self._output, self._calls = readers, output, calls
        self._done: dict[Split, Counters] = {}
        self._present = set(output.pieces.names(".parquet"))

    def read(self, splits: Sequence[Sequence[Split]], limits: Sequence[int]) -> list[ReadSplit]:
        """What was read of `splits` (a list for each source), in the order of the input; `limits`: rows, 0 = all.

        A source with a limit is read in growing steps, as nobody knows where its last row is.
        """
        limited = [_Limited(own, limit) for own, limit in zip(splits, limits, strict=True)]
        while wave := [split for source in limited for split in source.wanted(self._done)]:
            self._read(wave)
        return [
            ReadSplit(split, self._done[split]) for source in limited for split in _whole_files(source.kept, self._done)
        ]

    def _read(self, splits: Sequence[Split]) -> None:
        before = [split for split in splits if split.piece in self._present]
        with ThreadPoolExecutor(FOOTERS_AT_ONCE) as pool:
            found = pool.map(lambda split: counters_in(self._output.pieces / split.piece), before)
            self._done.update(zip(before, found, strict=True))
        missing = [split for split in splits if split.piece not in self._present]
        if before:
            log(f"{RUN}: {len(before):,} of {len(splits):,} splits were read before")
        rows = [split_row(number, split) for number, split in enumerate(missing)]
        arguments = {"readers": tuple(self._readers), "output": self._output}
        logged = time.monotonic()
        for row in self._calls.each(RUN, rows, write_split_row, arguments):
            self._done[missing[row["number"]]] = json.loads(row["counters"])
            if time.monotonic() - logged > LOG_EVERY_S:
                logged = time.monotonic()
                log(self._progress(missing))

    def _progress(self, splits: Sequence[Split]) -> str:
        num_read, num_rows = (int(sum(c.get(name, 0) for c in self._done.values())) for name in ("read", "rows"))
        done = sum(split in self._done for split in splits)
        return f"{RUN}: {num_read:,} records read, {num_rows:,} rows; {done:,} of {len(splits):,} splits"


class _Limited:
    """The splits of one source up to its limit of rows."""

    def __init__(self, splits: Sequence[Split], limit: int):
        self._all, self._limit = [split.limited_to(limit) for split in splits], limit
        self._asked = 0
        self.kept: list[Split] = []

    def wanted(self, done: Mapping[Split, Counters]) -> list[Split]:
        """The splits that are to be read next; none if `kept` has all there is to read."""
        if not self._limit:
            new, self.kept = self._all[self._asked :], self._all
            self._asked = len(self._all)
            return new
        self.kept = []
        left = self._limit
        for split in self._all[: self._asked]:
            rows = int(done[split].get("rows", 0))
            if rows >= left:
                # The last row stands in it; what comes after that row is not read.
                last = split.limited_to(left)
                self.kept.append(last)
                return [] if last in done else [last]
            self.kept.append(split)
            left -= rows
        start, self._asked = self._asked, min(max(1, 2 * self._asked), len(self._all))
        return self._all[start : self._asked]


def _whole_files(splits: Sequence[Split], done: Mapping[Split, Counters]) -> Iterator[Split]:
    """Without what stands behind the place from which a file is broken."""
    broken = ""
    for split in splits:
        if split.start is not None and split.files[0] == broken:
            continue
        yield split
        if split.start is not None and done[split].get(BROKEN):
            broken = split.files[0]


def counts_of(source: int, splits: Sequence[ReadSplit]) -> Counter[str]:
    """The sum of the counters of one source."""
    total = Counter[str]()
    for read in splits:
        if read.split.source == source:
            total.update({name: int(num) for name, num in read.counters.items() if name != "lines"})
    return total


def write_rejections(splits: Sequence[ReadSplit], folder: Storage, output: Output, calls: Calls) -> None:
    """Files of rejected records in `folder`, in the order of the input, so many in each; none if there are none."""
    results = [
        calls.submit(write_rejected, f"part-{number:05d}.jsonl", lines, folder, output)[0]
        for number, lines in enumerate(_rejected_files(splits))
    ]
    calls.get(results)


def _rejected_files(splits: Sequence[ReadSplit]) -> Iterator[list[RejectedLines]]:
    pieces: list[RejectedLines] = []
    room = REJECTED_PER_FILE
    for read, lines_before in _with_lines_before(splits):
        skip, left = 0, num_rejected(read.counters)
        while left:
            num = min(room, left)
            pieces.append(RejectedLines(read.split.rejected, skip, num, lines_before))
            skip, left, room = skip + num, left - num, room - num
            if not room:
                yield pieces
                pieces, room = [], REJECTED_PER_FILE
    if pieces:
        yield pieces


def _with_lines_before(splits: Sequence[ReadSplit]) -> Iterator[tuple[ReadSplit, int]]:
    """Each split, and what its numbers of lines lack: the lines of its file before it, less those it took for granted.

    Row groups of Parquet count no lines: their numbers are right.
    """
    for _, of_file in itertools.groupby(
        splits, lambda read: read.split.files if read.split.start is not None else read
    ):
        num_lines = 0
        for read in of_file:
            yield read, max(0, num_lines - read.split.before)
            num_lines += int(read.counters.get("lines", 0))
