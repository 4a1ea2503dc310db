"""Tokenized examples on storage, and the order in which training reads them: window by window, the same on every rank.

An epoch goes through slices of the examples' files in an order drawn from seed and epoch, some thousand rows at a time
(a *window*). Inside a window the examples are shuffled and packed. So a rank holds two windows, whatever the corpus,
and the position (epoch, window, step) determines what has been read. Ray Data writes the examples. Knows no model.
"""

import hashlib
import itertools
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from data.examples import EXAMPLE, Example, Examples, Split
from data.packing import best_fit, even_steps, steps_of
from data.shard_list import ShardList
from data.shards import Input, Output, inputs_of, read
from data.storage import Storage
from data.streaming import StreamingDataset

SHARD_ROWS = 2048
"""Rows that are read together, whichever window they belong to."""
WINDOW_ROWS = 8192
"""Rows of a window: at 500 tokens each some 20 MB, and enough that its last packs are as dense as its first."""


@dataclass(frozen=True)
class Corpus:
    """All examples in a folder, as slices of its files; rows that became no example count as well."""

    uri: str
    shards: ShardList
    streaming: StreamingDataset | None = None
    """Waits for what is not there yet; None = all is there."""

    @classmethod
    def of(cls, folder: Storage) -> "Corpus":
        return cls(folder.uri, ShardList.of(inputs_of([folder]), SHARD_ROWS))

    @classmethod
    def from_inputs(cls, inputs: Sequence[Input], output: Output, piece_rows: int) -> "Corpus":
        """The examples that will lie in `output`, a row for each of the `inputs`."""
        parts = [replace(i, uri=(output.parts / i.part).uri) for i in sorted(inputs, key=lambda i: i.part)]
        streaming = StreamingDataset(output, piece_rows, {i.part: i.num_rows for i in inputs})
        return cls(output.uri, ShardList.of(parts, SHARD_ROWS), streaming)

    @property
    def num_rows(self) -> int:
        return self.shards.num_rows

    def rows_of(self, shards: Sequence[int]) -> int:
        return int(self.shards.rows_of(np.array(shards, np.int64)).sum())

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
    """Rows that became an example (`examples`), those that lost their oldest turns (`cut`), and why others did not."""
    return {"examples": 0, "cut": 0} | named_counts(folder, EXAMPLE)


def named_counts(folder: Storage, kind: str) -> dict[str, int]:
    """What the workers counted under `kind`, by the rest of its name; `folder`: the output of a finished pipeline.

    Of all parts together, and without opening one.
    """
    found = sorted(Output(folder.uri, "").totals.read_json().items())
    return {name.removeprefix(kind): int(count) for name, count in found if name.startswith(kind)}


def sources(folder: Storage) -> set[str]:
    """The sources of all rows in a folder, by opening each file: for rows whose manifest does not name them."""
    tables = (pq.read_table(path, columns=["source"], filesystem=folder.arrow_fs) for path in folder.files(".parquet"))
    return {str(name) for table in tables for name in table.column("source").unique().to_pylist()}


@dataclass(frozen=True, order=True)
class Position:
    """The next step to do."""

    epoch: int = 0
    window: int = 0
    step: int = 0


@dataclass(frozen=True)
class PackedStep:
    """One optimizer step: packs of examples, given as indices into `examples`."""

    examples: Examples
    packs: list[list[int]]
    epoch: int
    is_first: bool
    """Of its window."""
    after: Position
    """The position of the next step."""
    middle: float
    """Epochs done when half of this step is, by share of the corpus's rows."""
    progress: float
    """Epochs done when this step is."""

    @property
    def num_tokens(self) -> int:
        return sum(int(self.examples.lengths[i]) for pack in self.packs for i in pack)


@dataclass(frozen=True)
class DataLoader:
    """The data of a training and its order. Cheap to make; reads when it is iterated."""

    corpus: Corpus
    split: Split
    pack_tokens: int
    packs_per_step: int
    epochs: int = 1
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)
    """Source -> how often an epoch has each of its examples; 1 for those not named. See `copies`."""
    window_rows: int = WINDOW_ROWS

    def steps(self, start: Position | None = None) -> Iterator[PackedStep]:
        """All steps from `start` on. While one window is used, the next is read."""
        start = start or Position()
        total = self.corpus.num_rows
        before = start.epoch * total + sum(map(self.corpus.rows_of, self.windows(start.epoch)[: start.window]))
        plan, same = itertools.tee(self._windows_from(start))
        ahead = self._read_ahead(shards for _, _, shards in same)
        for (epoch, window, shards), examples in zip(plan, ahead, strict=True):
            steps = self.packed(examples, epoch, window)
            num_rows = self.corpus.rows_of(shards)
            for number, packs in enumerate(steps):
                if Position(epoch, window, number) >= start:
                    is_last = number + 1 == len(steps)
                    after = Position(epoch, window + 1) if is_last else Position(epoch, window, number + 1)
                    middle, end = ((before + num_rows * (number + share) / len(steps)) / total for share in (0.5, 1.0))
                    yield PackedStep(examples, packs, epoch, number == 0, after, middle, end)
            before += num_rows

    def _windows_from(self, start: Position) -> Iterator[tuple[int, int, list[int]]]:
        """Epoch, number and shards of each window that is left."""
        for epoch in range(start.epoch, self.epochs):
            for window, shards in enumerate(self.windows(epoch)):
                if (epoch, window) >= (start.epoch, start.window):
                    yield epoch, window, shards

    def windows(self, epoch: int) -> list[list[int]]:
        """The shards of each window of an epoch, in order."""
        shards = np.random.default_rng([self.seed, epoch]).permutation(len(self.corpus.shards))
        windows: list[list[int]] = [[]]
        filled = 0
        for shard, rows in zip(shards.tolist(), self.corpus.shards.rows_of(shards).tolist(), strict=True):
            if windows[-1] and filled + rows > self.window_rows:
                windows.append([])
                filled = 0
            windows[-1].append(shard)
            filled += rows
        return windows

    def packed(self, examples: Examples, epoch: int, window: int) -> list[list[list[int]]]:
        """The steps of a window: each example as often as its source's weight wants, in packs of `pack_tokens`."""
        indices = self.drawn(examples, epoch)
        rng = np.random.default_rng([self.seed, epoch, window])
        order = [indices[i] for i in rng.permutation(len(indices))]
        packs = best_fit([int(examples.lengths[i]) for i in order], self.pack_tokens)
        shuffled = [[order[i] for i in packs[number]] for number in rng.permutation(len(packs))]
        return even_steps(shuffled, self.packs_per_step)

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
        """All examples to validate on, packed, as many packs at a time as there are workers (empty ones at the end)."""
        for examples in self._read_ahead(self.windows(0)):
            held = [i for i, group in enumerate(examples.groups) if self.split.validates(group)]
            packs = best_fit([int(examples.lengths[i]) for i in held], self.pack_tokens)
            steps = steps_of([[held[i] for i in pack] for pack in packs], num_workers)
            yield from ((examples, step) for step in steps)

    def _read_ahead(self, windows: Iterable[list[int]]) -> Iterator[Examples]:
        """The examples of each window; a thread reads the next one meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            ahead: deque[Future[Examples]] = deque()
            for shards in windows:
                ahead.append(pool.submit(self.corpus.read, shards))
                if len(ahead) > 1:
                    yield ahead.popleft().result()
            yield from (future.result() for future in ahead)


def copies(id: str, weight: float, seed: int, epoch: int) -> int:
    """How often an epoch has an example of a source with this weight.

    2.5: twice, and a third time in every second epoch: half of the examples in even ones, the others in odd ones.
    """
    whole, part = divmod(weight, 1.0)
    phase = int.from_bytes(hashlib.sha256(f"{seed}/{id}".encode()).digest()[:8], "big") / 2**64
    return int(whole) + int((phase + part * (epoch + 1)) // 1 - (phase + part * epoch) // 1)
