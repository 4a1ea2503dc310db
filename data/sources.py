"""Public data in, conversations out: a record becomes rows, or Rejected with file, line and reason, never an exception.

The formats are in `data.formats`, `data.trees` and `data.own_rows`, how files are opened is in `data.unpacked`, which
are in `data.source_files`. Knows no Ray and no prompt.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from data.attributes import AttributeSchema
from data.conversation import Conversation, Rejected
from data.csv_rows import separator_of
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
from data.iceberg import ICEBERG
from data.lines import BadRecord, Line, Row, lines, text
from data.own_rows import iceberg_rows, steerlm
from data.printable import printable
from data.scored_text import SCORED_TEXT, TEXT_SUFFIXES, ScoredColumns, scored_text
from data.source_files import SUFFIXES, SourceFiles, files_of, shown_path, source_files
from data.trees import oasst_messages, oasst_trees
from data.unpacked import FileRange, is_packed

__all__ = ["FORMATS", "Reader", "files_of", "found", "read", "read_texts", "require_format", "to_messages", "to_nemo"]

Reader = Callable[[str, AttributeSchema, str, FileRange | None], Iterator[Row]]
"""File, schema, source name, and which part of the file (None = all) -> rows."""
Parser = Callable[[Line, AttributeSchema, str], Iterator[Row]]
"""The same for one record; may raise BadRecord."""


def read(
    uri: str,
    format: str,
    schema: AttributeSchema,
    source: str = "",
    limit: int = 0,
    columns: ScoredColumns | None = None,
) -> Iterator[Row]:
    """Rows of the file, folder or glob at `uri`, in order, streamed.

    `source` is the name of the rows, and a part of their ids: by default the format's name. `limit` counts rows without
    the rejected ones; 0 means all. `columns` belong to format scored_text. Raises UserError for an unknown format or
    attribute and FileNotFoundError for a `uri` with nothing there, at once; while reading, SchemaMismatch (a UserError)
    if rows of ours have another schema.
    """
    require_format(format)
    if columns:
        columns.require_in(schema)
    reader = reader_of(format, columns)
    files = found(uri, format).files
    return limited((row for file in files for row in reader(file, schema, source or format, None)), limit)


def reader_of(format: str, columns: ScoredColumns | None) -> Reader:
    """The reader of a known format's files."""
    if format == ICEBERG:
        return iceberg_rows
    return _each_line(scored_text(columns)) if columns else FORMATS[format]


def division_of(format: str, file: str) -> Literal["lines", "row groups", ""]:
    """At what the file can be divided, so that its parts are read apart; "" = it is read as a whole."""
    if format in UNDIVIDED:
        return ""
    if format == ICEBERG or file.endswith(".parquet"):
        return "row groups"
    return "" if format == "steerlm" or is_packed(file) or separator_of(file) else "lines"


def found(uri: str, format: str) -> SourceFiles:
    """The files of a source, and those that are passed by; raises FileNotFoundError."""
    return source_files(uri, suffixes_of(format))


def suffixes_of(format: str) -> tuple[str, ...]:
    """Which files of a folder are data of this format."""
    return {"steerlm": (".parquet",), SCORED_TEXT: TEXT_SUFFIXES}.get(format, SUFFIXES)


def require_format(format: str, *also: str) -> None:
    """Raises UserError, with the nearest name there is, if `format` is neither of ours nor one of `also`."""
    known = (*FORMATS, SCORED_TEXT, *also)
    if format not in known:
        raise UserError(f"unknown format {format!r}{nearest(format, known)}; allowed: {', '.join(known)}")


def limited(rows: Iterable[Row], limit: int) -> Iterator[Row]:
    """The rows up to the one that makes `limit` of them, rejected ones not counted; 0 = all."""
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
        f"{shown_path(rejected.file)}, line {rejected.line}: {rejected.reason} ({printable(rejected.detail, 160)}); "
        "a line is an object with a string `text`, fix or remove this one"
    )


def _each_line(parse: Parser) -> Reader:
    """A reader of files whose lines can be parsed one by one."""

    def reader(file: str, schema: AttributeSchema, source: str, within: FileRange | None = None) -> Iterator[Row]:
        for line in lines(file, within):
            if isinstance(line, Rejected):
                yield line
                continue
            try:
                yield from parse(line, schema, source)
            except BadRecord as bad:
                yield bad.at(line)

    return reader


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
"""Format name -> reader; `scored_text` has one for each source's columns, and files of an Iceberg table have theirs."""
UNDIVIDED = ("oasst_messages",)
"""Formats whose rows are made of records anywhere in a file."""
