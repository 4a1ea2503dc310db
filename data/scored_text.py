"""Format `scored_text`: texts with a column for each of some attributes, in JSONL, CSV or Parquet.

For the many small data sets that rate one thing: jokes for humor, comments for toxicity. The source's `columns` say
where text and ratings stand and on which scale. An attribute without a column, or without a value, is not rated.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator

from data.attributes import AttributeProblem, AttributeSchema, Values
from data.bounds import Score
from data.conversation import Message, content_id
from data.csv_rows import SEPARATORS
from data.errors import UserError
from data.lines import BadRecord, Line, Row, column, optional_text, ratings, row, text
from data.printable import printable
from data.record import Record
from data.source_files import SUFFIXES

SCORED_TEXT = "scored_text"
TEXT_SUFFIXES = (*SUFFIXES, *SEPARATORS, *(f"{suffix}.gz" for suffix in SEPARATORS))
"""What counts as data in a folder of this format."""


class ScoreColumn(Record):
    """A column that holds one attribute's ratings."""

    column: str
    """Its name in the file."""
    scale: tuple[Score, Score] | None = None
    """The source's values for the lowest and the highest value of the attribute, such as [1, 5]; [5, 1] turns them
    around. None = the attribute's own scale."""

    @model_validator(mode="after")
    def _range(self) -> "ScoreColumn":
        if self.scale and self.scale[0] == self.scale[1]:
            raise UserError(f"column {printable(self.column)!r}: scale is {list(self.scale)}, its ends must differ")
        return self


class ScoredColumns(Record):
    """Where a source of format scored_text has its texts and ratings."""

    text: str = ""
    """The rated text alone: the answer to `request`. Empty = `prompt` and `response` have it."""
    request: str = "Write a short text."
    """With `text`: what the text is taken to answer."""
    prompt: str = ""
    """What the rated text answers."""
    response: str = ""
    """The rated text."""
    group: str = ""
    """Rows of one group stay on one side of every split; empty = those with the same prompt (or the same text)."""
    attributes: dict[str, ScoreColumn] = Field(min_length=1)
    """Attribute -> its column."""

    @model_validator(mode="after")
    def _texts(self) -> "ScoredColumns":
        if bool(self.text) == bool(self.prompt or self.response) or bool(self.prompt) != bool(self.response):
            raise UserError("columns name the texts: either `text`, or `prompt` and `response`")
        if not self.request.strip():
            raise UserError("columns.request is empty; say what the texts answer, such as 'Tell me a joke.'")
        return self

    def require_in(self, schema: AttributeSchema) -> None:
        """Raises UserError for an attribute that the run's schema lacks."""
        for name in self.attributes:
            try:
                schema[name]
            except AttributeProblem as problem:
                raise UserError(f"columns.attributes: {problem}") from None


def scored_text(columns: ScoredColumns) -> Callable[[Line, AttributeSchema, str], Iterator[Row]]:
    """The parser of one record; raises BadRecord as every format's does."""

    def parse(line: Line, schema: AttributeSchema, source: str) -> Iterator[Row]:
        if columns.text:
            request, answer = columns.request, text(line.record, columns.text)
        else:
            request, answer = text(line.record, columns.prompt), text(line.record, columns.response)
        group = optional_text(line.record, columns.group) if columns.group else ""
        turns = (Message("user", request), Message("assistant", answer))
        if columns.text and not group:
            group = content_id("", "", turns[1:])  # all share their request, which tells none from another
        yield row(line, source, turns, [_rated(columns, line.record, schema)], group=group)

    return parse


def _rated(columns: ScoredColumns, record: Mapping[str, Any], schema: AttributeSchema) -> Values:
    found: dict[str, float] = {}
    for name, score in columns.attributes.items():
        value = _number(column(record, score.column), score.column)
        low, high = score.scale or (schema[name].low, schema[name].high)
        if value is not None and low > high:
            low, high, value = high, low, low + high - value
        found |= ratings({name: value}, schema, (low, high))
    return found


def _number(value: Any, name: str) -> Any:
    """A value of a column: CSV has strings only, where "" is no rating."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise BadRecord("wrong_type", f"rating {printable(name)!r} is {printable(value, 40)!r}, it must be a number")
    return number
