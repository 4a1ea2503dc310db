"""The attribute predictor on a Ray Serve replica: rates the answers of several requests in one packed forward.

Knows no HTTP.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import ray.serve

from data.conversation import Conversation, Message
from serve.request import GenerationRequest

if TYPE_CHECKING:
    from actors.scoring.rater import Rater

MAX_BATCH = 16
BATCH_WAIT_S = 0.01
"""How long the first answer of a batch waits for company; a forward takes longer than that."""


class Scorer:
    """One predictor. `ScorerDeployment` is the same for Ray Serve."""

    def __init__(
        self, predictor: str, dtype: str, pack_tokens: int, max_tokens: int, num_threads: int, packing: bool = True
    ):
        """Raises UserError if there is no predictor at `predictor`, or if it would mix answers that are packed."""
        from actors.kernels.devices import own_device
        from actors.kernels.precision import usable_dtype
        from actors.scoring.predictor import Predictor
        from actors.scoring.rater import Rater

        dtype = usable_dtype(dtype, own_device(), "scorer.dtype")
        loaded = Predictor.load(predictor, dtype, num_threads=num_threads, packing=packing, setting="scorer.packing")
        self._rater = Rater(loaded, pack_tokens, max_tokens)

    @ray.serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def score(self, answers: Sequence[tuple[GenerationRequest, str]]) -> list[dict[str, float]]:
        return rate_answers(self._rater, answers)


def rate_answers(rater: "Rater", answers: Sequence[tuple[GenerationRequest, str]]) -> list[dict[str, float]]:
    """The predictor's values of each answer; none for an empty answer, which cannot be rated."""
    wholes = [(request.begun or "") + answer for request, answer in answers]
    conversations = [
        Conversation("served", request.system, (*_asked(request), Message("assistant", whole)), id="served")
        for (request, _), whole in zip(answers, wholes, strict=True)
        if whole
    ]
    last = (values_SA[-1] for values_SA in rater.rate(conversations))
    names = rater.predictor.schema.names
    return [
        {n: round(float(v), 4) for n, v in zip(names, next(last), strict=True) if not math.isnan(v)} if whole else {}
        for whole in wholes
    ]


def _asked(request: GenerationRequest) -> tuple[Message, ...]:
    """The conversation before the answer, begun by a user: predictors are trained on no other."""
    messages = request.messages if request.begun is None else request.messages[:-1]
    return messages if messages and messages[0].role == "user" else (Message("user", ""), *messages)


ScorerDeployment = ray.serve.deployment(Scorer)
