"""How a judge is asked: a model behind any OpenAI-compatible endpoint. Knows no prompt, no verdict and no HTTP."""

from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import field_validator, model_validator

from data.bounds import PositiveSeconds, Repeats, Size, Temperature, Workers
from data.errors import UserError
from data.record import Record
from data.uris import Uri


def checked_base_url(url: str, key_settings: str) -> str:
    """`url`; raises UserError unless it is that of an endpoint, without a secret: it is written into reports.

    `key_settings`: where the key is to be named instead.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError("base_url is http://host/v1 or https://host/v1")
    if parts.username or parts.password or parts.query:
        raise UserError(
            "base_url holds a user, a password or a query, and it is written into the report; "
            f"give the key by {key_settings}"
        )
    return url


class JudgeSettings(Record):
    """The judge: a model behind any OpenAI-compatible endpoint, and how it is asked."""

    # Where and how fast it is asked does not change what a model replies.
    PLACEMENT: ClassVar[frozenset[str]] = frozenset(
        {"base_url", "key_variable", "key_file", "concurrency", "timeout_s", "max_retries", "backoff_s", "max_wait_s"}
        | {"give_up_after"}
    )

    model: str = ""
    """The judge's model, as its endpoint calls it. With stored `judgements`: only this model's; empty = the only
    one."""
    base_url: str = "https://api.openai.com/v1"
    """The endpoint, with its version."""
    key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable with the key; null = no key needed. The key is never a setting: the report lists all
    settings."""
    key_file: Uri | None = None
    """File (any URI) with the key, instead of a variable."""
    temperature: Temperature | None = 0
    """0 as in FastChat; null = not sent, for models that take none."""
    max_tokens: Size | None = 2048
    """Longest judgement, as in FastChat; null = not sent, for models with another name
    (extra.max_completion_tokens=2048)."""
    extra: dict[str, Any] = {}
    """Further fields of the request's body, as they are."""
    concurrency: Workers = 8
    """Requests at the same time."""
    timeout_s: PositiveSeconds = 120
    """Longest wait for one reply."""
    max_retries: Repeats = 8
    """Retries of a request after 408, 409, 429, 5xx, a time-out, a broken connection or a garbled body."""
    backoff_s: PositiveSeconds = 0.5
    """Pause before the first retry; it doubles each time, with jitter, unless the endpoint sends Retry-After."""
    max_wait_s: PositiveSeconds = 120
    """Longest pause; a longer Retry-After ends the request."""
    give_up_after: Size = 10
    """After so many failed requests in a row the endpoint counts as down and the job ends; the same command
    continues."""

    @field_validator("base_url")
    @classmethod
    def _plain(cls, url: str) -> str:
        return checked_base_url(url, "judge.key_variable or judge.key_file")

    @model_validator(mode="after")
    def _no_key(self) -> "JudgeSettings":
        for name in self.extra:
            if name in ("messages", "model", "stream", "n"):
                raise UserError(f"extra.{name} cannot be set: each prompt gets one whole reply")
        return self

    @property
    def options(self) -> dict[str, Any]:
        """What determines a reply besides the prompt and the model."""
        sent = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        return {name: value for name, value in sent.items() if value is not None} | self.extra
