"""All shards of a folder's files as numbers: an object is made of one when it is asked for. Knows no Ray.

A billion rows are four million shards; as objects they would take more memory than the rows of a window. What is kept
is of the files: where each is, and how many rows it has.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data.shards import Input, Shard

PIECE_NAME = re.compile(r"(?P<stem>.*)\.(?P<start>\d{9,})-(?P<stop>\d{9,})\.parquet")
"""See `Shard.piece`."""


@dataclass(frozen=True, eq=False)
class ShardList:
    """The slices of at most `rows` rows of some files, in order, numbered from 0. Make it with `of`."""

    uris: pa.Array
    parts: pa.Array
    num_rows_F: np.ndarray
    """Of each file, int64."""
    ends_F: np.ndarray
    """Of each file: the number of shards up to its end, int64."""
    rows: int

    @classmethod
    def of(cls, inputs: Sequence[Input], rows: int) -> "ShardList":
        num_rows_F = np.array([i.num_rows for i in inputs], np.int64)
        uris, parts = (pa.array([getattr(i, name) for i in inputs], pa.large_string()) for name in ("uri", "part"))
        return cls(uris, parts, num_rows_F, np.cumsum(-(-num_rows_F // rows)), rows)

    def __len__(self) -> int:
        return int(self.ends_F[-1]) if len(self.ends_F) else 0

    def __getitem__(self, number: int) -> Shard:
        file = self.file_of(number)
        start = (number - self.of_file(file).start) * self.rows
        stop = min(start + self.rows, int(self.num_rows_F[file]))
        return Shard(self.uris[file].as_py(), self.parts[file].as_py(), start, stop)

    def __iter__(self) -> Iterator[Shard]:
        return (self[number] for number in range(len(self)))

    @property
    def num_files(self) -> int:
        return len(self.ends_F)

    @property
    def num_rows(self) -> int:
        """Of all files."""
        return int(self.num_rows_F.sum())

    def file_of(self, number: int) -> int:
        """The number of the file that the shard lies in. Raises IndexError if there is no such shard."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        return int(np.searchsorted(self.ends_F, number, "right"))

    def of_file(self, file: int) -> range:
        """The numbers of a file's shards."""
        end = int(self.ends_F[file])
        return range(end - -(-int(self.num_rows_F[file]) // self.rows), end)

    def rows_of(self, numbers: np.ndarray) -> np.ndarray:
        """The rows of each of these shards, int64."""
        files = np.searchsorted(self.ends_F, numbers, "right")
        last = numbers == self.ends_F[files] - 1
        return np.where(last, self.num_rows_F[files] - (self._sizes[files] - 1) * self.rows, self.rows)

    @property
    def _sizes(self) -> np.ndarray:
        return -(-self.num_rows_F // self.rows)

    def some_of(self, numbers: np.ndarray) -> tuple["ShardList", np.ndarray]:
        """The same shards in a list of their files alone, and their numbers there, in the order of `numbers`."""
        files = np.searchsorted(self.ends_F, numbers, "right")
        kept, new = np.unique(files, return_inverse=True)
        sizes = self._sizes[kept]
        ends = np.cumsum(sizes)
        within = numbers - (self.ends_F[files] - self._sizes[files])
        few = ShardList(
            self.uris.take(pa.array(kept)), self.parts.take(pa.array(kept)), self.num_rows_F[kept], ends, self.rows
        )
        return few, (ends - sizes)[new] + within

    def numbers_of(self, pieces: Iterable[str]) -> np.ndarray:
        """The numbers of the shards whose output is called so; names of shards of another size are left out."""
        by_stem: dict[str, int] = {}
        found = []
        for name in pieces:
            if not by_stem:
                by_stem = {part.removesuffix(".parquet"): file for file, part in enumerate(self.parts.to_pylist())}
            match = PIECE_NAME.fullmatch(name)
            file = by_stem.get(match["stem"]) if match else None
            if match is None or file is None:
                continue
            number = self.of_file(file).start + int(match["start"]) // self.rows
            if number < self.ends_F[file] and self[number].piece == name:
                found.append(number)
        return np.array(found, np.int64)
