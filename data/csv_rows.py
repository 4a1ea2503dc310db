"""Files of comma- or tab-separated values in, records out: the first line names the columns, every value is a string.

The dialect is RFC 4180's: a value in double quotes may hold separators and newlines. Knows no format.
"""

import csv
import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping

from data.conversation import Rejected
from data.printable import printable
from data.unpacked import MAX_LINE_BYTES, UNPACKERS, raw_lines

SEPARATORS: Mapping[str, str] = {".csv": ",", ".tsv": "\t"}
"""By the name's end, that of a packing program left out."""
Record = Mapping[str, str]


def separator_of(file: str) -> str | None:
    """The separator of the values in `file`; None if it is no such file by its name."""
    name, suffix = posixpath.splitext(file.split("::")[0] if "://" in file else file)
    if suffix.lower() in UNPACKERS:
        suffix = posixpath.splitext(name)[1]
    return SEPARATORS.get(suffix.lower())


def csv_rows(file: str) -> Iterator[tuple[int, Record] | Rejected]:
    """Every record with the number of its last line, one at a time.

    Rejected are "broken_csv" (quotes, or another number of values than of columns), "invalid_utf8", and what
    `raw_lines` rejects. A damaged head is a "broken_file", and so is the rest behind a quote that nothing closes.
    """
    lines = _Lines(file)
    limit = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        reader = csv.reader(lines, delimiter=separator_of(file) or ",", strict=True)
        columns = _head(file, reader, lines)
        if isinstance(columns, Rejected):
            yield from lines.taken()
            yield columns
            return
        while True:
            start = lines.number + 1
            try:
                values = next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                yield from lines.taken()
                if lines.number > start:
                    # An open quote swallowed lines that may be any number of records: no count could tell them.
                    yield Rejected(file, start, "broken_file", f"a quoted value that begins here does not end: {error}")
                    return
                yield Rejected(file, start, "broken_csv", f"{error}")
                continue
            yield from lines.taken()
            if values:  # a blank line has none
                yield _record(file, lines.number, columns, values)
        yield from lines.taken()
    finally:
        csv.field_size_limit(limit)


class _Lines:
    """The decoded lines of a file for `csv.reader`; what is rejected is kept aside, and left out."""

    def __init__(self, file: str):
        self._lines = raw_lines(file)
        self._rejected: list[Rejected] = []
        self._file = file
        self.number = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        for line in self._lines:
            if isinstance(line, Rejected):
                self.number = line.line
                self._rejected.append(line)
                continue
            self.number, raw = line
            try:
                return raw.decode("utf-8-sig" if self.number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                self._rejected.append(Rejected(self._file, self.number, "invalid_utf8", str(error)))
        raise StopIteration

    def taken(self) -> list[Rejected]:
        """What was rejected since the last call."""
        found, self._rejected = self._rejected, []
        return found


def _head(file: str, reader: Iterator[list[str]], lines: _Lines) -> list[str] | Rejected:
    try:
        columns = next((values for values in reader if values), [])
    except csv.Error as error:
        return Rejected(file, lines.number, "broken_file", f"its first line, which names the columns: {error}")
    twice = [name for name, number in Counter(columns).items() if number > 1]
    if twice:
        return Rejected(file, lines.number, "broken_file", f"column {printable(twice[0])!r} is named twice")
    return columns


def _record(file: str, number: int, columns: list[str], values: list[str]) -> tuple[int, Record] | Rejected:
    if len(values) == len(columns):
        return number, dict(zip(columns, values, strict=True))
    told = f"the record has {len(values)} values for {len(columns)} columns ({printable(', '.join(columns))})"
    return Rejected(file, number, "broken_csv", told)
