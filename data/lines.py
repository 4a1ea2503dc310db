"""Files in, records out: a line of JSONL, a record of CSV (packed or not) or a Parquet row, from any fsspec URI.

Every format's bad records are described here, in the same words. Knows no format (`data.formats`, `data.trees`).
"""

import difflib
import functools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from data.attributes import Attribute, AttributeSchema, Values
from data.conversation import ROLES, Conversation, Message, Rejected, content_id, problem
from data.csv_rows import csv_rows, separator_of
from data.parquet_rows import parquet_rows
from data.printable import printable
from data.source_files import files_of
from data.unpacked import FileRange, raw_lines

Row = Conversation | Rejected
T = TypeVar("T")
Scale = tuple[float, float]
"""Lowest and highest rating a source can give."""

SHOWN_TURNS = 12
"""A rejection lists at most so many turns: enough to see the fault, short enough for a log line."""
SHOWN_ROLE = 20
"""Characters of a role in it."""
MAX_MESSAGES = 10_000
"""A conversation of more is rejected: no model reads so many turns, and every later step would pay for them."""
MAX_RATINGS = 256
"""An answer with more ratings is rejected: each name is compared with the schema's."""
LONGEST_NAME = 64
"""A longer name is no misspelling of an attribute's."""
ONE_A_LINE = "a record stands on one line: `jq -c . FILE > NEW.jsonl` writes it so"
ARRAY = "this is one JSON array: `jq -c '.[]' FILE > NEW.jsonl` makes it a record a line"


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


def lines(file: str, within: FileRange | None = None) -> Iterator[Line | Rejected]:
    """Every record of `file`, or of a part of it, one at a time; blank lines are no records.

    What cannot be read is Rejected: "broken_json", "duplicate_key", "invalid_utf8", "overlong_line", "wrong_type" (not
    an object), and "broken_file" for the rest of a damaged file.
    """
    if file.endswith(".parquet") or separator_of(file):
        for row in parquet_rows(file, within=within) if file.endswith(".parquet") else csv_rows(file):
            yield row if isinstance(row, Rejected) else Line(file, *row)
        return
    for line in raw_lines(file, within):
        if isinstance(line, Rejected):
            yield line
        elif not line[1].isspace():
            yield (found := _parsed(file, *line))
            if isinstance(found, Rejected) and found.reason == "broken_file":
                return


class _DuplicateKey(Exception):
    """An object has a key twice; the last would win without a word."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise _DuplicateKey(Counter(key for key, _ in pairs).most_common(1)[0][0])
    return record


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def _parsed(file: str, number: int, raw: bytes) -> Line | Rejected:
    try:
        content = raw.decode("utf-8-sig" if number == 1 else "utf-8")
        record = _DECODER.decode(content)
    except UnicodeDecodeError as error:
        return Rejected(file, number, "invalid_utf8", str(error))
    except _DuplicateKey as error:
        twice = f"key {printable(str(error))!r} is there twice in one object, one value would be lost"
        return Rejected(file, number, "duplicate_key", twice)
    except RecursionError:
        return Rejected(file, number, "broken_json", "the record is nested too deeply, some hundred levels are read")
    except ValueError as error:
        if number == 1 and re.match(r"\s*\[\s*(\{|\Z)", content):
            return Rejected(file, number, "broken_file", ARRAY)
        return Rejected(file, number, "broken_json", f"{error}{_hint(content, error)}")
    if isinstance(record, dict):
        return Line(file, number, record)
    if number == 1 and isinstance(record, list) and isinstance((record or [{}])[0], dict):
        return Rejected(file, number, "broken_file", ARRAY)
    return Rejected(file, number, "wrong_type", f"the line is {_kind(record)}, it must be an object with named columns")


def _hint(content: str, error: ValueError) -> str:
    """What the line may be part of."""
    joined = isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and content[error.pos] == "{"
    return f"; {ONE_A_LINE}" if joined or content.strip() in ("{", "}") else ""


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
        raise BadRecord("missing_column", f"no column {name!r}; this record has {_names(record)}")
    return record[name]


def _names(record: Mapping[str, Any]) -> str:
    return printable(", ".join(name for name, _ in zip(record, range(SHOWN_TURNS), strict=False))) or "none"


def text(record: Mapping[str, Any], name: str) -> str:
    """A column that must hold a string, and one that can be written as UTF-8."""
    value = typed(column(record, name), str, name)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        # JSON may spell half of a surrogate pair ("\ud83d"): such a string can be stored nowhere.
        raise BadRecord("invalid_utf8", f"column {name!r} holds half a surrogate pair at {error.start}") from None
    return value


def optional_text(record: Mapping[str, Any], name: str) -> str:
    """Like `text`, but a missing or null column is ""."""
    return "" if record.get(name) is None else text(record, name)


def typed(value: Any, kind: type[T], name: str) -> T:
    """`value`, which must be a `kind`."""
    if not isinstance(value, kind):
        raise BadRecord("wrong_type", f"{printable(name)!r} is {_kind(value)}, it must be {_KINDS[kind]}")
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
    if len(values) > MAX_RATINGS:
        raise BadRecord("too_many_ratings", f"an answer has {len(values):,} ratings, at most {MAX_RATINGS} are read")
    names = schema.names
    missing = tuple(name for name in names if name not in values)
    if len(values) > len(names) - len(missing):
        for name in values:
            if name not in names and (meant := misspelled(name, names, missing)):
                raise BadRecord(
                    "misspelled_attribute",
                    f"rating {printable(name)!r} is no attribute; did you mean {meant!r}?",
                )
    rated = {
        a.name: _rating(a, values[a.name], scale or (a.low, a.high)) for a in schema.attributes if a.name in values
    }
    return {name: value for name, value in rated.items() if value is not None}


@functools.lru_cache(maxsize=4096)
def misspelled(name: str, names: tuple[str, ...], missing: tuple[str, ...] = ()) -> str:
    """The one of `names` that is `name` but for capitals and signs; or one of `missing` that is near; "" if none is."""
    if len(name) > LONGEST_NAME:
        return ""
    plain = _plain(name)
    same = [known for known in names if _plain(known) == plain]
    begun = [known for known in missing if _begins(_plain(known), plain)]
    near = difflib.get_close_matches(plain, [_plain(known) for known in missing], n=1, cutoff=0.8)
    return next(iter(same + begun + [known for known in missing if _plain(known) in near]), "")


def _plain(name: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", name))).casefold()


def _begins(one: str, other: str) -> bool:
    """True if one of the names is the beginning of the other: "helpful", "helpfulness"."""
    return min(len(one), len(other)) >= 4 and (one.startswith(other) or other.startswith(one))


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
    if len(messages) > MAX_MESSAGES:
        return too_many_messages(len(messages)).at(line)
    reason = problem(messages)
    if reason:
        return Rejected(line.file, line.number, reason, f"turns: {_outline(messages)}")
    rated = tuple(human) or ({},) * sum(m.role == "assistant" for m in messages)
    return Conversation(source, system, messages, human=rated, group=group or content_id("", "", messages[:1]))


def too_many_messages(number: int) -> BadRecord:
    return BadRecord(
        "too_many_messages", f"the conversation has {number:,} messages, at most {MAX_MESSAGES:,} are read; split it"
    )


def _outline(messages: tuple[Message, ...]) -> str:
    """`user, assistant (empty), ...`, and what to do about roles of others."""
    turns = [
        printable(m.role, SHOWN_ROLE) + ("" if m.content.strip() else " (empty)") for m in messages[: SHOWN_TURNS + 1]
    ]
    shown = ", ".join(turns[:SHOWN_TURNS] + (["..."] if len(turns) > SHOWN_TURNS else [])) or "none"
    others = any(m.role not in ROLES for m in messages)
    return shown + ("; roles are user and assistant, and system for a first message" if others else "")
