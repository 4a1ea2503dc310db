"""The log of a run, one line per event: text for people, or one JSON object a line for log collectors.

Knows no job: the caller names the event and gives the metrics. An actor's prints reach the driver's log through Ray.
"""

import json
import math
import sys
import time
from collections.abc import Mapping
from typing import Any, Literal

LogFormat = Literal["text", "json"]
Level = Literal["info", "warning", "error"]
_form: LogFormat = "text"


def write_events_as(form: LogFormat) -> None:
    """The form of all lines that this process logs from now on."""
    global _form
    _form = form


def log_event(text: str, event: str, level: Level = "info", **metrics: Any) -> None:
    """One event: a sentence for people, its name (`noun.verb`), and metrics. Warnings and errors go to stderr.

    What a terminal would obey is escaped, but for line ends and tabs: who puts text of strangers into `text` escapes
    theirs.
    """
    line = f"warning: {text}" if level == "warning" else text
    if _form == "json":
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        fields = {"time": at, "level": level, "event": event, "text": text}
        line = json_line(fields | metrics)
    else:
        line = "".join(c if c.isprintable() or c in "\n\t" else _escaped(c) for c in line)
    print(line, file=sys.stdout if level == "info" else sys.stderr, flush=True)


def json_line(value: Mapping[str, Any]) -> str:
    """An object on one line that any terminal and any JSON reader takes: control characters are escaped."""
    line = json.dumps(finite(dict(value)), ensure_ascii=False, default=str)
    return line if line.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def finite(value: Any) -> Any:
    """NaN and infinities are no JSON: null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, list | tuple) else value
