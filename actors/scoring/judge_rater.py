"""A judge as a rater: principles in words, one JSON reply for each answer and vote. Knows no endpoint and no row."""

from collections.abc import Sequence
from dataclasses import replace

from data.attributes import AttributeSchema
from data.judge_rating import Judge, JudgeOutcome, JudgeRequest, rating_request, values_in
from data.rater_settings import JudgeRaterSettings
from data.turns import Rated, Turn


class JudgeRater:
    """Asks for all answers of a batch together: the judge's own pace decides how many at a time."""

    def __init__(self, settings: JudgeRaterSettings, schema: AttributeSchema, judge: Judge):
        self._settings, self._judge = settings, judge
        self._attributes = [a for a in schema.attributes if a.name in settings.attributes]

    def __call__(self, turns: Sequence[Turn]) -> list[Rated]:
        votes = self._settings.votes
        outcomes = self._judge.replies([request for turn in turns for request in self._requests(turn)])
        return [self._rated(outcomes[i * votes : (i + 1) * votes]) for i in range(len(turns))]

    def _requests(self, turn: Turn) -> list[JudgeRequest]:
        request = rating_request(turn, self._settings.attributes, self._attributes)
        if self._settings.votes == 1:
            return [request]
        return [replace(request, options={**request.options, "seed": seed}) for seed in range(self._settings.votes)]

    def _rated(self, outcomes: Sequence[JudgeOutcome]) -> Rated:
        """The mean of the votes that have a value; an attribute without any has failed, as the last vote says."""
        votes: dict[str, list[float]] = {}
        failed: dict[str, str] = {}
        for outcome in outcomes:
            if outcome.text is None:
                failed |= dict.fromkeys((a.name for a in self._attributes), outcome.failed)
                continue
            values, wrong = values_in(outcome.text, self._attributes)
            failed |= wrong
            for name, value in values.items():
                votes.setdefault(name, []).append(value)
        means = {name: sum(found) / len(found) for name, found in votes.items()}
        left = {name: reason for name, reason in failed.items() if name not in means}
        return Rated(means, left, again=bool(left) and any(outcome.again for outcome in outcomes))
