"""From rows to tokenized examples, with Ray Data: before a training, or while it runs. Shared by all that train."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from actors.training.settings import LearnerSettings
from cluster.preflight import FREE_CPUS
from data.examples import Split
from data.loader import SHARD_ROWS, Corpus, DataLoader
from data.shard_list import ShardList
from data.shards import Output, inputs_of
from data.storage import Storage
from jobs.pipelines.map_rows import Beside, map_rows
from jobs.pipelines.parts import Order
from jobs.runner.settings import WorkerPool
from jobs.runner.stage import log

POOL = WorkerPool(num_actors=2, min_actors=1, batch_rows=512)
"""Tokenizing needs few CPUs and no GPU."""
ROWS_OF_ONE = 16_384
"""Up to so many rows one actor does all: the imports of a second take longer, and the start of the training beside it
needs the CPU."""


@dataclass(frozen=True)
class Tokenizing:
    """Which rows become examples, and where.

    A `maker(**arguments)` of `actors.training.examples` takes a table of rows and gives one of EXAMPLE_SCHEMA.
    """

    what: str
    sources: list[Storage]
    maker: type[Any]
    arguments: dict[str, Any]
    target: Storage
    fingerprint: str
    """Examples in `target` with this fingerprint, and with counters, are kept."""

    @property
    def _stamp(self) -> str:
        """Parts of version 0.2 have no counters: they are made again."""
        return self.fingerprint and f"{self.fingerprint}-counted"

    def all(self, beside: Beside | None = None) -> None:
        """Tokenize all rows."""
        what, arguments = f"{self.what}: tokenize", self.arguments
        few = sum(i.num_rows for i in inputs_of(self.sources)) <= ROWS_OF_ONE
        pool = POOL.model_copy(update={"num_actors": 1}) if few else POOL
        map_rows(what, self.sources, self.maker, arguments, pool, self.target, self._stamp, beside=beside)

    @contextlib.contextmanager
    def meanwhile(self, learner: LearnerSettings) -> Iterator[Corpus]:
        """The examples to train on in the block. They are tokenized at the same time, in the order of the first epoch.

        All are tokenized before the block if the cluster has no CPUs beside those of the training, or if a row becomes
        several examples. Raises StageError if rows could not be tokenized, whatever error the training raises.
        """
        inputs = inputs_of(self.sources)
        output = Output(self.target.uri, self._stamp)
        cpus = learner.num_workers * learner.cpus_per_worker
        no_cpus = ray.cluster_resources().get("CPU", 0.0) < cpus + POOL.cpus_per_actor + FREE_CPUS
        if no_cpus or not self.maker.ROW_FOR_ROW or len(output.finished(inputs)) == len(inputs):
            self.all()
            yield Corpus.of(self.target)
            return
        corpus = Corpus.from_inputs(inputs, output, POOL.batch_rows)
        assert corpus.streaming is not None
        corpus.streaming.failed.remove()
        log(f"{self.what}: tokenizing while it trains")
        beside = Beside(cpus, _first_epoch(corpus, learner), threading.Event())
        with ThreadPoolExecutor(1, thread_name_prefix="tokenize") as pool:
            work = pool.submit(self._or_mark, corpus.streaming.failed, beside)
            try:
                yield corpus
            except BaseException:
                if work.done():
                    work.result()  # its own error explains more than that of the training that waited for it
                beside.ended.set()
                raise
            work.result()

    def _or_mark(self, failed: Storage, beside: Beside) -> None:
        try:
            self.all(beside)
        except BaseException:
            failed.write_bytes(b"")
            raise


def _first_epoch(corpus: Corpus, learner: LearnerSettings) -> Order:
    """Shards of the rows in the order in which the first epoch reads their examples."""
    loader = DataLoader(corpus, Split(), learner.pack_tokens, learner.packs_per_step, seed=learner.seed)
    order = [i for window in loader.windows(0) for i in window]
    place_of = np.empty(len(order), np.int64)
    place_of[order] = np.arange(len(order))
    first = {part: corpus.shards.of_file(file).start for file, part in enumerate(corpus.shards.parts.to_pylist())}

    def ordered(shards: ShardList) -> np.ndarray:
        places = [
            place_of[first[part] + np.arange(len(shards.of_file(file))) * shards.rows // SHARD_ROWS]
            for file, part in enumerate(shards.parts.to_pylist())
        ]
        return np.argsort(np.concatenate(places), kind="stable")

    return ordered
