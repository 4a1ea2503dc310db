"""The settings of step 4, the bootstrap rounds, by either method.

`jobs.runner.preset` collects them. Knows no YAML (`cluster.settings.load` does).
"""

from typing import Literal

from pydantic import model_validator

from actors.training.settings import LearnerSettings
from data.bounds import Amount, Count, Repeats, RowFactor, ScaleValue, Size, Times
from data.errors import UserError
from data.record import Record
from data.selection import SelectionSettings
from data.uris import Uri


class SteerLM2Settings(Record):
    """What SteerLM 2.0 asks for, and what it compares the answers with."""

    target: dict[str, ScaleValue] | None = None
    """The one setting that all answers of a round are asked for, as in the paper, such as {helpfulness: 4, verbosity:
    2}; attributes that are not named do not count. None = each prompt has one of the combinations that leading,
    leading_at_least and min_count allow."""
    unconditional: Literal["sft", "policy"] = "sft"
    """What gives log P(y|x). sft = a policy trained once on all annotated rows without labels (stage unconditional,
    with policy.learner), as in the paper; policy = the sampled policy, asked for nothing, which it only knows from
    policy.attribute_dropout."""
    responses: Uri = ""
    """JSON lines of NeMo-Aligner's SteerLM2 format whose prompts are trained on beside those of each round; "" = none.
    Their log(Q(y|a,x)) is that of the policy that wrote them."""


class BootstrapSettings(Record):
    """Step 4: sample at the best settings, rate, select, train again, and decide whether it helped."""

    rounds: Repeats = 1
    """Rounds; 0 = none. A round that makes things worse (see max_steering_fall) is not promoted, and is the last."""
    method: Literal["steerlm", "steerlm2"] = "steerlm"
    """steerlm = train on the samples, conditioned on their predicted values; steerlm2 = SteerLM 2.0 (arXiv 2406.08673):
    all answers to a prompt are asked for at one setting, and weights make those likelier that fit it."""
    steerlm2: SteerLM2Settings = SteerLM2Settings()
    """Of method steerlm2."""
    leading: str
    """The attribute that must be at its best in the requested combinations."""
    leading_at_least: ScaleValue | None = None
    """Least value of `leading` in a requested combination; None = only its best."""
    min_count: Count = 1
    """How often a combination must occur in the annotated rows; 0 = also new combinations of values that occur."""
    num_prompts: Size = 500
    """Prompts per round, drawn from the annotated rows."""
    samples_per_prompt: Times = 4
    """Answers per prompt, each at another combination; with method steerlm2 all at one, 2 or more (the paper's 10)."""
    selection: SelectionSettings = SelectionSettings()
    """Which samples are trained on; of method steerlm2 only `unfinished` counts, as its weights select."""
    annotated_per_sample: RowFactor = 1.0
    """Annotated rows mixed in per selected sample; method steerlm2 mixes none in."""
    start: Literal["policy", "base"] = "policy"
    """Weights to start from: the last policy, or the base model."""
    learner: LearnerSettings
    """How the round trains. With method steerlm2 all answers to a prompt must fit into one pack of pack_tokens."""
    num_questions: Size = 8
    """Questions, other than the report's, that the policies before and after a round answer at every setting; they
    decide the promotion."""
    max_steering_fall: Amount | None = 0.05
    """Largest fall of the Spearman correlation of requested and measured values (mean over attributes) with which a
    round is promoted; None = no limit."""
    max_quality_fall: Amount | None = 0.3
    """The same for the leading attribute with all attributes at best: how much farther from its best it may be, in
    points of the scale."""
    max_diversity_fall: Amount | None = 0.2
    """The same for distinct-2, the share of different pairs of words in the answers, as a share of its value before."""

    @model_validator(mode="after")
    def _of_steerlm2(self) -> "BootstrapSettings":
        if self.method == "steerlm":
            if self.steerlm2 != SteerLM2Settings():
                raise UserError("bootstrap.steerlm2 is set, but bootstrap.method is steerlm; set method to steerlm2")
            return self
        if self.samples_per_prompt < 2:
            raise UserError(
                "bootstrap.method steerlm2 weighs the answers to a prompt against each other, but samples_per_prompt "
                "is 1; set it to 2 or more"
            )
        self._refuse_what_has_no_effect()
        if self.learner.packing == "off":
            raise UserError(
                "bootstrap.method steerlm2 needs all answers to a prompt in one forward, but bootstrap.learner.packing "
                "is off; set it to on"
            )
        return self

    def _refuse_what_has_no_effect(self) -> None:
        """Of the settings of a round, those that method steerlm2 does not read."""
        others = self.selection.model_copy(update={"unfinished": SelectionSettings().unfinished})
        unread = {
            "annotated_per_sample": "annotated_per_sample" in self.model_fields_set,
            "selection": others != SelectionSettings(),
            "start": self.start != "policy",
        }
        if self.steerlm2.target is not None:
            unread |= {"leading_at_least": self.leading_at_least is not None, "min_count": self.min_count != 1}
        for name, is_set in unread.items():
            if is_set:
                why = {
                    "annotated_per_sample": "it mixes no other rows in",
                    "selection": "its weights select; only selection.unfinished counts",
                    "start": "it goes on from the policy that was sampled",
                }.get(name, "steerlm2.target is set")
                raise UserError(f"bootstrap.{name} has no effect with bootstrap.method steerlm2: {why}; leave it out")
