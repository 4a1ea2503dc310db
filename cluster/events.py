"""The log of a run, one line per event: text for people, or one JSON object a line for log collectors.

Knows no job: the caller names the event and gives the metrics. An actor's prints reach the driver's log through Ray.
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
    """The form of all lines that this process logs from now on."""
    global _form
    _form = form


def log_event(text: str, event: str, level: Level = "info", **metrics: Any) -> None:
    """One event: a sentence for people, its name (`noun.verb`), and metrics. Warnings and errors go to stderr."""
    line = f"warning: {text}" if level == "warning" else text
    if _form == "json":
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        fields = {"time": at, "level": level, "event": event, "text": text}
        line = json.dumps(finite(fields | metrics), ensure_ascii=False, default=str)
    print(line, file=sys.stdout if level == "info" else sys.stderr, flush=True)


def finite(value: Any) -> Any:
    """NaN and infinities are no JSON: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value
