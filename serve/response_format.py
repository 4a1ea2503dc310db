"""OpenAI's `response_format`: which grammar the answer follows. Knows no request and no engine."""

import json
from collections.abc import Mapping
from typing import Any

from actors.generation.protocol import Grammar
from serve.protocol import ProtocolError

FIELD = "response_format"
ALLOWED = '{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {"schema": {...}}}'


def grammar_of(wanted: Mapping[str, Any] | None) -> Grammar | None:
    """None = any text. Raises ProtocolError for what is no format; a schema is compiled by the engine.

    >>> grammar_of({"type": "json_object"})
    Grammar(kind='json_object', text='')
    """
    if wanted is None or wanted.get("type") == "text":
        return None
    if wanted.get("type") == "json_object":
        return Grammar("json_object")
    if wanted.get("type") != "json_schema":
        raise ProtocolError(f"{FIELD}.type is not one that is known; allowed: {ALLOWED}", f"{FIELD}.type")
    named = wanted.get("json_schema")
    schema = named.get("schema") if isinstance(named, Mapping) else None
    if not isinstance(schema, Mapping):
        where = f"{FIELD}.json_schema.schema"
        raise ProtocolError(f"{where} is no object: send a JSON schema there; allowed: {ALLOWED}", where)
    return Grammar("json_schema", json.dumps(schema))
