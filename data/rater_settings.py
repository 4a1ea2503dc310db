"""Raters besides the predictor, and which attributes each gives: their settings. Knows no model, endpoint or row."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from data.bounds import Amount, Count, Positive, Score, Size, Times, TokenBudget
from data.errors import UserError
from data.judge_settings import JudgeSettings
from data.rater_fit import FitKind
from data.record import Record
from data.text_measures import TextMeasure
from data.text_rater import PREDICTOR
from data.uris import Uri, shown_uri

MergeRule = Literal["mean", "first"]
Names = Annotated[tuple[str, ...], Field(min_length=1)]
DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")


class Named(Record):
    """What a rater is called in rows, log and report."""

    @property
    def name(self) -> str:
        raise NotImplementedError

    def named_for(self, attribute: str) -> str:
        """As the rater of this attribute."""
        return self.name


class PredictorRaterSettings(Named):
    """The run's predictor, beside other raters of the same attributes."""

    kind: Literal["predictor"]
    """predictor = the run's own, of attributes that others rate as well; of all others it is the only rater anyway."""
    attributes: Names
    """The attributes."""
    weight: Positive = 1.0
    """Weight in the mean of several raters."""

    @property
    def name(self) -> str:
        return PREDICTOR


class TextRaterSettings(Named):
    """Measures of the answer's text, for attributes that nobody rated."""

    kind: Literal["text"]
    """text = measures of the answer's text."""
    attributes: dict[str, TextMeasure] = Field(min_length=1)
    """Attribute -> measure, such as {verbosity: words, complexity: flesch_kincaid}. words, characters, sentences: how
    many. flesch_kincaid: years of school that a reader of English needs. type_token_ratio: variety of the words."""
    cuts: dict[str, tuple[Score, ...]] = {}
    """Attribute -> rising values of the measure, in its unit (words, years of school, ...), at each of which the label
    rises by one, such as {verbosity: [20, 60, 120, 240]}. Without cuts an attribute's labels are spread over its scale
    by rank among the answers of the rows, so that each is as common as any other."""
    weight: Positive = 1.0
    """Weight in the mean of several raters."""

    @property
    def name(self) -> str:
        return "text"

    def named_for(self, attribute: str) -> str:
        return f"text: {self.attributes[attribute]}"


class HfRaterSettings(Named):
    """A reward model, regressor or classifier of others."""

    LATER: ClassVar[frozenset[str]] = frozenset({"calibrate", "head"})

    kind: Literal["hf"]
    """hf = a sequence-classification or regression model of transformers, ArmoRM, or a language model with a reward as
    a logit; code that comes with a model never runs."""
    model: Uri
    """Hub name, folder or URI."""
    attributes: dict[str, Count | str] = Field(min_length=1)
    """Attribute -> the model's output, by its number or by its name in id2label; 0 of a model with one output. ArmoRM's
    have the names of its card, such as helpsteer-helpfulness, and score."""
    head: Literal["token_logit"] | None = None
    """Where the outputs are. token_logit = the logits of the token that follows, in a causal language model; attributes
    then name a token, by its id or as the vocabulary spells it: 0 for Llama-3.1-Nemotron-70B-Reward-HF, whose config
    is that of a chat model. None = in the head that config.json names."""
    reads: Literal["chat", "pair", "answer"] = "chat"
    """What the model is shown. chat: the conversation up to the answer, in its own chat template. pair: the last user
    message and the answer. answer: the answer alone."""
    activation: Literal["none", "sigmoid", "softmax"] = "none"
    """Applied to the outputs: none for rewards and regressions, sigmoid or softmax for the probabilities of a
    classifier."""
    range: dict[str, tuple[Score, Score]] = {}
    """Attribute -> the outputs that stand for the lowest and the highest value of its scale, such as
    {toxicity: [0, 1]}; straight in between and beyond. Without it outputs stay as they are, and labels are fitted to
    people's ratings."""
    max_tokens: TokenBudget = 2048
    """Longer inputs stay unrated and are counted."""
    calibrate: FitKind | None = None
    """Before its values become labels. isotonic = a curve that never falls, nearest to people's ratings; linear = their
    mean and spread; none = as they are. Fitted on rated rows that the predictor does not hold out, with errors on those
    that it does. None = linear, over all rows that both rated."""
    weight: Positive = 1.0
    """Weight in the mean of several raters."""

    @property
    def name(self) -> str:
        return f"hf: {shown_uri(self.model)}"

    @model_validator(mode="after")
    def _ranges(self) -> "HfRaterSettings":
        for attribute, (low, high) in self.range.items():
            if attribute not in self.attributes:
                raise UserError(f"range has {attribute}, attributes has not; give both, or neither")
            if low == high:
                raise UserError(f"range.{attribute} is {[low, high]}; give two different outputs")
        return self


class PythonRaterSettings(Named):
    """A function of yours."""

    LATER: ClassVar[frozenset[str]] = frozenset({"calibrate"})

    kind: Literal["python"]
    """python = a function of yours."""
    function: str = Field(max_length=200)
    """Its dotted path, such as mypackage.raters.politeness; in the working directory of the job or installed. It gets
    the messages up to the answer, a list of {role, content}, and returns a mapping of attribute -> number on the
    attribute's scale; an attribute that it leaves out has no value."""
    attributes: Names
    """The attributes that it gives."""
    calibrate: FitKind | None = None
    """Before its values become labels. isotonic = a curve that never falls, nearest to people's ratings; linear = their
    mean and spread; none = as they are. Fitted on rated rows that the predictor does not hold out, with errors on those
    that it does. None = linear, over all rows that both rated."""
    weight: Positive = 1.0
    """Weight in the mean of several raters."""

    @property
    def name(self) -> str:
        return f"python: {self.function}"

    @model_validator(mode="after")
    def _dotted(self) -> "PythonRaterSettings":
        if not DOTTED.fullmatch(self.function):
            raise UserError(f"function is {self.function!r}; write a dotted path, such as mypackage.raters.politeness")
        return self


class JudgeRaterSettings(Named):
    """A judge: a model that is told in words what to rate."""

    # What a token costs changes no reply.
    PLACEMENT: ClassVar[frozenset[str]] = frozenset(
        {"price_per_million_prompt_tokens", "price_per_million_completion_tokens"}
    )
    LATER: ClassVar[frozenset[str]] = frozenset({"max_cost", "calibrate"})

    kind: Literal["judge"]
    """judge = a model behind an OpenAI-compatible endpoint."""
    judge: JudgeSettings
    """The judge, and how it is asked. Its reply is JSON by a schema (response_format; judge.extra may replace it)."""
    attributes: dict[str, str] = Field(min_length=1)
    """Attribute -> the principle by which it is rated, in your words; "" = the attribute's `meaning`. The judge is told
    the scale of the attribute."""
    votes: Times = 1
    """Replies for each answer, of which the mean counts; more than one needs judge.temperature above 0. Each has a seed
    of its own."""
    budget_tokens: Size | None = None
    """Tokens of prompts and replies that the judge may take in the whole run, those of earlier starts included; answers
    beyond stay unrated and are counted. None = no limit."""
    price_per_million_prompt_tokens: Amount = 0
    """What a million prompt tokens cost, in the currency of max_cost."""
    price_per_million_completion_tokens: Amount = 0
    """What a million tokens of replies cost."""
    max_cost: Amount | None = None
    """Money that the judge may take in the whole run, earlier starts included; answers beyond stay unrated and are
    counted. None = no limit."""
    calibrate: FitKind | None = None
    """Before its values become labels. isotonic = a curve that never falls, nearest to people's ratings; linear = their
    mean and spread; none = as they are. Fitted on rated rows that the predictor does not hold out, with errors on those
    that it does. None = linear, over all rows that both rated."""
    weight: Positive = 1.0
    """Weight in the mean of several raters."""

    @property
    def name(self) -> str:
        return f"judge: {self.judge.model}"

    @model_validator(mode="after")
    def _askable(self) -> "JudgeRaterSettings":
        if not self.judge.model:
            raise UserError("nobody judges: set judge.model, and judge.base_url unless OpenAI serves the model")
        if self.votes > 1 and self.judge.temperature == 0:
            raise UserError(
                f"votes is {self.votes}, but judge.temperature is 0, so that all votes are the same; raise it, or "
                "leave votes out"
            )
        if self.max_cost is not None and not self.is_priced:
            raise UserError(
                f"max_cost is {self.max_cost:g}, but no token costs anything; set price_per_million_prompt_tokens and "
                "price_per_million_completion_tokens"
            )
        return self

    @property
    def is_priced(self) -> bool:
        return bool(self.price_per_million_prompt_tokens or self.price_per_million_completion_tokens)


RaterSettings = Annotated[
    PredictorRaterSettings | TextRaterSettings | HfRaterSettings | PythonRaterSettings | JudgeRaterSettings,
    Field(discriminator="kind"),
]
