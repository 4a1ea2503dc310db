"""What a judge has said so far, by what it was asked: JSON lines that a killed job finds again. Knows no prompt and no verdict.

Each process writes segments of its own. A segment is written anew, whole, with every reply, because object stores cannot append: none is ever torn, and
what was answered before a `kill -9` is not asked again.
"""

import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from data.benchmarks import jsonl, records
from data.storage import Storage
from jobs.judging.endpoint import Failure, JudgeReply

SEGMENT_LINES = 64
"""Replies in a file: some 100 KB, written again with each of them."""


class Replies:
    """The replies in `folder`; threads may `keep` at the same time."""

    def __init__(self, folder: Storage):
        self._folder = folder
        self._lock = threading.Lock()
        self._segment: list[dict[str, Any]] = []
        self._name = ""
        self._kept: dict[str, Mapping[str, Any]] = {}
        for name in sorted(folder.names(".jsonl")) if folder.exists() else []:
            for line in records((folder / name).uri):
                self._remember(line.record)

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str) -> Mapping[str, Any] | None:
        """The line of a reply, or of what failed."""
        return self._kept.get(key)

    def answered(self, key: str) -> bool:
        """Need it not be asked again? A failure that may pass is asked again by the next run."""
        line = self._kept.get(key)
        return line is not None and (line["error"] == "" or bool(line["lasting"]))

    def keep(self, key: str, judge: str, outcome: JudgeReply | Failure) -> None:
        with self._lock:
            line = _line(key, judge, outcome)
            self._remember(line)
            if not self._segment or len(self._segment) == SEGMENT_LINES:
                self._segment, self._name = [], f"{time.time_ns():020d}-{secrets.token_hex(3)}.jsonl"
            self._segment.append(line)
            (self._folder / self._name).write_bytes(jsonl(self._segment))

    def _remember(self, line: Mapping[str, Any]) -> None:
        old = self._kept.get(str(line["key"]))
        # A reply is never lost to a later failure.
        if old is None or old["error"] or not line["error"]:
            self._kept[str(line["key"])] = line


def _line(key: str, judge: str, outcome: JudgeReply | Failure) -> dict[str, Any]:
    about = {"key": key, "judge": judge, "tstamp": round(time.time(), 3), "retries": outcome.retries}
    if isinstance(outcome, JudgeReply):
        said = {k: v for k, v in asdict(outcome).items() if k not in ("text", "retries")}
        return about | {"reply": outcome.text, "error": "", "detail": "", "lasting": True, **said}
    return about | {"reply": None, "error": outcome.reason, "detail": outcome.detail, "lasting": outcome.lasting}
