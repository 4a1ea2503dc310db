"""The settings of `jobs.judge`, each with its meaning and unit. Knows no YAML and no endpoint."""

from typing import Literal

from pydantic import model_validator

from data.bounds import Amount, Count, Positive, Resamples, Seed
from data.errors import UserError
from data.judge_prompts import Kind
from data.judge_settings import JudgeSettings
from data.record import Record
from data.uris import KeptUri, Uri


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
