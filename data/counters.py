"""Counts that travel with rows: in an Arrow table's metadata, so in the footer of its Parquet file, where they cost nothing to read again.

Knows nothing of what is counted.
"""

import json
from collections.abc import Iterable, Mapping

import pyarrow as pa

Tally = dict[str, float]
TALLY_KEY = b"steerlm.tally"
"""Where an Arrow schema carries its rows' tally, as JSON."""


def with_tally(table: pa.Table, tally: Mapping[str, float]) -> pa.Table:
    """The table with `tally` in its metadata, in place of an older one."""
    return table.replace_schema_metadata({**(table.schema.metadata or {}), TALLY_KEY: json.dumps(tally).encode()})


def tally_of(schema: pa.Schema) -> Tally:
    """The tally that came with the rows; empty if there is none."""
    found: Tally = json.loads((schema.metadata or {}).get(TALLY_KEY, b"{}"))
    return found


def added(tallies: Iterable[Tally]) -> Tally:
    """The sum, name by name. In the given order, so that equal input gives equal floats."""
    total: Tally = {}
    for tally in tallies:
        for name, value in tally.items():
            total[name] = total.get(name, 0) + value
    return total
