"""Tokenised examples on storage, and the order in which training reads them: window by window, the same on every rank.

Ray Data writes the examples. An epoch goes through slices of their files in an order drawn from seed and epoch, some thousand rows at a time (a
*window*); inside a window the examples are shuffled and packed. So a rank holds two windows, whatever the corpus, and the position (epoch,
window, step) says everything about what has been read and what has not. Knows no model.
"""

import hashlib
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.examples import Example, Examples, Split
from data.packing import best_fit, even_steps, steps_of
from data.shards import Input, Output, Shard, inputs_of, read
from data.storage import Storage
from data.streaming import StreamingDataset

SHARD_ROWS = 2048
"""Rows that are read together, wherever a window takes them from."""
WINDOW_ROWS = 8192
"""Rows of a window: at 500 tokens each some 20 MB in memory, and enough that its last rows are packed as densely as its first."""


@dataclass(frozen=True)
class Corpus:
    """All examples in a folder, as slices of its files; rows that became no example count as well."""

    uri: str
    shards: tuple[Shard, ...]
    streaming: StreamingDataset | None = None
    """Who waits for what is not there yet; None = all is there."""

    @classmethod
    def of(cls, folder: Storage) -> "Corpus":
        return cls(folder.uri, tuple(shard for file in inputs_of([folder]) for shard in file.shards(SHARD_ROWS)))

    @classmethod
    def from_inputs(cls, inputs: Sequence[Input], output: Output, piece_rows: int) -> "Corpus":
        """The examples that will lie in `output`, a row for each of the `inputs`."""
        parts = [replace(i, uri=(output.parts / i.part).uri) for i in sorted(inputs, key=lambda i: i.part)]
        streaming = StreamingDataset(output, piece_rows, {i.part: i.num_rows for i in inputs})
        return cls(output.uri, tuple(shard for part in parts for shard in part.shards(SHARD_ROWS)), streaming)

    @property
    def num_rows(self) -> int:
        return self.rows_of(range(len(self.shards)))

    def rows_of(self, shards: Iterable[int]) -> int:
        return sum(self.shards[i].stop - self.shards[i].start for i in shards)

    def read(self, shards: Iterable[int]) -> Examples:
        examples = Examples((self.streaming.read if self.streaming else read)(self.shards[i]) for i in shards)
        # Arrow keeps what its threads have used: 50 MB after twenty windows of short rows.
        pa.default_memory_pool().release_unused()
        return examples


def some(folder: Storage, most: int) -> list[Example]:
    """The first examples in a folder."""
    corpus = Corpus.of(folder)
    found = (
        examples[i]
        for shard in range(len(corpus.shards))
        for examples in [corpus.read([shard])]
        for i in range(len(examples))
    )
    return list(itertools.islice(found, most))


def counts(folder: Storage) -> dict[str, int]:
    """Rows that became an example (`examples`), those of them that lost their oldest turns (`cut`), and by its name every reason why others did not."""
    found: Counter[str] = Counter(examples=0, cut=0)
    for path in folder.files(".parquet"):
        table = pq.read_table(path, columns=["reason", "cut_turns"], filesystem=folder.arrow_fs)
        found.update(reason or "examples" for reason in table.column("reason").to_pylist())
        found["cut"] += int(np.count_nonzero(table.column("cut_turns").to_numpy()))
    return dict(found)


def sources(folder: Storage) -> set[str]:
    """The sources of all rows in a folder."""
    tables = (pq.read_table(path, columns=["source"], filesystem=folder.arrow_fs) for path in folder.files(".parquet"))
    return {str(name) for table in tables for name in table.column("source").unique().to_pylist()}


@dataclass(frozen=True, order=True)
class Position:
    """The next step to do."""

    epoch: int = 0
    window: int = 0
    step: int = 0


@dataclass(frozen=True)
class Step:
    """One optimizer step: packed rows of examples, given as indices into `examples`."""

    examples: Examples
    rows: list[list[int]]
    epoch: int
    is_first: bool
    """Of its window."""
    after: Position
    """Where the data stands when it is done."""
    middle: float
    """Epochs behind us when half of it is done, by share of the corpus's rows."""
    progress: float
    """Epochs behind us when it is done."""

    @property
    def num_tokens(self) -> int:
        return sum(int(self.examples.lengths[i]) for row in self.rows for i in row)


@dataclass(frozen=True)
class DataLoader:
    """What is read of `corpus`, and in which order. Cheap to make; reads when it is iterated."""

    corpus: Corpus
    split: Split
    pack_tokens: int
    packs_per_step: int
    epochs: int = 1
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)
    """Source -> how often an epoch has each of its examples; 1 for those not named. See `copies`."""
    window_rows: int = WINDOW_ROWS

    def steps(self, start: Position | None = None) -> Iterator[Step]:
        """All steps from `start` on. While one window is worked through, the next is read."""
        start = start or Position()
        total = self.corpus.num_rows
        plan = [
            (epoch, w, shards)
            for epoch in range(start.epoch, self.epochs)
            for w, shards in enumerate(self.windows(epoch))
        ]
        plan = [(epoch, w, shards) for epoch, w, shards in plan if (epoch, w) >= (start.epoch, start.window)]
        before = (
            sum(self.corpus.rows_of(shards) for shards in self.windows(start.epoch)[: start.window])
            + start.epoch * total
        )
        for (epoch, window, shards), examples in zip(
            plan, self._read_ahead([shards for _, _, shards in plan]), strict=True
        ):
            steps = self.packed(examples, epoch, window)
            mine = self.corpus.rows_of(shards)
            for number, rows in enumerate(steps):
                if (epoch, window, number) >= (start.epoch, start.window, start.step):
                    after = (
                        Position(epoch, window, number + 1) if number + 1 < len(steps) else Position(epoch, window + 1)
                    )
                    middle, end = ((before + mine * (number + share) / len(steps)) / total for share in (0.5, 1.0))
                    yield Step(examples, rows, epoch, number == 0, after, middle, end)
            before += mine

    def windows(self, epoch: int) -> list[list[int]]:
        """The shards of each window of an epoch, in order."""
        windows: list[list[int]] = [[]]
        for shard in np.random.default_rng([self.seed, epoch]).permutation(len(self.corpus.shards)).tolist():
            if windows[-1] and self.corpus.rows_of([*windows[-1], shard]) > self.window_rows:
                windows.append([])
            windows[-1].append(shard)
        return windows

    def packed(self, examples: Examples, epoch: int, window: int) -> list[list[list[int]]]:
        """The steps of a window: every example that is trained on, as often as its source's weight says, in rows of at most `pack_tokens`."""
        indices = self.drawn(examples, epoch)
        rng = np.random.default_rng([self.seed, epoch, window])
        order = [indices[i] for i in rng.permutation(len(indices))]
        rows = [
            [order[i] for i in row] for row in best_fit([int(examples.lengths[i]) for i in order], self.pack_tokens)
        ]
        return even_steps([rows[i] for i in rng.permutation(len(rows))], self.packs_per_step)

    def drawn(self, examples: Examples, epoch: int) -> list[int]:
        """The examples that an epoch trains on, each as often as it does, in order."""
        trained = [i for i, group in enumerate(examples.groups) if self.split.trains(group)]
        if not self.weights:
            return trained
        return [
            i
            for i in trained
            for _ in range(copies(examples.ids[i], self.weights.get(examples.sources[i], 1.0), self.seed, epoch))
        ]

    def validation(self, num_workers: int) -> Iterator[tuple[Examples, list[list[int]]]]:
        """All examples to validate on, packed, in as many rows at a time as there are workers (empty ones at the end)."""
        for examples in self._read_ahead(self.windows(0)):
            held = [i for i, group in enumerate(examples.groups) if self.split.validates(group)]
            rows = best_fit([int(examples.lengths[i]) for i in held], self.pack_tokens)
            yield from ((examples, step) for step in steps_of([[held[i] for i in row] for row in rows], num_workers))

    def _read_ahead(self, windows: Sequence[list[int]]) -> Iterator[Examples]:
        """The examples of each window; the next one is read by a thread meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            ahead: deque[Future[Examples]] = deque()
            for shards in windows:
                ahead.append(pool.submit(self.corpus.read, shards))
                if len(ahead) > 1:
                    yield ahead.popleft().result()
            yield from (future.result() for future in ahead)


def copies(id: str, weight: float, seed: int, epoch: int) -> int:
    """How often an epoch has an example of a source with this weight.

    2.5: twice, and a third time in every second epoch, for half of the examples in the even ones and for the others in the odd ones.
    """
    whole, part = divmod(weight, 1.0)
    phase = int.from_bytes(hashlib.sha256(f"{seed}/{id}".encode()).digest()[:8], "big") / 2**64
    return int(whole) + int((phase + part * (epoch + 1)) // 1 - (phase + part * epoch) // 1)
