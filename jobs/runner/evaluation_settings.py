"""The settings of what is measured: the predictor on pairs and judged answers, the policy in the report.

`jobs.runner.preset` collects them.
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from data.bounds import Count, Guidance, PositiveShare, Size, Temperature, Weight, Whole
from data.errors import UserError
from data.record import Record
from data.run_layout import FolderName
from data.uris import Uri

WitnessKind = Literal["words", "tokens", "characters", "sentences", "flesch_kincaid", "type_token_ratio", "hatesonar"]

BaselineKind = Literal["zero_shot", "numbers"]


class PairSource(Record):
    """Pairs of answers of which people preferred one, to test whether the predictor agrees; no model trains on them."""

    name: FolderName
    """Name in the metrics."""
    uri: Uri
    """File, folder or glob of records with `chosen` and `rejected`: hh-rlhf text, message lists, or answers to a
    `prompt`; `subset` is RewardBench's."""
    limit: Count = 0
    """Largest number of pairs; 0 = all."""


class JudgedSource(Record):
    """Answers that a judge scored with one number."""

    name: FolderName
    """Name in the metrics."""
    uri: Uri
    """File, folder or glob of conversations (`messages`, or `prompt` and `response`) with a `score`, or of FastChat's
    single judgements of MT-bench."""
    limit: Count = 0
    """Largest number of answers; 0 = all."""


class BenchmarkSettings(Record):
    """The sets that `jobs.evaluate_predictor` tests a trained predictor on; no stage runs again because of them."""

    pairs: tuple[PairSource, ...] = ()
    """Preferences: accuracy on each set, on each of its subsets, and RewardBench's sections."""
    judged: tuple[JudgedSource, ...] = ()
    """Scores of a judge: rank correlation and correlation with each set."""
    weights: dict[str, Weight] = {}
    """Attribute -> weight in the one score of an answer; empty = predictor.pair_weights."""

    @model_validator(mode="after")
    def _names(self) -> "BenchmarkSettings":
        names = [*(source.name for source in self.pairs), *(source.name for source in self.judged)]
        if len(set(names)) < len(names):
            raise UserError(f"benchmarks has the names {', '.join(names)}; give each set a different name")
        return self


class EvaluateSettings(Record):
    """The report: each attribute varied over its scale, several at once, and in mid-conversation."""

    PLACEMENT: ClassVar[frozenset[str]] = frozenset({"min_spearman"})  # no answer changes with it
    LATER: ClassVar[frozenset[str]] = frozenset({"guidance", "guidance_from"})

    num_questions: Size = 20
    """Questions that the policy answers at every setting."""
    num_values: Count = 0
    """Values of each scale at which an attribute is asked, evenly spread from end to end: 3 = 0, 2 and 4 of 0 to 4. 0 =
    all. Fewer cost fewer answers."""
    num_combinations: Count = 6
    """Settings of all attributes at once, drawn from their scales, at which it answers every question too; 0 = none."""
    num_dialogues: Count = 8
    """Questions whose answers at each end of a scale are continued at its other end, at most all; 0 = none."""
    num_resamples: Whole = Field(2000, ge=100, le=100_000)
    """Resamples of the questions (bootstrap) for the 95 % bands of the means."""
    others: Literal["best", "unset"] = "best"
    """Values of the attributes that are not varied: their best, or none, as from callers who set one attribute (see
    policy.attribute_dropout)."""
    temperature: Temperature = 0.3
    """Sampling temperature of the evaluation; the paper's is 0 (greedy); a little more shows what callers see."""
    witnesses: tuple[WitnessKind, ...] | None = None
    """Measures of the answers by others than the predictor, which has never seen them: words, characters, sentences,
    flesch_kincaid and type_token_ratio, as of a text rater; tokens of the base model's tokenizer; hatesonar, a
    classifier of offensive language (`make setup-real`). None = words, flesch_kincaid, type_token_ratio and, where it
    is installed, hatesonar; in the synthetic world, whose truth is known, none."""
    guidance: tuple[Guidance, ...] | None = None
    """Strengths of guidance, such as [1, 1.5, 2, 3]: the report's questions are answered with each of them, and a table
    shows what it gains and costs. None = no such table. All other answers have sampling.guidance."""
    guidance_from: dict[str, Weight] | None = None
    """What these answers are led away from, as in sampling.guidance_from."""
    min_spearman: PositiveShare | None = None
    """The command fails after its report if an attribute's Spearman is lower; None = never fails."""

    @model_validator(mode="after")
    def _ends(self) -> "EvaluateSettings":
        if self.num_values == 1:
            raise UserError("evaluate.num_values is 1, which shows no rise; set at least 2, or 0 for all values")
        return self

    @model_validator(mode="after")
    def _guided(self) -> "EvaluateSettings":
        if self.guidance is not None and len(set(self.guidance)) < max(1, len(self.guidance)):
            raise UserError("evaluate.guidance is empty or has a strength twice; name each once, or leave it out")
        if self.guidance_from and self.guidance is None:
            raise UserError("evaluate.guidance_from has no effect without evaluate.guidance; set both, or leave it out")
        return self


class CompareSettings(Record):
    """Other models beside the policy, in stages of their own (`jobs.compare`); for a base model that follows words."""

    baselines: tuple[BaselineKind, ...] = ()
    """Models that are asked the report's questions, at its settings: zero_shot = the base model, untrained, told the
    values in words; numbers = a policy trained as the run's own, but told them as numbers (template chat), which costs
    another training."""
    questions: Uri = ""
    """Question file, a JSON object {question_id, category, turns} a line (FastChat's): the policy with all attributes
    at best and the base model, of its own accord, answer the first turns, and the predictor rates both; "" = none."""
    limit: Count = 0
    """Only the first so many questions; 0 = all."""
    max_tokens: Size | None = None
    """Longest answer to them; None = sampling.max_tokens. Short limits cut the answers of both."""

    @model_validator(mode="after")
    def _different(self) -> "CompareSettings":
        if len(set(self.baselines)) < len(self.baselines):
            raise UserError(f"compare.baselines has one twice: {', '.join(self.baselines)}; name each once")
        return self
