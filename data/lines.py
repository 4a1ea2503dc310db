"""Files in, records out: one record a line (JSONL, gz by extension) or a Parquet row, streamed from any fsspec URI.

Every format's bad records are described here, in the same words. Knows no format (`data.formats`, `data.trees`).
"""

import difflib
import functools
import json
import posixpath
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from gzip import BadGzipFile
from typing import Any, TypeVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from data.attributes import Attribute, AttributeSchema, Values
from data.conversation import Conversation, Message, Rejected, content_id, problem
from data.errors import nearest
from data.storage import Storage, options

Row = Conversation | Rejected
T = TypeVar("T")
Scale = tuple[float, float]
"""Lowest and highest rating a source can give."""

SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
"""What counts as data in a folder; a file that is named outright may be called anything."""
PARQUET_BATCH_ROWS = 256
"""Keeps a batch of long conversations (some 10 kB each) within a few MB."""
SHOWN_TURNS = 12
"""A rejection lists at most so many turns: enough to see the fault, short enough for a log line."""


@dataclass(frozen=True)
class Line:
    """One record and where it stands; `number` counts from 1."""

    file: str
    number: int
    record: Mapping[str, Any]


class BadRecord(Exception):
    """A record that can become no row; `reason` is the short name it is counted by."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason
        self.detail = detail

    def at(self, line: Line) -> Rejected:
        return Rejected(line.file, line.number, self.reason, self.detail)


def files_of(uri: str, suffixes: tuple[str, ...] = SUFFIXES) -> list[str]:
    """The file at `uri`; or all files below a folder that end in one of `suffixes`; or all that match a glob. Sorted.

    Raises FileNotFoundError, with the nearest name there is, when nothing matches.
    """
    if not uri:
        raise FileNotFoundError(
            "nothing to read at '': name a file, a folder or a glob"
        )  # not the folder that this process happens to run in
    storage = Storage(uri)
    fs, path = storage.fs, storage.path
    if fs.isfile(path):
        return [storage.uri]
    if fs.isdir(path):
        found = [p for p in fs.find(path) if p.endswith(suffixes)]
        wanted = f"it is a folder without a file that ends in {', '.join(suffixes)}"
    else:
        found = [p for p in fs.glob(path) if fs.isfile(p)]
        wanted = "a source is a file, a folder or a glob such as folder/*.jsonl.gz"
    if not found:
        raise FileNotFoundError(f"nothing to read at {uri}: {wanted}{_nearest_file(storage)}")
    return sorted(found if isinstance(fs, LocalFileSystem) else map(fs.unstrip_protocol, found))


def _nearest_file(storage: Storage) -> str:
    folder = posixpath.dirname(storage.path.rstrip("/"))
    siblings = (
        [posixpath.basename(p.rstrip("/")) for p in storage.fs.ls(folder, detail=False)]
        if storage.fs.isdir(folder)
        else []
    )
    return nearest(posixpath.basename(storage.path.rstrip("/")), siblings)


def lines(file: str) -> Iterator[Line | Rejected]:
    """Every record of `file`, one at a time; blank lines are no records.

    What cannot be read is Rejected: "broken_json", "invalid_utf8", "wrong_type" (not an object), and "broken_file" for
    the rest of a torn file.
    """
    if file.endswith(".parquet"):
        yield from _parquet_rows(file)
        return
    number = 0
    with fsspec.open(file, "rb", compression="infer", **options(file)) as stream:
        try:
            # Bytes are split at "\n" only; text mode would also split at the lone "\r" that people paste into chats.
            for number, raw in enumerate(stream, 1):
                if raw.strip():
                    yield _parsed(file, number, raw)
        except (EOFError, BadGzipFile, zlib.error) as error:
            yield Rejected(
                file, number + 1, "broken_file", f"the file is torn after line {number} ({error}); fetch it again"
            )


def _parsed(file: str, number: int, raw: bytes) -> Line | Rejected:
    try:
        record = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        return Rejected(file, number, "invalid_utf8", str(error))
    except (ValueError, RecursionError) as error:
        return Rejected(file, number, "broken_json", str(error))
    if not isinstance(record, dict):
        return Rejected(
            file, number, "wrong_type", f"the line is {_kind(record)}, it must be an object with named columns"
        )
    return Line(file, number, record)


def _parquet_rows(file: str) -> Iterator[Line | Rejected]:
    number = 0
    for batch in parquet_batches(file):
        if isinstance(batch, Rejected):
            yield batch
            continue
        for record in batch.to_pylist():
            number += 1
            yield Line(file, number, record)


def parquet_batches(
    file: str, require: Callable[[pa.Schema], None] | None = None
) -> Iterator[pa.RecordBatch | Rejected]:
    """The file's rows, a batch at a time; no Parquet is one Rejected. `require` raises to refuse an Arrow schema."""
    with fsspec.open(file, "rb", **options(file)) as stream:
        try:
            parquet = pq.ParquetFile(stream)
            if require:
                require(parquet.schema_arrow)
            yield from parquet.iter_batches(PARQUET_BATCH_ROWS)
        except pa.ArrowInvalid as error:
            yield Rejected(file, 0, "broken_file", f"not a whole Parquet file ({error}); fetch or write it again")


def numbered(uri: str, parse: Callable[[Line, int], T | Rejected], limit: int = 0) -> Iterator[T | Rejected]:
    """The results of `parse`, which gets each record at `uri` and how many results came before it.

    Rejected ones do not count, neither for that number nor for `limit` (0 = all).
    """
    number = 0
    for line in (line for file in files_of(uri) for line in lines(file)):
        found = line if isinstance(line, Rejected) else parse(line, number)
        yield found
        number += not isinstance(found, Rejected)
        if limit and number == limit:
            return


def column(record: Mapping[str, Any], name: str) -> Any:
    """The value of a column that must be there."""
    if name not in record:
        raise BadRecord(
            "missing_column", f"no column {name!r}; this record has {', '.join(map(str, record)) or 'none'}"
        )
    return record[name]


def text(record: Mapping[str, Any], name: str) -> str:
    """A column that must hold a string, and one that can be written as UTF-8."""
    value = typed(column(record, name), str, name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON may spell half of a surrogate pair ("\ud83d"): such a string can be stored nowhere.
        raise BadRecord("invalid_utf8", f"column {name!r}: {error}") from None
    return value


def optional_text(record: Mapping[str, Any], name: str) -> str:
    """Like `text`, but a missing or null column is ""."""
    return "" if record.get(name) is None else text(record, name)


def typed(value: Any, kind: type[T], name: str) -> T:
    """`value`, which must be a `kind`."""
    if not isinstance(value, kind):
        raise BadRecord("wrong_type", f"{name!r} is {_kind(value)}, it must be {_KINDS[kind]}")
    return value


_KINDS: Mapping[type, str] = {
    str: "a string",
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


def _kind(value: Any) -> str:
    return "null" if value is None else _KINDS.get(type(value), type(value).__name__)


def ratings(values: Mapping[str, Any], schema: AttributeSchema, scale: Scale | None = None) -> Values:
    """The ratings of `schema`'s attributes among `values`, in schema units, unrounded; null and NaN mean "not rated".

    `scale` is the source's own range, mapped onto each attribute's; without one the values are in schema units already.
    Other names are left alone. Raises BadRecord "rating_out_of_range", and "misspelled_attribute" for a name that looks
    like one of the schema's.
    """
    missing = tuple(name for name in schema.names if name not in values)
    for name in values if missing else ():
        if name not in schema.names and (meant := _misspelled(name, missing)):
            raise BadRecord(
                "misspelled_attribute", f"rating {name!r} is none of {', '.join(schema.names)}; did you mean {meant!r}?"
            )
    rated = {
        a.name: _rating(a, values[a.name], scale or (a.low, a.high)) for a in schema.attributes if a.name in values
    }
    return {name: value for name, value in rated.items() if value is not None}


@functools.lru_cache(maxsize=4096)
def _misspelled(name: str, missing: tuple[str, ...]) -> str:
    """The one of `missing` that `name` was meant to be, "" if none is near."""
    return "".join(difflib.get_close_matches(name, missing, n=1, cutoff=0.8))


def _rating(attribute: Attribute, value: Any, scale: Scale) -> float | None:
    if value is None or value != value:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRecord("wrong_type", f"rating {attribute.name!r} is {_kind(value)}, it must be a number or null")
    low, high = scale
    if not low <= value <= high:
        raise BadRecord(
            "rating_out_of_range", f"rating {attribute.name!r} is {str(value)[:20]}, allowed is {low:g} to {high:g}"
        )
    if (low, high) == (attribute.low, attribute.high):
        return float(value)  # the mapping below would give 0.1 back as 0.10000000000000002
    return attribute.low + (value - low) / (high - low) * (attribute.high - attribute.low)


def row(
    line: Line,
    source: str,
    messages: Iterable[Message],
    human: Iterable[Values] = (),
    system: str = "",
    group: str = "",
) -> Row:
    """The conversation, or why there is none. `human` has one entry per assistant turn, or none at all.

    Without a `group`, conversations with the same first user turn are one: samples of a prompt share it, and paths of a
    tree.
    """
    messages = tuple(messages)
    reason = problem(messages)
    if reason:
        return Rejected(line.file, line.number, reason, f"turns: {_outline(messages)}")
    rated = tuple(human) or ({},) * sum(m.role == "assistant" for m in messages)
    return Conversation(source, system, messages, human=rated, group=group or content_id("", "", messages[:1]))


def _outline(messages: tuple[Message, ...]) -> str:
    """`user, assistant (empty), ...`"""
    turns = [m.role + ("" if m.content.strip() else " (empty)") for m in messages]
    return ", ".join(turns[:SHOWN_TURNS] + (["..."] if len(turns) > SHOWN_TURNS else [])) or "none"
