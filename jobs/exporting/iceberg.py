"""Rows of an export as an Iceberg table, replaced in one commit: a reader sees the old rows or the new ones.

`data.iceberg` opens the catalog. Knows no run.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import UserError
from data.iceberg import INSTALL, is_installed, open_catalog
from data.storage import Storage
from jobs.runner.stage import Metrics, log


def require_iceberg(name: str) -> None:
    """Raise UserError if pyiceberg is not there, or does not know the catalog."""
    if not is_installed():
        raise UserError(f"iceberg is {name}, but pyiceberg is not installed; {INSTALL}, or leave iceberg out")
    open_catalog(name, f"iceberg is {name}")


def commit(name: str, folder: Storage) -> Metrics:
    """Make the table hold the rows of the Parquet files in `folder`, and no others; returns its snapshot."""
    catalog, table_name = open_catalog(name, f"iceberg is {name}"), name.partition(".")[2]
    files = folder.files(".parquet")
    schema = _plain(pq.read_schema(files[0], filesystem=folder.arrow_fs))
    catalog.create_namespace_if_not_exists(table_name.rpartition(".")[0])
    table = catalog.create_table_if_not_exists(table_name, schema=schema)
    with table.transaction() as transaction:
        with transaction.update_schema() as update:
            update.union_by_name(schema)
        # One commit for all parts: the first takes the place of what was there.
        replaces = table.current_snapshot() is not None
        for rows in folder.tables():
            (transaction.overwrite if replaces else transaction.append)(rows.cast(schema))
            replaces = False
    snapshot = table.current_snapshot()
    assert snapshot is not None, "a commit makes a snapshot"
    log(f"{name}: one commit of {len(files)} files, snapshot {snapshot.snapshot_id}")
    return {"iceberg": name, "snapshot": snapshot.snapshot_id, "location": table.location()}


def _plain(schema: pa.Schema) -> pa.Schema:
    """Without metadata, which Iceberg does not carry: the card of the export has the attributes."""
    return schema.remove_metadata()
