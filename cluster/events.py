"""What a run says as it goes, one line per event: text for people, or one JSON object a line for whatever collects logs.

Knows no job: who says something names the event and gives the figures. What an actor prints reaches the driver's log through Ray, and is text.
"""

import json
import math
import sys
import time
from typing import Any, Literal

LogFormat = Literal["text", "json"]
Level = Literal["info", "warning", "error"]
_form: LogFormat = "text"


def write_events_as(form: LogFormat) -> None:
    """The form of all lines that this process says from now on."""
    global _form
    _form = form


def log_event(text: str, event: str, level: Level = "info", **metrics: Any) -> None:
    """One event: a sentence for people, its name (`noun.verb`), and what else is known of it. Warnings and errors go to stderr."""
    line = f"warning: {text}" if level == "warning" else text
    if _form == "json":
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        said = {"time": at, "level": level, "event": event, "text": text}
        line = json.dumps(finite(said | metrics), ensure_ascii=False, default=str)
    print(line, file=sys.stdout if level == "info" else sys.stderr, flush=True)


def finite(value: Any) -> Any:
    """NaN and infinities are no JSON: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value
