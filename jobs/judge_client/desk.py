"""One place from which a run asks its judge: every request once, within a budget, at one pace for all.

Replies outlive it (`replies`). Knows no row, no attribute and no Ray: annotation makes an actor of it.
"""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from data.judge_rating import JudgeOutcome, JudgeRequest
from data.judge_settings import JudgeSettings
from data.storage import Storage
from jobs.judge_client.budget import Budget, Usage
from jobs.judge_client.endpoint import Failure, JudgeEndpoint, JudgeReply, JudgeUnusable
from jobs.judge_client.replies import Replies

UNUSABLE = "unusable"
"""Reason why a request was not sent: the endpoint was given up."""
CHARACTERS_PER_TOKEN = 4
"""English in the usual vocabularies: for requests on their way, and for endpoints that count no tokens."""
LONGEST_REPLY = 2048
"""Tokens that a reply may have where judge.max_tokens sets no limit."""
UNLIMITED = Budget()


class JudgeDesk:
    """Any number of threads may ask for `replies`."""

    def __init__(self, settings: JudgeSettings, key: str | None, folder: str, budget: Budget = UNLIMITED):
        """`key`: the judge's, looked up where it is known; `folder`: of all replies of the run."""
        self._settings, self._budget = settings, budget
        self._replies = Replies(Storage(folder))
        self._endpoint = JudgeEndpoint(settings, key)
        self._pool = ThreadPoolExecutor(settings.concurrency)
        self._flying: dict[str, Future[JudgeOutcome]] = {}
        self._changed = threading.Condition()
        self._reserved = Usage()
        self._told = False
        self._spent = spent(self._replies, settings.model)

    def replies(self, requests: Sequence[JudgeRequest]) -> list[JudgeOutcome]:
        """One outcome for each request, in order. What was ever answered is not asked again."""
        keyed = [(request.key(self._settings.model, self._settings.options), request) for request in requests]
        with self._changed:
            # Equal requests, of this batch or of another worker's, share one.
            for key, request in keyed:
                if key not in self._flying:
                    self._flying[key] = self._pool.submit(self._one, key, request)
            futures = [self._flying[key] for key, _ in keyed]
        try:
            return [future.result() for future in futures]
        finally:
            with self._changed:
                for key, _ in keyed:
                    self._flying.pop(key, None)

    def close(self) -> None:
        """What is on its way is waited for and kept."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._endpoint.close()

    def _one(self, key: str, request: JudgeRequest) -> JudgeOutcome:
        if self._replies.answered(key):
            return _outcome(self._replies.get(key) or {})
        need = self._most(request)
        if exceeded := self._reserve(need):
            return JudgeOutcome(None, exceeded, again=True)
        used = Usage()
        try:
            outcome = self._endpoint.ask(request.system, request.prompt, {**request.options, **self._settings.options})
            self._replies.keep(key, self._settings.model, _counted(outcome, request))
            used = usage_of(self._replies.get(key) or {})
        except JudgeUnusable as unusable:
            self._tell_once(str(unusable))
            return JudgeOutcome(None, UNUSABLE, again=True)
        finally:
            self._release(need, used)
        return _outcome(self._replies.get(key) or {})

    def _most(self, request: JudgeRequest) -> Usage:
        characters = len(request.system) + len(request.prompt)
        return Usage(characters / CHARACTERS_PER_TOKEN, self._settings.max_tokens or LONGEST_REPLY)

    def _reserve(self, need: Usage) -> str:
        """Wait until the requests on their way leave room for this one; the limit if there will never be any."""
        with self._changed:
            self._changed.wait_for(lambda: not self._exceeded(need) or self._reserved == Usage())
            exceeded = self._exceeded(need)
            if not exceeded:
                self._reserved += need
            return exceeded

    def _exceeded(self, need: Usage) -> str:
        return self._budget.exceeded_by(self._spent + self._reserved + need)

    def _release(self, need: Usage, used: Usage) -> None:
        with self._changed:
            self._spent += used
            self._reserved -= need
            self._changed.notify_all()

    def _tell_once(self, sentence: str) -> None:
        with self._changed:
            told, self._told = self._told, True
        if not told:
            print(f"judge {self._settings.model}: {sentence}", flush=True)


def _counted(outcome: JudgeReply | Failure, request: JudgeRequest) -> JudgeReply | Failure:
    """With tokens guessed from characters where the endpoint counts none."""
    if isinstance(outcome, Failure) or (outcome.prompt_tokens is not None and outcome.reply_tokens is not None):
        return outcome
    sent = (len(request.system) + len(request.prompt)) // CHARACTERS_PER_TOKEN
    return JudgeReply(outcome.text, outcome.finish, sent, len(outcome.text) // CHARACTERS_PER_TOKEN, outcome.retries)


def spent(replies: Replies, model: str) -> Usage:
    """Of all replies of a judge that are kept, earlier runs' included."""
    return sum((usage_of(line) for line in replies.of(model)), Usage())


def usage_of(line: Mapping[str, Any]) -> Usage:
    """Of a kept reply."""
    return Usage(float(line.get("prompt_tokens") or 0), float(line.get("reply_tokens") or 0))


def _outcome(line: Mapping[str, Any]) -> JudgeOutcome:
    return JudgeOutcome(line["reply"], line["error"], again=not line["lasting"])
