"""All raters of a run together: the predictor's values in; out, one value of each answer and attribute, and whose.

Answers that the predictor did not read have no value of anybody. Knows no Arrow table and no token.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from actors.scoring.judge_rater import JudgeRater
from actors.scoring.python_rater import PythonRater
from data.conversation import Conversation
from data.counters import Counters
from data.judge_rating import Judge
from data.rater_metrics import AGAIN, MERGED, VALUED, failure, sums
from data.rater_settings import (
    HfRaterSettings,
    JudgeRaterSettings,
    PythonRaterSettings,
    RaterSettings,
    TextRaterSettings,
)
from data.roster import Roster, merged
from data.text_rater import TextRater
from data.turns import Rated, Turn, last_turns

AnswerRater = Callable[[Sequence[Turn]], list[Rated]]


@dataclass(frozen=True)
class OtherRaters:
    """The raters beside the predictor, as a worker is given them."""

    roster: Roster
    text: TextRater = field(default_factory=TextRater)
    judges: Mapping[str, Judge] = field(default_factory=dict)
    """Rater -> who asks its judge."""
    models: Mapping[str, str] = field(default_factory=dict)
    """`hf` rater -> its model, as a worker finds it: a relative path is one of the driver."""


@dataclass(frozen=True)
class PanelRatings:
    """What the raters found in some conversations."""

    scores: list[np.ndarray]
    """The merged values of each conversation's last answers [S, A]."""
    rated_by: list[np.ndarray]
    """Whose values are in them: texts [S, A], None for no value."""
    counters: Counters


class Panel:
    """The raters, ready to rate."""

    def __init__(self, others: OtherRaters, dtype: str, batch_tokens: int):
        """Raises UserError for a rater that is not there."""
        self._roster, self._names = others.roster, others.roster.schema.names
        self._raters = [_rater(settings, others, dtype, batch_tokens) for settings in self._roster.all]

    def __call__(self, conversations: Sequence[Conversation], scores: Sequence[np.ndarray]) -> PanelRatings:
        """`scores`: the predictor's, of each conversation's last answers [S, A]."""
        turns = [turn for c, own in zip(conversations, scores, strict=True) for turn in last_turns(c, len(own))]
        human = [v for c, own in zip(conversations, scores, strict=True) for v in _last_human(c, len(own))]
        predicted_SA = np.concatenate([np.zeros((0, len(self._names)), np.float32), *scores])
        human_SA = self._array([Rated(values) for values in human])
        counters: Counter[str] = Counter()
        values_RSA = np.stack([self._values(n, turns, predicted_SA, counters) for n in range(len(self._raters))])
        values_SA, used_RSA = merged(values_RSA, [rater.weight for rater in self._roster.all], self._roster.merge)
        found = dict(counters) | self._sums(values_RSA, values_SA, human_SA)
        cuts = np.cumsum([len(own) for own in scores])[:-1]
        by_SA = self._rated_by(used_RSA)
        return PanelRatings(np.split(values_SA.astype(np.float32), cuts), np.split(by_SA, cuts), found)

    def _values(
        self, number: int, turns: Sequence[Turn], predicted_SA: np.ndarray, counters: Counter[str]
    ) -> np.ndarray:
        """One rater's values [S, A], NaN for none; its failures are counted."""
        settings, rater = self._roster.all[number], self._raters[number]
        if rater is None:
            own_A = np.isin(self._names, list(settings.attributes))
            return np.where(own_A, predicted_SA, np.nan).astype(float)
        found = rater(turns)
        for rated in found:
            counters.update(failure(number, name, reason) for name, reason in rated.failed.items())
        counters[AGAIN] += sum(rated.again for rated in found)
        return self._array(found)

    def _array(self, found: Sequence[Rated]) -> np.ndarray:
        values_SA = [[rated.values.get(name, np.nan) for name in self._names] for rated in found]
        return np.array(values_SA, float).reshape(len(found), len(self._names))

    def _sums(self, values_RSA: np.ndarray, values_SA: np.ndarray, human_SA: np.ndarray) -> Counters:
        found: Counters = {}
        for column, name in enumerate(self._names):
            givers = [number for number, rater in enumerate(self._roster.all) if name in rater.attributes]
            for number in givers:
                found |= sums(number, name, values_RSA[number, :, column], human_SA[:, column])
            if len(givers) > 1:
                found |= sums(MERGED, name, values_SA[:, column], human_SA[:, column])
            found[VALUED + name] = int((~np.isnan(values_SA[:, column])).sum())
        return found

    def _rated_by(self, used_RSA: np.ndarray) -> np.ndarray:
        """Texts [S, A], such as "judge: strict + predictor"; None where nobody has a value."""
        found = np.full(used_RSA.shape[1:], None, dtype=object)
        for column, name in enumerate(self._names):
            givers_SR = used_RSA[:, :, column].T
            for givers_R in np.unique(givers_SR, axis=0):
                who = [r.named_for(name) for r, used in zip(self._roster.all, givers_R, strict=True) if used]
                found[(givers_SR == givers_R).all(1), column] = " + ".join(who) or None
        return found


def _rater(settings: RaterSettings, others: OtherRaters, dtype: str, batch_tokens: int) -> AnswerRater | None:
    """None is the predictor."""
    schema = others.roster.schema
    if isinstance(settings, TextRaterSettings):
        return lambda turns: [Rated(others.text(turn.answer)) for turn in turns]
    if isinstance(settings, HfRaterSettings):
        from actors.scoring.hf_rater import HfRater  # with torch, which a driver does without

        model = others.models.get(settings.name, settings.model)
        return HfRater(settings.model_copy(update={"model": model}), schema, dtype, batch_tokens)
    if isinstance(settings, PythonRaterSettings):
        return PythonRater(settings)
    if isinstance(settings, JudgeRaterSettings):
        return JudgeRater(settings, schema, others.judges[settings.name])
    return None


def _last_human(conversation: Conversation, num: int) -> list[Mapping[str, float]]:
    """People's values of the last `num` answers."""
    human = conversation.human or ({},) * conversation.num_answers
    return list(human[len(human) - num :])
