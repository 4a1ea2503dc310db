"""Counts that travel with rows, in an Arrow table's metadata: the footer of its Parquet file, cheap to read again.

Knows nothing of what is counted.
"""

import json
from collections.abc import Iterable, Mapping

import pyarrow as pa

Counters = dict[str, float]
COUNTERS_KEY = b"steerlm.tally"
"""Where an Arrow schema carries its rows' counters, as JSON. Stored files have this key: it stays."""


def with_counters(table: pa.Table, counters: Mapping[str, float]) -> pa.Table:
    """The table with `counters` in its metadata, in place of an older one."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), COUNTERS_KEY: json.dumps(counters).encode()})


def counters_of(schema: pa.Schema) -> Counters:
    """The counters that came with the rows; empty if there are none."""
    found: Counters = json.loads((schema.metadata or {}).get(COUNTERS_KEY, b"{}"))
    return found


def added(all_counters: Iterable[Counters]) -> Counters:
    """The sum, name by name. In the given order, so that equal input gives equal floats."""
    total: Counters = {}
    for counters in all_counters:
        for name, value in counters.items():
            total[name] = total.get(name, 0) + value
    return total
