"""Rows of an export as an Iceberg table, replaced in one commit: a reader sees the old rows or the new ones.

`pyiceberg`, the extra `lake`, finds the catalog as it always does: in `.pyiceberg.yaml`, or in
`PYICEBERG_CATALOG__NAME__URI` and its kin. Knows no run.
"""

import importlib
import importlib.util
import re
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import UserError
from data.storage import Storage
from jobs.runner.stage import Metrics, log

NAME = r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_]+){2,}"
"""catalog.namespace.table; a namespace may have several levels."""


def require_iceberg(name: str) -> None:
    """Raise UserError if pyiceberg is not there, or does not know the catalog."""
    if importlib.util.find_spec("pyiceberg") is None:
        raise UserError(
            f"iceberg is {name}, but pyiceberg is not installed; pip install 'pyiceberg[pyarrow,sql-sqlite]', or leave "
            "iceberg out"
        )
    _catalog(name)


def commit(name: str, folder: Storage) -> Metrics:
    """Make the table hold the rows of the Parquet files in `folder`, and no others; returns its snapshot."""
    catalog, table_name = _catalog(name), name.partition(".")[2]
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


def _catalog(name: str) -> Any:
    catalog = re.split(r"\.", name, maxsplit=1)[0]
    try:
        return importlib.import_module("pyiceberg.catalog").load_catalog(catalog)
    except (ValueError, importlib.import_module("pyiceberg.exceptions").NoSuchNamespaceError) as error:
        raise UserError(
            f"iceberg is {name}, and pyiceberg cannot open the catalog {catalog} ({error}); set "
            f"PYICEBERG_CATALOG__{catalog.upper()}__URI, or name it in .pyiceberg.yaml"
        ) from None
