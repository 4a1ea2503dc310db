"""Ids of answers: when an answer was begun stands in its id, so that nothing else must be read to know its age.

As in UUID version 7, 12 hex digits of milliseconds come first; 20 random ones keep ids apart and unguessable.
"""

import re
import secrets
import time
from datetime import UTC, datetime

CHAT, RESPONSE = "chatcmpl-", "resp_"
"""What the ids of the two routes for conversations begin with."""
ID = re.compile(rf"({CHAT}|{RESPONSE})(?P<ms>0[0-9a-f]{{11}})[0-9a-f]{{20}}")
"""The first digit is 0 until the year 2527: an id that a caller made up is no time that a calendar lacks."""


def new_id(prefix: str, now_s: float | None = None) -> str:
    """The id of an answer that is begun now."""
    return f"{prefix}{int(1000 * (time.time() if now_s is None else now_s)):012x}{secrets.token_hex(10)}"


def is_id(text: str) -> bool:
    return ID.fullmatch(text) is not None


def begun_s(id: str) -> float:
    """When the answer of an id was begun, in seconds since 1970."""
    found = ID.fullmatch(id)
    assert found is not None, f"{id!r} is no id of an answer"
    return int(found["ms"], 16) / 1000


def day_of(moment_s: float) -> str:
    """The day of a moment, in UTC: "2026-11-30"."""
    return datetime.fromtimestamp(moment_s, UTC).date().isoformat()
