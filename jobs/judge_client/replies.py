"""The judge's replies so far, by request: JSON lines that a killed job finds again. Knows no prompt and no verdict.

Each process writes its own segments. Every reply rewrites a whole segment, because object stores cannot append. So none
is ever torn, and after a `kill -9` nothing is asked twice.
"""

import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from data.benchmarks import jsonl, records
from data.storage import Storage
from jobs.judge_client.endpoint import Failure, JudgeReply

SEGMENT_LINES = 64
"""Replies in a file: some 100 KB, rewritten with each reply."""


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
        """The line of a reply or of a failure."""
        return self._kept.get(key)

    def of(self, judge: str) -> list[Mapping[str, Any]]:
        """All lines of one judge."""
        return [line for line in self._kept.values() if line["judge"] == judge]

    def answered(self, key: str) -> bool:
        """Is the reply final? After a temporary failure the next run asks again."""
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
        fields = {k: v for k, v in asdict(outcome).items() if k not in ("text", "retries")}
        return about | {"reply": outcome.text, "error": "", "detail": "", "lasting": True, **fields}
    return about | {"reply": None, "error": outcome.reason, "detail": outcome.detail, "lasting": outcome.lasting}
