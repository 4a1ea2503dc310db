"""The row: one conversation, its turns and, for each assistant turn, the ratings of people and of the predictor.

`human` and `predicted` stay side by side, raw; rounding and choosing between them happen when a prompt is rendered.
Knows no file format but Arrow (readers: `data.sources`), no prompt (`data.template`).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from data.attributes import AttributeSchema, Values
from data.errors import UserError

ROLES = ("user", "assistant")
VALUES = ("human", "predicted", "requested")
"""The columns that hold a mapping per assistant turn."""
SCHEMA_KEY = b"steerlm.schema"
"""Where a Parquet file carries its attribute schema, as JSON."""
RATERS_KEY = b"steerlm.raters"
"""Where annotated rows carry, as JSON, which raters give each attribute; absent = the predictor gave all."""
RATED_BY = "rated_by"
"""Column of annotated rows with several raters: who gave each predicted value of each answer; null = nobody did."""


@dataclass(frozen=True)
class Message:
    """One turn; `role` is "user" or "assistant" (the system text stands in the conversation)."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """One row. `human`, `predicted` and `requested` hold a mapping per assistant turn; a missing name is "not rated".

    Its text form (`repr`, so its name and its fields' too) decides which rows `data.prompts.drawn` draws.
    """

    source: str
    system: str
    messages: tuple[Message, ...]
    human: tuple[Values, ...] = ()
    predicted: tuple[Values, ...] = ()
    requested: tuple[Values, ...] = ()
    """The values requested when the turn was sampled (bootstrap rows only)."""
    predictor: str = ""
    """Fingerprint of the checkpoint that wrote `predicted`, except attributes that others rated (RATERS_KEY)."""
    truncated: bool = False
    """Too long for the predictor: it saw only the end, or (`tokens` 0) none of it."""
    tokens: int = 0
    """Tokens the predictor read; 0 before annotation."""
    group: str = ""
    """What must not be split between training and validation: a message tree, a prompt."""
    id: str = field(default="")

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", content_id(self.source, self.system, self.messages))
        if not self.group:
            object.__setattr__(self, "group", self.id)

    @property
    def num_answers(self) -> int:
        return sum(m.role == "assistant" for m in self.messages)

    def with_human(self, human: Iterable[Values]) -> "Conversation":
        return replace(self, human=tuple(human))


@dataclass(frozen=True)
class Rejected:
    """A record that could not become a row: kept and counted, never dropped silently."""

    file: str
    line: int
    reason: str
    """A short name to count by, e.g. "broken_json"."""
    detail: str = ""
    """The sentence for a person."""


def content_id(source: str, system: str, messages: Iterable[Message]) -> str:
    """32 hex digits from the row's content: the same row has the same id in every run and on every machine."""
    text = json.dumps([source, system, [[m.role, m.content] for m in messages]], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def problem(messages: tuple[Message, ...]) -> str:
    """Why `messages` are no conversation: "" if user and assistant alternate, none is empty and an answer is last."""
    if not messages:
        return "no_messages"
    for i, message in enumerate(messages):
        if message.role not in ROLES:
            return "unknown_role"
        if message.role != ROLES[i % 2]:
            return "roles_do_not_alternate"
        if not message.content.strip():
            return "empty_message"
    return "" if messages[-1].role == "assistant" else "no_answer"


def arrow_schema(schema: AttributeSchema) -> pa.Schema:
    """The Arrow schema of a row, with the attribute schema in its metadata."""
    values = pa.list_(pa.struct([(name, pa.float32()) for name in schema.names]))
    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    columns = [
        ("id", pa.string()),
        ("source", pa.string()),
        ("group", pa.string()),
        ("system", pa.string()),
        ("messages", pa.list_(message)),
        ("human", values),
        ("predicted", values),
        ("requested", values),
        ("predictor", pa.string()),
        ("truncated", pa.bool_()),
        ("tokens", pa.int32()),
    ]
    return pa.schema(columns, metadata={SCHEMA_KEY: schema.model_dump_json().encode()})


def annotated_schema(schema: AttributeSchema, raters: Mapping[str, str]) -> pa.Schema:
    """The same of annotated rows; `raters`: attribute -> who gives it, empty if the predictor is the only rater."""
    found = arrow_schema(schema)
    if not raters:
        return found
    by = pa.list_(pa.struct([(name, pa.string()) for name in schema.names]))
    metadata = {**(found.metadata or {}), RATERS_KEY: json.dumps(raters).encode()}
    return found.append(pa.field(RATED_BY, by)).with_metadata(metadata)


def schema_of(arrow: pa.Schema, where: str) -> AttributeSchema:
    """The attribute schema in a Parquet file's metadata; raises UserError naming `where` if there is none."""
    metadata = arrow.metadata or {}
    if SCHEMA_KEY not in metadata:
        raise UserError(
            f"{where} carries no attribute schema (metadata key {SCHEMA_KEY.decode()!r}): "
            "it was not written by `python -m jobs.prepare`"
        )
    try:
        return AttributeSchema.model_validate_json(metadata[SCHEMA_KEY])
    except ValueError:
        raise UserError(f"{where} carries an attribute schema that is none: write the file again") from None


def to_table(conversations: Iterable[Conversation], schema: AttributeSchema) -> pa.Table:
    """Rows as an Arrow table; every value list gets one entry per assistant turn, NaN where unrated."""
    return pa.Table.from_pylist([_to_row(c, schema) for c in conversations], schema=arrow_schema(schema))


def from_table(table: pa.Table | pa.RecordBatch) -> Iterator[Conversation]:
    """The inverse of `to_table`; NaN entries become missing ones."""
    return map(from_record, table.to_pylist())


def from_record(row: Mapping[str, Any]) -> Conversation:
    """The conversation of one row of such a table."""
    return Conversation(
        id=row["id"],
        source=row["source"],
        group=row["group"],
        system=row["system"],
        messages=tuple(Message(m["role"], m["content"]) for m in row["messages"]),
        predictor=row["predictor"],
        truncated=row["truncated"],
        tokens=row["tokens"],
        **{kind: tuple(_rated(v) for v in row[kind]) for kind in VALUES},
    )


def _to_row(conversation: Conversation, schema: AttributeSchema) -> dict[str, Any]:
    row = {
        name: getattr(conversation, name)
        for name in ("id", "source", "group", "system", "predictor", "truncated", "tokens")
    }
    row["messages"] = [{"role": m.role, "content": m.content} for m in conversation.messages]
    for kind in VALUES:
        values: tuple[Values, ...] = getattr(conversation, kind) or ({},) * conversation.num_answers
        assert len(values) == conversation.num_answers, (
            f"{kind}: {len(values)} entries for {conversation.num_answers} assistant turns"
        )
        row[kind] = [{name: float(v.get(name, math.nan)) for name in schema.names} for v in values]
    return row


def _rated(values: Mapping[str, float | None]) -> Values:
    return {name: v for name, v in values.items() if v is not None and not math.isnan(v)}
