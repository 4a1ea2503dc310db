"""Rows with our own columns, as `data.conversation` writes them: Parquet files of ours, and those of Iceberg tables.

They keep their own `source`, ids and groups. Knows no other format.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from data.attributes import AttributeSchema
from data.conversation import VALUES, Rejected, arrow_schema, from_record, problem, schema_of
from data.errors import UserError
from data.lines import Row
from data.parquet_rows import Record, Require, parquet_rows
from data.printable import printable
from data.source_files import shown_path
from data.unpacked import FileRange


def steerlm(file: str, schema: AttributeSchema, source: str, within: FileRange | None = None) -> Iterator[Row]:
    """A Parquet file of ours, whose metadata have the attribute schema."""
    wanted, shown = arrow_schema(schema), shown_path(file)

    def require(there: pa.Schema) -> None:
        schema.require_same(schema_of(there, shown), "this run", shown)
        if missing := [name for name in wanted.names if name not in there.names]:
            raise UserError(f"{shown} lacks the columns {', '.join(missing)}; rebuild it with `python -m jobs.prepare`")
        if other := [f.name for f in wanted if there.field(f.name).type != f.type]:
            raise UserError(
                f"{shown} has columns of other types ({', '.join(other)}); rebuild it with `python -m jobs.prepare`"
            )

    return _rows(file, wanted.names, require, within)


def iceberg_rows(file: str, schema: AttributeSchema, source: str, within: FileRange | None = None) -> Iterator[Row]:
    """A data file of an Iceberg table: it has the columns, and no attribute schema."""
    names = arrow_schema(schema).names

    def require(there: pa.Schema) -> None:
        require_columns(there, schema, shown_path(file))

    return _rows(file, names, require, within)


def require_columns(there: pa.Schema, schema: AttributeSchema, shown: str) -> None:
    """Raise UserError if columns are missing, or of another kind; sizes of numbers and order do not matter."""
    wanted = arrow_schema(schema)
    columns = "its columns must be those of a run's rows (`jobs.export format=parquet iceberg=...` writes them)"
    if missing := [name for name in wanted.names if name not in there.names]:
        raise UserError(f"{shown} lacks the columns {', '.join(missing)}: {columns}")
    for kind in VALUES:
        rated = _shape(there.field(kind).type)
        if isinstance(rated, list) and isinstance(rated[0], dict) and {*rated[0]} != {*schema.names}:
            raise UserError(
                f"{shown} has the attributes {', '.join(rated[0])} in {kind}, and this run has "
                f"{', '.join(schema.names)}; set `attributes` to those of the rows"
            )
    if other := [f"{f.name} ({there.field(f.name).type})" for f in wanted if _differs(there.field(f.name), f)]:
        raise UserError(f"{shown} has columns of other types, {printable(', '.join(other), 160)}: {columns}")


def _differs(one: pa.Field, other: pa.Field) -> bool:
    return bool(_shape(one.type) != _shape(other.type))


def _shape(kind: pa.DataType) -> Any:
    """The type as lists, dicts and words, without what a lake's tools write differently."""
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return [_shape(kind.value_type)]
    if pa.types.is_struct(kind):
        return {field.name: _shape(field.type) for field in kind}
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "text"
    if pa.types.is_floating(kind):
        return "float"
    return "integer" if pa.types.is_integer(kind) else str(kind)


def _rows(file: str, names: Sequence[str], require: Require, within: FileRange | None) -> Iterator[Row]:
    for row in parquet_rows(file, require, within):
        yield row if isinstance(row, Rejected) else _row(file, *row, names)


def _row(file: str, number: int, record: Record, names: Sequence[str]) -> Row:
    if empty := next((name for name in names if _has_null(record[name])), ""):
        return Rejected(file, number, "wrong_type", f"column {empty!r} holds a null; rebuild the file")
    row = from_record(record)
    if reason := problem(row.messages):
        return Rejected(file, number, reason, f"row {printable(row.id)}")
    for kind in VALUES:
        if len(values := getattr(row, kind)) not in (0, row.num_answers):
            return Rejected(
                file, number, "wrong_type", f"{kind} has {len(values)} entries for {row.num_answers} answers"
            )
    return row


def _has_null(value: Any) -> bool:
    """A null where a row has none; single ratings may be null."""
    return value is None or (
        isinstance(value, list)
        and any(v is None or v.get("role", "") is None or v.get("content", "") is None for v in value)
    )
