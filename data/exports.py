"""Rows as records of files that other tools read; what such a file cannot carry is counted. Knows no file and no Ray.

| format | values | lost |
|---|---|---|
| `messages` | floats, as they are | what is outside its scale is clipped: a predicted value may be, a rating may not |
| `nemo` | whole numbers, as a label line shows them | the digits behind the point, and what is outside its scale |

Both carry one value an attribute; what else a row has (`NOT_CARRIED`) stays behind. Our Parquet carries all of it.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from data.attributes import AttributeSchema, Values
from data.conversation import Conversation, problem
from data.formats import to_messages, to_nemo

RecordFormat = Literal["messages", "nemo"]
NOT_CARRIED = ("requested", "predictor", "truncated", "tokens")
"""Columns of a row that neither format has a place for, beside those of `human` and `predicted` that was not chosen."""


def left_out(row: Conversation, only_rated: bool) -> str:
    """Why the row is not written, as a short name to count by, or ""; `only_rated` leaves out rows without a value."""
    return problem(row.messages) or ("unrated" if only_rated and not any(row.human) else "")


def with_values(
    row: Conversation, values: Sequence[Values], schema: AttributeSchema, lost: Counter[str]
) -> Conversation:
    """The row with `values` as its only ones, within their scales; counts those that were clipped in `lost`."""
    kept = []
    for answer in values:
        known = {
            a.name: (answer[a.name], min(max(answer[a.name], a.low), a.high))
            for a in schema.attributes
            if _is_number(answer.get(a.name))
        }
        lost["values_clipped"] += sum(value != clipped for value, clipped in known.values())
        kept.append({name: float(clipped) for name, (_, clipped) in known.items()})
    return replace(row, human=tuple(kept), predicted=())


def record(row: Conversation, schema: AttributeSchema, format: RecordFormat, lost: Counter[str]) -> dict[str, Any]:
    """The row with its human values as a record; counts values that were rounded in `lost`."""
    if format == "messages":
        return to_messages(row, schema)
    lost["values_rounded"] += sum(
        value != schema[name].rounded(value)
        for answer in row.human
        for name, value in answer.items()
        if _is_number(value)
    )
    return to_nemo(row, schema)


def line(record: dict[str, Any]) -> bytes:
    """A line of JSONL. "\\n" is the only separator: JSON escapes control characters, and readers split at it alone."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def hub_features(schema: AttributeSchema, format: RecordFormat) -> list[dict[str, Any]]:
    """The columns of the records, as a dataset card declares them to Hugging Face `datasets`.

    Without, it takes the types from the first records, and fails on the first value if nobody rated those.
    """
    text = [{"name": name, "dtype": "string"} for name in ("id", "source", "group")]
    if format == "nemo":
        turn = [{"name": name, "dtype": "string"} for name in ("from", "value", "label")]
        return [
            *({"name": name, "dtype": "string"} for name in ("system", "mask", "type")),
            {"name": "conversations", "list": turn},
            *text,
        ]
    values = [{"name": name, "dtype": "float64"} for name in schema.names]
    message = [
        *({"name": name, "dtype": "string"} for name in ("role", "content")),
        {"name": "attributes", "struct": values},
    ]
    return [*text, {"name": "messages", "list": message}]


def _is_number(value: float | None) -> bool:
    return value is not None and value == value  # NaN is not: it means "not rated"
