"""The settings of stage `predictor`, with meaning, unit and default. `jobs.runner.preset` collects them."""

from typing import ClassVar

from pydantic import model_validator

from actors.modeling.settings import HeadsSettings, LossKind
from actors.training.settings import LearnerSettings
from data.bounds import (
    Amount,
    Positive,
    Repeats,
    RowFactor,
    ShareBelowOne,
    Weight,
)
from data.errors import UserError
from data.record import Record
from data.uris import Uri
from jobs.runner.evaluation_settings import PairSource


class PredictorSettings(Record):
    """Step 1: the attribute predictor."""

    LATER: ClassVar[frozenset[str]] = frozenset({"heads"})

    learner: LearnerSettings
    """How it is trained."""
    folds: Repeats = 0
    """k > 1: also train k predictors, each without one k-th of the groups, and report their scores on that part."""
    validation_share: ShareBelowOne = 0.1
    """With folds = 0: share of groups held out for the metrics. With learner.validate_every: also the share of the
    other groups that picks the best step."""
    backbone: Uri | None = None
    """Model to start from (hub name, folder or URI): a decoder or an encoder (BERT, ModernBERT, ...); None = the base
    model."""
    attribute_weights: dict[str, Positive] = {}
    """Attribute -> weight of its labels in the loss (a weighted mean over the labels of a step); 1 for all others."""
    source_weights: dict[str, RowFactor] = {}
    """Source -> how often an epoch has each of its rated rows: 2 = twice, 0.5 = half of them in one epoch, the other
    half in the next; 1 for all other sources."""
    loss: LossKind = "squared"
    """Error that the loss averages over the labels. squared: scores approach the mean of the ratings. absolute: their
    median, which is nearer to the truth where most ratings are exact, because ratings at an end of the scale err to one
    side only."""
    ridge_init: Amount = 0.0
    """Ridge penalty per example for fitting a decoder's heads to the frozen backbone before training; 0 = random heads.
    Not with ZeRO-3."""
    heads: HeadsSettings | None = None
    """Heads on several layers and readings of a decoder, fitted to the frozen backbone by ridge regression; {} = tried
    and chosen by cross-validation over groups. learner.epochs = 0 keeps them so, which is enough for a pretrained
    backbone and few ratings; with epochs the training starts from them. None = one head on the last hidden state. Not
    with ridge_init, lm_loss_weight or ZeRO-3."""
    lm_loss_weight: Amount = 0.0
    """Weight of the language model's losses (next token, counts of the answer, its own surprise; mean over tokens)
    beside the loss of the ratings (mean over labels). It keeps a small backbone from forgetting what it knew. Needs a
    decoder with tied embeddings; 0 = off. Not with ZeRO-3."""
    warmup: LearnerSettings | None = None
    """Self-supervised training of the backbone on all rows, rated or not, before the ratings: it stays a language model
    and learns to count the answer so far (length, sentences, lines, ...). For small, barely trained decoders; None = no
    warm-up. Not with ZeRO-3."""
    pairs: tuple[PairSource, ...] = ()
    """Preferences to test the predictor on, set by set."""
    pair_weights: dict[str, Weight] = {}
    """Attribute -> weight in the one score that decides a pair; empty = 1/n for the attributes where higher is better,
    -1/n where lower is; n is the number of both."""

    @model_validator(mode="after")
    def _pairs(self) -> "PredictorSettings":
        names = [source.name for source in self.pairs]
        if len(set(names)) < len(names):
            raise UserError(f"predictor.pairs has the names {', '.join(names)}; give each set a different name")
        return self

    @model_validator(mode="after")
    def _whole_weights(self) -> "PredictorSettings":
        """Code that reads weights outside the engine's forward needs them whole."""
        found = {
            "ridge_init": self.ridge_init and self.learner,
            "heads": self.heads and self.learner,
            "lm_loss_weight": self.lm_loss_weight and self.learner,
            "warmup": self.warmup,
        }
        for name, learner in found.items():
            if learner and learner.zero_stage == 3:
                where = "predictor.warmup" if name == "warmup" else "predictor.learner"
                raise UserError(
                    f"predictor.{name} is set, but {where}.zero_stage is 3, where no worker holds whole weights; "
                    f"set {where}.zero_stage to 2 or less, or unset predictor.{name}"
                )
        return self

    @model_validator(mode="after")
    def _heads(self) -> "PredictorSettings":
        """Refuse what heads on several layers would ignore."""
        learner, frozen = self.learner, self.learner.epochs == 0
        if self.heads is None:
            if frozen:
                raise UserError(
                    "predictor.learner.epochs is 0, so nothing would be learned: set it to 1 or more, or set "
                    "predictor.heads, whose heads are fitted without an epoch"
                )
            return self
        others: dict[str, object] = {"ridge_init": self.ridge_init, "lm_loss_weight": self.lm_loss_weight}
        if frozen:
            others |= {"loss": self.loss != "squared", "learner.lora": learner.lora}
            others |= {"learner.validate_every": learner.validate_every}
        for name, value in others.items():
            if value:
                fits = " and learner.epochs is 0, which fits squared errors without a step" if frozen else ""
                raise UserError(
                    f"predictor.heads is set{fits}, so predictor.{name} would be ignored; unset one of them"
                )
        return self

    @model_validator(mode="after")
    def _folds(self) -> "PredictorSettings":
        if self.folds == 1:
            raise UserError(
                "folds is 1: one fold would leave nothing to train on; set 0 (hold out validation_share) or at least 2"
            )
        return self
