"""One prompt to the judge, one reply or failure back: retries and pauses. Knows no verdict and no match.

The `openai` client does the HTTP; it is imported with the first endpoint. Retries are here: a 429 holds all requests,
any Retry-After is honored, and every retry is counted.
"""

import email.utils
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cluster.masking import masked
from data.errors import UserError
from data.judge_settings import JudgeSettings

if TYPE_CHECKING:
    import openai
    from openai.types.chat import ChatCompletionMessageParam

AGAIN = (408, 409, 429)
"""Temporary statuses below 500; all from 500 on are temporary, too."""
HOPELESS = {401: "does not know the key", 402: "requires a payment first", 404: "knows no such model or path"}
"""Statuses that every further request would get as well."""
OUT_OF_MONEY = "insufficient_quota"
"""OpenAI's code of a 429 that no pause fixes."""
LONGEST_DETAIL = 300
"""Characters kept of an endpoint's error message."""


class JudgeUnusable(UserError):
    """No request will be answered; the message has the reason and the fix."""


@dataclass(frozen=True)
class JudgeReply:
    """The judge's text and token counts; None where the endpoint sends no counts."""

    text: str
    finish: str
    prompt_tokens: int | None
    reply_tokens: int | None
    retries: int


@dataclass(frozen=True)
class Failure:
    """No reply came. `reason` is short, to count by; `lasting`: the same request would fail again."""

    reason: str
    detail: str
    lasting: bool
    retries: int


class JudgeEndpoint:
    """Any number of threads may `ask`. After a fatal error or `stop` none of them sends anything more."""

    def __init__(self, settings: JudgeSettings, key: str | None):
        """`key`: as `api_key` finds it."""
        import openai

        self._settings, self._key = settings, key
        self._client = openai.OpenAI(
            base_url=settings.base_url, api_key=self._key or "none", max_retries=0, timeout=settings.timeout_s
        )
        self._stopped = threading.Event()
        self._why_stopped = ""
        self._lock = threading.Lock()
        self._hold_until = 0.0
        self._given_up_in_a_row = 0

    def ask(self, system: str, prompt: str, options: Mapping[str, Any] | None = None) -> JudgeReply | Failure:
        """`options`: further fields of the request; None = those of the settings.

        Raises JudgeUnusable if no request will be answered.
        """
        options, retries = self._settings.options if options is None else options, 0
        while True:
            self._pause(self._held_s())
            if self._stopped.is_set():
                raise JudgeUnusable(self._why_stopped)
            outcome, after_s = self._once(system, prompt, options, retries)
            if isinstance(outcome, JudgeReply) or outcome.lasting or self._stopped.is_set():
                self._count(outcome)
                return outcome
            wait_s = self._backoff_s(retries) if after_s is None else after_s
            if after_s is not None and after_s > self._settings.max_wait_s:
                detail = f"{outcome.detail} (it asks to come back in {after_s:.0f} s)"
                outcome = Failure(outcome.reason, detail, False, retries)
            if retries == self._settings.max_retries or wait_s > self._settings.max_wait_s:
                self._count(outcome)
                return outcome
            if after_s is not None:
                self._hold(after_s)
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

    def _once(
        self, system: str, prompt: str, options: Mapping[str, Any], retries: int
    ) -> tuple[JudgeReply | Failure, float | None]:
        """One request; with a failure, the seconds of the endpoint's Retry-After."""
        import openai

        messages: list[ChatCompletionMessageParam] = [{"role": "system", "content": system}] if system else []
        messages.append({"role": "user", "content": prompt})
        try:
            # All options go into extra_body unchecked: the client's own names and types are those of OpenAI's newest
            # models.
            found = self._client.chat.completions.create(
                model=self._settings.model, messages=messages, extra_body=options
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
        from openai.types.chat import ChatCompletion

        # The client passes on any JSON or text unchecked.
        choice = found.choices[0] if isinstance(found, ChatCompletion) and found.choices else None
        message = getattr(choice, "message", None)
        if message is None:
            return Failure("garbled body", f"no chat completion: {self._clean(found)}", False, retries)
        usage = found.usage
        sent, received = (usage.prompt_tokens, usage.completion_tokens) if usage else (None, None)
        finish = getattr(choice, "finish_reason", None) or ""
        return JudgeReply(message.content or "", finish, sent, received, retries)

    def _of_status(self, error: "openai.APIStatusError", retries: int) -> Failure:
        status, detail = error.status_code, self._clean(error)
        if status in HOPELESS or error.code == OUT_OF_MONEY:
            why = HOPELESS.get(status, "has no quota left for this key")
            raise self._unusable(
                f"the judge at {self._settings.base_url} {why} ({detail}); "
                "check judge.base_url, judge.model and the key; all replies are kept"
            ) from None
        passing = status in AGAIN or status >= 500
        reason = f"{status} {error.code}" if error.code else str(status)
        # A 403 concerns one prompt (a filter) or the key: it counts as an error, and the next run asks again.
        return Failure(reason, detail, not passing and status != 403, retries)

    def _count(self, outcome: JudgeReply | Failure) -> None:
        """Stop the job when the endpoint is down."""
        with self._lock:
            given_up = isinstance(outcome, Failure) and not outcome.lasting
            self._given_up_in_a_row = self._given_up_in_a_row + 1 if given_up else 0
            down = self._given_up_in_a_row >= self._settings.give_up_after
        if down and isinstance(outcome, Failure) and not self._stopped.is_set():
            raise self._unusable(
                f"the judge at {self._settings.base_url} failed {self._settings.give_up_after} requests in a row, "
                f"retries included, the last with {outcome.reason} ({outcome.detail}); all replies are kept: the same "
                "command continues from there (judge.give_up_after, judge.max_retries)"
            )

    def _backoff_s(self, retries: int) -> float:
        return float(min(self._settings.max_wait_s, self._settings.backoff_s * 2**retries) * random.uniform(0.5, 1))

    def _hold(self, seconds: float) -> None:
        """No thread asks before that."""
        with self._lock:
            self._hold_until = max(self._hold_until, time.monotonic() + seconds)

    def _held_s(self) -> float:
        with self._lock:
            return self._hold_until - time.monotonic()

    def _pause(self, seconds: float) -> None:
        if seconds > 0:
            self._stopped.wait(seconds)

    def _clean(self, error: object) -> str:
        """Short, on one line, without the key and without credentials in URIs, should an endpoint repeat them."""
        text = masked(" ".join(str(error).split()))
        return (text.replace(self._key, "***") if self._key else text)[:LONGEST_DETAIL]


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after-ms` or `Retry-After` (seconds or a date); None if there is no readable value."""
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
