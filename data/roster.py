"""Who rates what in a run: all raters, the attributes of each, and how several values of one attribute become one.

Micro-example, attributes helpfulness and verbosity; raters: a text rater of verbosity -> helpfulness is the
predictor's, verbosity the text's. Knows no model and no row.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from data.attributes import AttributeProblem, AttributeSchema
from data.errors import UserError
from data.rater_fit import FitKind
from data.rater_settings import HfRaterSettings, MergeRule, PredictorRaterSettings, RaterSettings, TextRaterSettings
from data.text_measures import TextMeasure
from data.text_rater import PREDICTOR


@dataclass(frozen=True)
class Roster:
    """The raters in order; those of one attribute are asked all."""

    raters: tuple[RaterSettings, ...]
    merge: MergeRule
    schema: AttributeSchema

    @cached_property
    def all(self) -> tuple[RaterSettings, ...]:
        """With the predictor, last unless it is listed, and with every attribute that no other rater gives."""
        listed = {name for rater in self.raters for name in rater.attributes}
        own = tuple(name for name in self.schema.names if name not in listed)
        found = [self._with(rater, own) for rater in self.raters]
        if own and not any(isinstance(rater, PredictorRaterSettings) for rater in self.raters):
            found.append(PredictorRaterSettings(kind="predictor", attributes=own))
        return tuple(found)

    @staticmethod
    def _with(rater: RaterSettings, own: tuple[str, ...]) -> RaterSettings:
        if not isinstance(rater, PredictorRaterSettings):
            return rater
        return rater.model_copy(update={"attributes": (*rater.attributes, *own)})

    def of(self, attribute: str) -> tuple[RaterSettings, ...]:
        """Who rates it, in order; at least one."""
        return tuple(rater for rater in self.all if attribute in rater.attributes)

    @property
    def described(self) -> dict[str, str]:
        """Attribute -> who gives its values, in words."""
        return {name: self._words([rater.named_for(name) for rater in self.of(name)]) for name in self.schema.names}

    def _words(self, names: Sequence[str]) -> str:
        if len(names) == 1:
            return names[0]
        return f"mean of {' and '.join(names)}" if self.merge == "mean" else ", else ".join(names)

    @property
    def unpredicted(self) -> tuple[str, ...]:
        """Attributes in which the predictor has no part."""
        return tuple(n for n in self.schema.names if not any(r.name == PREDICTOR for r in self.of(n)))

    @property
    def text(self) -> TextRaterSettings | None:
        return next((rater for rater in self.raters if isinstance(rater, TextRaterSettings)), None)

    @property
    def measures(self) -> dict[str, TextMeasure]:
        """Attributes that are a measure of the text and nothing else."""
        alone = [name for name in self.schema.names if [rater.name for rater in self.of(name)] == ["text"]]
        return {name: self.text.attributes[name] for name in alone if self.text}

    @property
    def elsewhere(self) -> dict[str, str]:
        """Attributes that neither the predictor alone nor a measure alone gives -> who does, in words."""
        return {
            name: words
            for name, words in self.described.items()
            if name not in self.measures and [rater.name for rater in self.of(name)] != [PREDICTOR]
        }

    def fit_of(self, attribute: str) -> FitKind | None:
        """How its one value is brought onto people's scale; None = no rater says."""
        return next(iter(self._fits(attribute)), None)

    def _fits(self, attribute: str) -> set[FitKind]:
        found = (getattr(rater, "calibrate", None) for rater in self.of(attribute))
        return {kind for kind in found if kind is not None}

    def require_used_fits(self, used: bool, why: str) -> None:
        """Raise UserError for a `calibrate` that changes no label, or two for one value."""
        for number, rater in enumerate(self.raters):
            if getattr(rater, "calibrate", None) is None:
                continue
            if not used:
                raise UserError(f"annotate.raters.{number}.calibrate is set, but {why}; leave one of them out")
            for name in rater.attributes:
                if len(self._fits(name)) > 1:
                    raise UserError(
                        f"annotate.raters.{number}.calibrate differs from that of another rater of {name}, and one "
                        "value of both is fitted; set the same in both, or in one of them"
                    )

    def require_fitting(self) -> None:
        """Raise UserError unless all raters fit the schema and each other, and the predictor has something to learn."""
        for number, rater in enumerate(self.raters):
            for name in rater.attributes:
                try:
                    self.schema[name]
                except AttributeProblem as problem:
                    raise UserError(f"annotate.raters.{number}.attributes: {problem}") from None
            if isinstance(rater, TextRaterSettings):
                self._require_cuts(number, rater)
        twice = [name for name, num in Counter(rater.name for rater in self.raters).items() if num > 1]
        if twice:
            raise UserError(f"annotate.raters has two called {twice[0]!r}; give one of them the attributes of both")
        if len(self.unpredicted) == len(self.schema.names):
            raise UserError(
                f"annotate.raters gives all of {', '.join(self.schema.names)}, so that the predictor has nothing to "
                "learn; leave it at least one attribute that people rated"
            )
        self._require_mergeable()

    def _require_cuts(self, number: int, rater: TextRaterSettings) -> None:
        at = f"annotate.raters.{number}.cuts"
        for name, found in rater.cuts.items():
            if name not in rater.attributes:
                raise UserError(f"{at} has {name}, its attributes have not; give both, or neither")
            low, high = self.schema[name].low, self.schema[name].high
            if len(found) != high - low or any(b <= a for a, b in itertools.pairwise(found)):
                raise UserError(
                    f"{at}.{name} is {list(found)}; the scale {low} to {high} needs {high - low} rising numbers"
                )

    def _require_mergeable(self) -> None:
        """Values of several raters must stand on one scale, and what would be ignored is refused."""
        for number, rater in enumerate(self.raters):
            shared = [name for name in rater.attributes if len(self.of(name)) > 1]
            raw = [n for n in shared if isinstance(rater, HfRaterSettings) and n not in rater.range]
            if raw:
                raise UserError(
                    f"annotate.raters.{number} shares {raw[0]} with another rater, but its outputs are on a scale of "
                    f"their own; set annotate.raters.{number}.range.{raw[0]} to the outputs that stand for the ends"
                )
            if rater.weight != 1 and (self.merge == "first" or not shared):
                why = "annotate.merge is first" if self.merge == "first" else "no other rater gives its attributes"
                raise UserError(f"annotate.raters.{number}.weight is {rater.weight:g}, but {why}; leave the weight out")
            if isinstance(rater, PredictorRaterSettings) and len(shared) < len(rater.attributes):
                raise UserError(
                    f"annotate.raters.{number} names the predictor for {rater.attributes[0]}, which no other rater "
                    "gives: it is the predictor's anyway; take it out"
                )


def merged(values_RSA: np.ndarray, weights_R: Sequence[float], rule: MergeRule) -> tuple[np.ndarray, np.ndarray]:
    """One value for each answer and attribute, NaN if no rater has one, and whose values are in it: [S, A], [R, S, A].

    mean: by weight, of those that are there. first: of the first rater that has one. Micro-example, weights 1 and 3:
    (2, 4) -> 3.5 or 2; (NaN, 4) -> 4.
    """
    used_RSA = ~np.isnan(values_RSA)
    if rule == "first":
        used_RSA &= np.cumsum(used_RSA, axis=0) == 1
    weights_RSA = used_RSA * np.asarray(weights_R, float)[:, None, None]
    total_SA = weights_RSA.sum(0)
    sums_SA = (weights_RSA * np.where(used_RSA, values_RSA, 0)).sum(0)
    values_SA = np.divide(sums_SA, total_SA, out=np.full_like(total_SA, np.nan), where=total_SA > 0)
    return values_SA, used_RSA
