"""The settings of `jobs.judge`, each with its meaning and unit. Knows no YAML and no endpoint."""

from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import field_validator, model_validator

from data.bounds import Amount, Count, Positive, PositiveSeconds, Repeats, Resamples, Seed, Size, Temperature, Workers
from data.errors import UserError
from data.judge_prompts import Kind
from data.record import Record
from data.uris import KeptUri, Uri


class JudgeSettings(Record):
    """The judge: a model behind any OpenAI-compatible endpoint, and how it is asked."""

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
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError("base_url is http://host/v1 or https://host/v1")
        if parts.username or parts.password or parts.query:
            raise UserError(
                "base_url holds a user, a password or a query, and it is written into the report; "
                "give the key by judge.key_variable or judge.key_file"
            )
        return url

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


class Prices(Record):
    """The prices of the judge."""

    prompt_dollars: Amount = 0
    """Dollars for a million prompt tokens."""
    reply_dollars: Amount = 0
    """Dollars for a million tokens of judgement."""
    characters_per_token: Positive = 4
    """For the estimate: English in the usual vocabularies."""
    reply_tokens: Count = 300
    """For the estimate: a judgement as the prompts ask for it, an explanation and the verdict."""
    max_cost: Amount | None = None
    """Dollars: above it nothing is asked, and a job that reaches it ends; replies are kept. null = no limit."""

    @model_validator(mode="after")
    def _known(self) -> "Prices":
        if self.max_cost is not None and not (self.prompt_dollars or self.reply_dollars):
            raise UserError("max_cost is set, but no price: set prompt_dollars and reply_dollars")
        return self

    def cost(self, prompt_tokens: float, reply_tokens: float) -> float:
        """In dollars."""
        return (prompt_tokens * self.prompt_dollars + reply_tokens * self.reply_dollars) / 1e6

    def tokens(self, text: str) -> float:
        """Estimated number of tokens in `text`."""
        return len(text) / self.characters_per_token


class Judging(Record):
    """The answers, the judge, and the output."""

    questions: Uri = ""
    """Question file (FastChat's question.jsonl; any URI). For stored `judgements` of FastChat it gives the
    categories."""
    answers: tuple[Uri, ...] = ()
    """Answer files of `jobs.answer` or FastChat, one a model: yours first, the reference model's last."""
    references: Uri = ""
    """Reference answers for math, reasoning and coding (FastChat's reference_answer/gpt-4.jsonl); empty = judge
    without."""
    prompts: Uri = ""
    """FastChat's judge_prompts.jsonl; empty = the shipped ones, to the same effect."""
    kinds: tuple[Kind, ...] = ("pair", "single")
    """pair: which of two answers is better, asked in both orders. single: each answer rated from 1 to 10."""
    pairs: Literal["all", "reference"] = "all"
    """Which models meet: all, or each the reference model only."""
    reference_model: str | None = None
    """The model that the others are compared with; null = the model of the last answer file."""
    limit: Count = 0
    """Only the first so many questions; 0 = all."""
    judgements: tuple[Uri, ...] = ()
    """Stored judgements (our judgements.jsonl, FastChat's model_judgment/*.jsonl) to score again, without any judge."""
    output: KeptUri = "runs/judged"
    """Folder (any URI) for report, judgements and replies. Several reports may share it, one after the other."""
    judge: JudgeSettings = JudgeSettings()
    """The judge."""
    prices: Prices = Prices()
    """Its prices."""
    resamples: Resamples = 1000
    """Resamples of the questions behind the intervals."""
    seed: Seed = 0
    """Seed of the resamples and of Elo's orders."""

    @model_validator(mode="after")
    def _what(self) -> "Judging":
        if self.judgements and (self.answers or self.references or self.prompts or self.limit):
            raise UserError(
                "judgements are stored ones, so answers, references, prompts and limit are not read: leave them out"
            )
        if not self.judgements and not (self.questions and self.answers):
            raise UserError("nothing to judge: set questions and answers, or judgements to score stored ones again")
        if not self.judgements and not self.judge.model:
            raise UserError("nobody judges: set judge.model, and judge.base_url unless OpenAI serves the model")
        if not self.kinds:
            raise UserError("kinds is empty: pair, single or both")
        return self

    @property
    def effective_kinds(self) -> tuple[Kind, ...]:
        """The kinds without pairs where there is one answer file only."""
        return tuple(kind for kind in dict.fromkeys(self.kinds) if kind == "single" or len(self.answers) > 1)
