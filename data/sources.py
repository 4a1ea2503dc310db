"""Public data in, conversations out: a record becomes rows, or Rejected with file, line and reason, never an exception.

The formats are in `data.formats` and `data.trees`, how files are opened is in `data.lines`. Knows no Ray and no prompt.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping

import pyarrow as pa

from data.attributes import AttributeSchema
from data.conversation import Conversation, Rejected, arrow_schema, from_table, problem, schema_of
from data.errors import UserError, nearest
from data.formats import (
    helpsteer,
    helpsteer3,
    helpsteer_preference,
    hh_rlhf,
    messages,
    nemo,
    prompt_output,
    to_messages,
    to_nemo,
)
from data.lines import BadRecord, Line, Row, files_of, lines, parquet_batches, text
from data.trees import oasst_messages, oasst_trees

__all__ = ["FORMATS", "Reader", "files_of", "read", "read_texts", "require_format", "to_messages", "to_nemo"]

Reader = Callable[[str, AttributeSchema, str], Iterator[Row]]
"""File, schema and source name -> rows."""
Parser = Callable[[Line, AttributeSchema, str], Iterator[Row]]
"""The same for one record; may raise BadRecord."""


def read(uri: str, format: str, schema: AttributeSchema, source: str = "", limit: int = 0) -> Iterator[Row]:
    """Rows of the file, folder or glob at `uri`, in order, streamed.

    `source` is the name of the rows, and a part of their ids: by default the format's name. `limit` counts rows without
    the rejected ones; 0 means all. Raises UserError for an unknown format and FileNotFoundError for a `uri` with
    nothing there, both at once; while reading, SchemaMismatch (a UserError) if rows of ours have another schema.
    """
    require_format(format)
    files = files_of(uri, (".parquet",)) if format == "steerlm" else files_of(uri)
    return _limited((row for file in files for row in FORMATS[format](file, schema, source or format)), limit)


def require_format(format: str, *also: str) -> None:
    """Raises UserError, with the nearest name there is, if `format` is neither of ours nor one of `also`."""
    known = (*FORMATS, *also)
    if format not in known:
        raise UserError(f"unknown format {format!r}{nearest(format, known)}; allowed: {', '.join(known)}")


def _limited(rows: Iterable[Row], limit: int) -> Iterator[Row]:
    num_rows = 0
    for row in rows:
        yield row
        num_rows += isinstance(row, Conversation)
        if limit and num_rows == limit:
            return


def read_texts(uri: str, limit: int = 0) -> Iterator[str]:
    """The column `text` of every record at `uri`, for language-model pre-training; blank texts are left out.

    There are no rows to count here, so the first broken record raises UserError with its file and line.
    """
    texts = (_text(line) for file in files_of(uri) for line in lines(file))
    return itertools.islice(filter(str.strip, texts), limit or None)


def _text(line: Line | Rejected) -> str:
    if isinstance(line, Rejected):
        raise _broken_text(line)
    try:
        return text(line.record, "text")
    except BadRecord as bad:
        raise _broken_text(bad.at(line)) from None


def _broken_text(rejected: Rejected) -> UserError:
    return UserError(
        f"{rejected.file}, line {rejected.line}: {rejected.reason} ({rejected.detail}); "
        "a line is an object with a string `text`, fix or remove this one"
    )


def _each_line(parse: Parser) -> Reader:
    """A reader of files whose lines can be parsed one by one."""

    def reader(file: str, schema: AttributeSchema, source: str) -> Iterator[Row]:
        for line in lines(file):
            if isinstance(line, Rejected):
                yield line
                continue
            try:
                yield from parse(line, schema, source)
            except BadRecord as bad:
                yield bad.at(line)

    return reader


def steerlm(file: str, schema: AttributeSchema, source: str) -> Iterator[Row]:
    """Our own Parquet rows; they keep their own `source`, ids and groups."""

    def require(found: pa.Schema) -> None:
        schema.require_same(schema_of(found, file), "this run", file)
        missing = [name for name in arrow_schema(schema).names if name not in found.names]
        if missing:
            raise UserError(f"{file} lacks the columns {', '.join(missing)}; rebuild it with `python -m jobs.prepare`")

    number = 0
    for batch in parquet_batches(file, require):
        if isinstance(batch, Rejected):
            yield batch
            continue
        for conversation in from_table(batch):
            number += 1
            reason = problem(conversation.messages)
            yield Rejected(file, number, reason, f"row {conversation.id}") if reason else conversation


FORMATS: Mapping[str, Reader] = {
    "helpsteer": _each_line(helpsteer),
    "helpsteer_preference": _each_line(helpsteer_preference),
    "helpsteer3": _each_line(helpsteer3),
    "oasst_messages": oasst_messages,
    "oasst_trees": _each_line(oasst_trees),
    "hh_rlhf": _each_line(hh_rlhf),
    "messages": _each_line(messages),
    "prompt_output": _each_line(prompt_output),
    "nemo": _each_line(nemo),
    "steerlm": steerlm,
}
"""Format name -> reader."""
