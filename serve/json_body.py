"""A request's bytes in, a JSON object of bounded size and depth out. Knows none of its fields but `messages`.

The only place where JSON is untyped, beside `serve.parser`.
"""

import json
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from serve.chat_request import AttributeValues
from serve.protocol import ProtocolError

MAX_DEPTH = 16
SCHEMA_FIELDS, MAX_SCHEMA_DEPTH = ("response_format", "tools"), 64
"""A JSON schema takes two levels for each of its own."""
MAX_VALUES = 32_768
"""Of one body: thirty for each of a thousand messages. A walk over a megabyte of zeros takes half a second."""
MAX_MESSAGES = 1024
SHOWN_CHARS = 60
"""How much of a wrong value an error repeats: a megabyte of it helps nobody."""


def json_object(body: bytes, max_messages: int = MAX_MESSAGES) -> dict[str, Any]:
    """Raises ProtocolError for anything else, for half characters, and for more values or levels than a request has."""

    def refuse(constant: str) -> None:
        raise _no_json(f"the body holds {constant}, which is no JSON: send a finite number")

    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=refuse)
    except ProtocolError:
        raise
    except RecursionError:
        raise _no_json(f"the body is nested deeper than {MAX_DEPTH} levels, which no field of a request is") from None
    except UnicodeDecodeError as error:
        raise _no_json(f"the body is no UTF-8 (byte {error.start}): send JSON in UTF-8") from None
    except ValueError as error:
        raise _no_json(f"the body is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise _no_json(f"the body is {shown(value)}: send a JSON object with messages")
    messages = value.get("messages")
    if isinstance(messages, list) and len(messages) > max_messages:
        raise ProtocolError(f"messages has {len(messages)} entries; allowed: at most {max_messages}", "messages")
    _check_values(value)
    return value


def _no_json(message: str) -> ProtocolError:
    return ProtocolError(message, code="invalid_json")


def numbers(values: Mapping[str, Any]) -> AttributeValues:
    """`values` fit to be checked and quoted: an unusable number or an overlong name becomes a short text."""
    return {
        name if len(name) <= SHOWN_CHARS else name[:SHOWN_CHARS] + "…": value if _usable(value) else shown(value)
        for name, value in values.items()
    }


def _usable(value: object) -> bool:
    # 1e15 keeps an integer of a thousand digits, which no float can hold, from the schema's check.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _check_values(value: object) -> None:
    """Refuses half a surrogate pair, which no tokenizer can read, and what no field of ours has: depth or number."""
    rest: list[tuple[str, int, object]] = [("", 0, value)]
    number = 0
    while rest:
        path, depth, value = rest.pop()
        number += 1
        if number + len(rest) > MAX_VALUES:
            raise _no_json(f"the body has more than {MAX_VALUES} values: send fewer messages, or fewer parts of them")
        name = path.removeprefix(".")
        is_schema = name.startswith(SCHEMA_FIELDS)
        if depth > (MAX_SCHEMA_DEPTH if is_schema else MAX_DEPTH):
            deepest = f"{MAX_SCHEMA_DEPTH if is_schema else MAX_DEPTH} levels, which no field of a chat request is"
            raise _no_json(f"{shown(name)} is nested deeper than {deepest}")
        if isinstance(value, str) and re.search("[\ud800-\udfff]", value):
            raise ProtocolError(f"{name} holds half of a surrogate pair: send whole Unicode characters", name)
        if isinstance(value, dict):
            items = islice(value.items(), MAX_VALUES)
            rest += [(f"{path}.{key}", depth + 1, text) for key, item in items for text in (item, key)]
        elif isinstance(value, list):
            rest += [(f"{path}[{i}]", depth + 1, item) for i, item in enumerate(value[:MAX_VALUES])]


def shown(value: object) -> str:
    """The start of a wrong value, as JSON where it is JSON."""
    if isinstance(value, int) and abs(value) > 10**SHOWN_CHARS:
        return "a huge number"
    text = repr(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…"
