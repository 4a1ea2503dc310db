"""Shards that reach Ray Data one after the other, and what keeps its driver small whatever their number.

Three things grow with every shard by Ray 2.60's source. `from_items` keeps a block for each: here a task of Ray lists
some thousand shards, and the driver has one entry for all of them. Ray Data counts waiting blocks by bytes, and a
description has few: here they are counted by number (`FewWaiting`). And each operator keeps statistics of every block
it ever made: here of the newest (`NewestStatistics`). `python -m jobs.bench pieces` measures what is left.

Other ways, not taken: an execution for each wave of shards restarts all actors after it. Named actors that outlive the
executions are out of Ray Data's hands, so that nobody restarts them and no pool grows. Read tasks that hold some shards
each and yield their rows keep their CPUs while they wait for the actors, and a lost one reads all of its rows again.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
)
from ray.data._internal.execution.backpressure_policy.backpressure_policy import BackpressurePolicy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.execution.operators.input_data_buffer import InputDataBuffer
from ray.data._internal.execution.operators.map_operator import MapOperator
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from data.shard_list import ShardList

LISTED = 4096
"""Shards that one task lists. If its node dies, it lists them again, and the same ones: the list is made before."""
MOST_WAITING = 256
"""Shards that wait between two operators; the driver has some 5 KB for each. While the next operator has no task, as
when its actors start, Ray lets one more through each time: then the rest of one list waits as well, never a second."""
NEWEST = 4096
"""Shards of each operator that its statistics tell of."""
SHARD_BYTES = 200
"""Of a description, and less than its block has."""


class ShardSource(Datasource):
    """The shards with these numbers, in their order, as blocks of one row each."""

    def __init__(self, shards: ShardList, numbers: np.ndarray):
        super().__init__()
        self._shards, self._numbers = shards, numbers

    @property
    def num_lists(self) -> int:
        return -(-len(self._numbers) // LISTED)

    def get_name(self) -> str:
        return "Shards"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        tasks = []
        for first in range(0, len(self._numbers), LISTED):
            some = self._numbers[first : first + LISTED]
            # Ray Data's checks want a size before anything is read.
            size = BlockMetadata(
                num_rows=len(some), size_bytes=SHARD_BYTES * len(some), input_files=None, exec_stats=None
            )
            tasks.append(ReadTask(partial(described, *self._shards.some_of(some)), size))
        return tasks


def described(shards: ShardList, numbers: np.ndarray) -> Iterator[pa.Table]:
    """A table of one row for each shard."""
    for number in numbers.tolist():
        yield pa.table({name: [value] for name, value in vars(shards[number]).items()})


class FewWaiting(BackpressurePolicy):
    """An operator rests while MOST_WAITING of its shards wait for the next one; one task at a time lists shards."""

    def __init__(self, data_context: Any, topology: Any, resource_manager: Any):
        super().__init__(data_context, topology, resource_manager)
        self._lists = {op for op in topology if any(isinstance(i, InputDataBuffer) for i in op.input_dependencies)}

    def can_add_input(self, op: Any) -> bool:
        return self._room(op) > 0 and not (op in self._lists and op.num_active_tasks())

    def max_task_output_bytes_to_read(self, op: Any) -> int | None:
        room = max(0, self._room(op))
        # A list is read as long as there is more of it; the other tasks have one block each.
        return room * SHARD_BYTES if op in self._lists or not room else None

    def _room(self, op: Any) -> int:
        return MOST_WAITING - int(self._topology[op].output_queue.num_blocks)


class NewestStatistics(ExecutionCallback):
    """Ray Data's own lists of statistics grow by half a KB for each block and operator."""

    def before_execution_starts(self, executor: Any) -> None:
        for op in executor._topology:
            if isinstance(op, MapOperator):
                op._output_blocks_stats = _Newest(op._output_blocks_stats)


class _Newest(list[Any]):
    """A list that forgets all but the last NEWEST items; it is cut at twice their number."""

    def extend(self, items: Iterable[Any]) -> None:
        super().extend(items)
        if len(self) >= 2 * NEWEST:
            del self[:-NEWEST]


def one_by_one(context: ray.data.DataContext) -> None:
    """Set up a context for datasets of a ShardSource."""
    # Blocks above one byte are cut, never below one row: a row is a block, and a shard is a row.
    context.target_max_block_size = 1
    policies = [*ENABLED_BACKPRESSURE_POLICIES, FewWaiting]
    context.set_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY, policies)
    context.custom_execution_callback_classes = [*context.custom_execution_callback_classes, NewestStatistics]
