"""One prompt to the judge, one reply or failure back: retries, pauses, and the key. Knows no verdict, no match and no file of replies.

The `openai` client does the HTTP; the repeating is here, so that a 429 holds all requests, any Retry-After is honoured, and every repetition is counted.
"""

import email.utils
import os
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from data.errors import UserError
from data.storage import Storage
from jobs.judging.settings import JudgeSettings

AGAIN = (408, 409, 429)
"""Statuses below 500 that may pass; all from 500 on may."""
HOPELESS = {401: "does not know the key", 402: "wants to be paid first", 404: "knows no such model or path"}
"""Statuses that every further request would get, too."""
OUT_OF_MONEY = "insufficient_quota"
"""OpenAI's code of a 429 that no pause mends."""
LONGEST_DETAIL = 300
"""Of what an endpoint says of its error, in characters."""


class JudgeUnusable(UserError):
    """No request will be answered; the sentence says why and what mends it."""


@dataclass(frozen=True)
class JudgeReply:
    """What the judge said, and what it counted; None where it counted nothing."""

    text: str
    finish: str
    prompt_tokens: int | None
    reply_tokens: int | None
    retries: int


@dataclass(frozen=True)
class Failure:
    """There is no reply. `reason` is short, to count by; `lasting`: the same request would fail again."""

    reason: str
    detail: str
    lasting: bool
    retries: int


def key_of(settings: JudgeSettings) -> str | None:
    """The key from the file or the environment; None if none is sent. Raises JudgeUnusable if it is not there."""
    if settings.key_file:
        key = Storage(settings.key_file).read_text().strip()
        if not key:
            raise JudgeUnusable(f"{settings.key_file} is empty; write the judge's key into it (judge.key_file)")
        return key
    if settings.key_variable is None:
        return None
    key = os.environ.get(settings.key_variable, "").strip()
    if not key:
        raise JudgeUnusable(
            f"the environment variable {settings.key_variable} is not set; put the judge's key there, name another one in judge.key_variable or a file in "
            "judge.key_file, or set judge.key_variable=null where the judge asks for no key"
        )
    return key


class JudgeEndpoint:
    """Any number of threads may `ask`, until one is told that it is no use or `stop` is called: then none sends anything more."""

    def __init__(self, settings: JudgeSettings):
        self._settings, self._key = settings, key_of(settings)
        self._client = openai.OpenAI(
            base_url=settings.base_url, api_key=self._key or "none", max_retries=0, timeout=settings.timeout_s
        )
        self._stopped = threading.Event()
        self._why_stopped = ""
        self._lock = threading.Lock()
        self._hold_until = 0.0
        self._given_up_in_a_row = 0

    def ask(self, system: str, prompt: str) -> JudgeReply | Failure:
        """Raises JudgeUnusable if no request will be answered."""
        retries = 0
        while True:
            self._pause(self._held_s())
            if self._stopped.is_set():
                raise JudgeUnusable(self._why_stopped)
            failure, told_s = self._once(system, prompt, retries)
            if isinstance(failure, JudgeReply) or failure.lasting or self._stopped.is_set():
                self._count(failure)
                return failure
            wait_s = self._backoff_s(retries) if told_s is None else told_s
            if told_s is not None and told_s > self._settings.max_wait_s:
                failure = Failure(
                    failure.reason, f"{failure.detail} (it says: come back in {told_s:.0f} s)", False, retries
                )
            if retries == self._settings.max_retries or wait_s > self._settings.max_wait_s:
                self._count(failure)
                return failure
            if told_s is not None:
                self._hold(told_s)
            self._pause(wait_s)
            retries += 1

    def stop(self, why: str) -> None:
        """No more pauses, no more requests; the first reason stays."""
        with self._lock:
            self._why_stopped = self._why_stopped or why
        self._stopped.set()

    def _unusable(self, sentence: str) -> JudgeUnusable:
        self.stop(sentence)
        return JudgeUnusable(self._why_stopped)

    def close(self) -> None:
        self._client.close()

    def _once(self, system: str, prompt: str, retries: int) -> tuple[JudgeReply | Failure, float | None]:
        """One request; with a failure, the seconds after which the endpoint said to come back."""
        try:
            # All fields go in as they are: the client's own names and types are those of OpenAI's newest models.
            found = self._client.chat.completions.create(
                model=self._settings.model,
                messages=[{"role": "system", "content": system}, {"role": "user", "content": prompt}]
                if system
                else [{"role": "user", "content": prompt}],
                extra_body=self._settings.options,
            )
        except openai.APIStatusError as error:
            return self._of_status(error, retries), retry_after_s(error.response.headers)
        except openai.APITimeoutError:
            return Failure("timeout", f"no reply in {self._settings.timeout_s:g} s", False, retries), None
        except openai.APIConnectionError as error:
            return Failure("connection", self._clean(error.__cause__ or error), False, retries), None
        except (openai.APIError, ValueError) as error:
            return Failure("garbled body", self._clean(error), False, retries), None
        return self._read(found, retries), None

    def _read(self, found: Any, retries: int) -> JudgeReply | Failure:
        # The client passes on whatever JSON or text there was, and takes any JSON for what it should be.
        choice = found.choices[0] if isinstance(found, ChatCompletion) and found.choices else None
        message = getattr(choice, "message", None)
        if message is None:
            return Failure("garbled body", f"no chat completion: {self._clean(found)}", False, retries)
        prompt_tokens, reply_tokens = (
            (found.usage.prompt_tokens, found.usage.completion_tokens) if found.usage else (None, None)
        )
        return JudgeReply(
            message.content or "", getattr(choice, "finish_reason", None) or "", prompt_tokens, reply_tokens, retries
        )

    def _of_status(self, error: openai.APIStatusError, retries: int) -> Failure:
        status, detail = error.status_code, self._clean(error)
        if status in HOPELESS or error.code == OUT_OF_MONEY:
            why = HOPELESS.get(status, "has no quota left for this key")
            raise self._unusable(
                f"the judge at {self._settings.base_url} {why} ({detail}); check judge.base_url, judge.model and the key; what was judged is kept"
            ) from None
        passing = status in AGAIN or status >= 500
        # A 403 is a filter's for one prompt with some, the key's with others: it counts as an error, and is asked again by the next run.
        return Failure(
            f"{status} {error.code}" if error.code else str(status), detail, not passing and status != 403, retries
        )

    def _count(self, outcome: JudgeReply | Failure) -> None:
        """An endpoint that is down is not asked a thousand times."""
        with self._lock:
            self._given_up_in_a_row = (
                self._given_up_in_a_row + 1 if isinstance(outcome, Failure) and not outcome.lasting else 0
            )
            down = self._given_up_in_a_row >= self._settings.give_up_after
        if down and isinstance(outcome, Failure) and not self._stopped.is_set():
            raise self._unusable(
                f"the judge at {self._settings.base_url} failed {self._settings.give_up_after} requests in a row, repetitions included, the last with "
                f"{outcome.reason} ({outcome.detail}); what was judged is kept: the same command goes on from there (judge.give_up_after, judge.max_retries)"
            )

    def _backoff_s(self, retries: int) -> float:
        return float(min(self._settings.max_wait_s, self._settings.backoff_s * 2**retries) * random.uniform(0.5, 1))

    def _hold(self, seconds: float) -> None:
        """Nobody asks before the endpoint said so."""
        with self._lock:
            self._hold_until = max(self._hold_until, time.monotonic() + seconds)

    def _held_s(self) -> float:
        with self._lock:
            return self._hold_until - time.monotonic()

    def _pause(self, seconds: float) -> None:
        if seconds > 0:
            self._stopped.wait(seconds)

    def _clean(self, error: object) -> str:
        """Short, on one line, and without the key, should an endpoint repeat it."""
        text = " ".join(str(error).split())
        return (text.replace(self._key, "***") if self._key else text)[:LONGEST_DETAIL]


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds until one may come back, from `retry-after-ms` or `Retry-After` (seconds or a date); None if nothing is said that can be read."""
    for name, divisor in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) / divisor
        except ValueError:
            continue
        if 0 <= seconds < float("inf"):
            return seconds
    try:
        return max(0.0, email.utils.parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
