"""An Iceberg table as a source: one snapshot of it, and the Parquet files that this snapshot is made of.

`pyiceberg`, the extra `lake`, finds the catalog as it always does: in `.pyiceberg.yaml`, or in
`PYICEBERG_CATALOG__NAME__URI` and its kin. Knows no row.
"""

import importlib
import importlib.util
from collections.abc import Collection, Container
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from data.errors import UserError, nearest
from data.source_files import SourceFiles
from data.uris import local_path, shown_uri

ICEBERG = "iceberg"
"""The format of such a source; its `uri` is the table's name."""
NAME = r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_]+){2,}"
"""catalog.namespace.table; a namespace may have several levels."""
INSTALL = "pip install 'pyiceberg[pyarrow,sql-sqlite]'"
PACKAGES = ("pyiceberg", "sqlalchemy", "requests")
"""Their errors are those of a catalog, and no OSError."""


@dataclass(frozen=True)
class Snapshot:
    """What a table held at one time."""

    schema: pa.Schema
    files: SourceFiles
    """Sorted by name; a data file never changes."""


def is_installed() -> bool:
    return importlib.util.find_spec("pyiceberg") is not None


def open_catalog(name: str, named: str) -> Any:
    """The pyiceberg catalog of the table `name`. `named`: begins the sentence, with the setting that names it.

    Raises UserError if the catalog is not known; pyiceberg must be installed.
    """
    catalog = name.partition(".")[0]
    try:
        return importlib.import_module("pyiceberg.catalog").load_catalog(catalog)
    except Exception as error:
        if not isinstance(error, ValueError) and not _is_catalogs(error):
            raise
        raise UserError(
            f"{named}, and pyiceberg cannot open the catalog {catalog} ({_reason(error)}); set "
            f"PYICEBERG_CATALOG__{catalog.upper()}__URI, or name it in .pyiceberg.yaml"
        ) from None


def newest_snapshot(name: str) -> int:
    """The id of the table's present snapshot; raises UserError if there is no such table, or nothing in it."""
    snapshot = _table(name).current_snapshot()
    if snapshot is None:
        raise UserError(f"the Iceberg table {name} has no snapshot: nothing was ever written into it; fill it first")
    return int(snapshot.snapshot_id)


def has_snapshot(name: str, number: int) -> bool:
    """Is the snapshot still there? A table's maintenance removes old ones, with files that no newer one has."""
    return _table(name).snapshot_by_id(number) is not None


def read_snapshot(name: str, number: int, columns: Container[str]) -> Snapshot:
    """The columns and data files of one snapshot; raises UserError for what Parquet files alone do not tell.

    That is rows that were deleted by a file of their own, data in other formats, and renames among `columns`.
    """
    table = _table(name)
    if table.snapshot_by_id(number) is None:
        raise UserError(f"the Iceberg table {name} has no snapshot {number} any more; run again to read its newest one")
    scan = table.scan(snapshot_id=number)
    _require_same_columns(name, scan.projection(), table.schemas().values(), columns)
    sizes: dict[str, int] = {}
    for task in scan.plan_files():
        _require_plain(name, task)
        sizes[_plain_path(task.file.file_path)] = task.file.file_size_in_bytes
    if not sizes:
        raise UserError(f"the Iceberg table {name} has no rows in its snapshot {number}; fill it first")
    files = tuple(sorted(sizes))
    return Snapshot(scan.projection().as_arrow(), SourceFiles(files, listed={f: {"size": sizes[f]} for f in files}))


def _plain_path(path: str) -> str:
    """As other sources are named; Hadoop writes file:/a for /a."""
    return (
        path.removeprefix("file:") if path.startswith("file:/") and not path.startswith("file://") else local_path(path)
    )


def _require_plain(name: str, task: Any) -> None:
    if task.delete_files:
        raise UserError(
            f"the Iceberg table {name} has rows that were deleted by files of their own, which are not read here; "
            "rewrite its data files first (Spark: CALL system.rewrite_data_files, with delete-file-threshold 1)"
        )
    if (kind := task.file.file_format.name) != "PARQUET":
        raise UserError(f"the Iceberg table {name} has data files of format {kind}; rewrite them as PARQUET")


def _require_same_columns(name: str, schema: Any, known: Collection[Any], columns: Container[str]) -> None:
    """Files keep the names that their columns had when they were written, and Iceberg tells columns by number."""
    numbers = {c: schema.find_field(c).field_id for c in schema.column_names if c.partition(".")[0] in columns}
    for other in known:
        there = {*other.column_names}
        for column, number in numbers.items():
            before = other.find_column_name(number)
            if before == column or (before is None and column not in there):
                continue  # as it is now, or not yet there
            was = f"was once called {before}" if before else "was dropped and added again"
            raise UserError(
                f"the Iceberg table {name} has a column {column}, which {was}: older files would be read wrongly; "
                "write the rows into a new table"
            )


def _table(name: str) -> Any:
    named = f"the source is the Iceberg table {name}"
    if not is_installed():
        raise UserError(f"{named}, but pyiceberg is not installed; {INSTALL} where the run starts")
    catalog, table = open_catalog(name, named), name.partition(".")[2]
    missing = importlib.import_module("pyiceberg.exceptions")
    try:
        return catalog.load_table(table)
    except (missing.NoSuchTableError, missing.NoSuchNamespaceError):
        raise UserError(f"{named}, and there is no such table{_nearest_table(catalog, table)}") from None
    except Exception as error:
        if not _is_catalogs(error):
            raise
        raise UserError(
            f"{named}, which cannot be opened ({_reason(error)}); check the catalog and the access"
        ) from error


def _is_catalogs(error: Exception) -> bool:
    return type(error).__module__.partition(".")[0] in PACKAGES


def _reason(error: Exception) -> str:
    return shown_uri(str(error) or type(error).__name__)


def _nearest_table(catalog: Any, table: str) -> str:
    namespace = table.rpartition(".")[0]
    missing = importlib.import_module("pyiceberg.exceptions")
    try:
        there = [".".join(found) for found in catalog.list_tables(namespace)]
    except missing.NoSuchNamespaceError:
        return f": the catalog has no namespace {namespace}; write catalog.namespace.table"
    if not there:
        return f": the namespace {namespace} has none"
    return nearest(table, there) or f": the namespace {namespace} has {', '.join(sorted(there)[:3])}"
