"""The attribute predictor on a Ray Serve replica: rates answers, several requests' answers in one packed forward. Knows no HTTP."""

from collections.abc import Mapping, Sequence

import ray.serve

from data.conversation import Conversation, Message
from serve.request import GenerationRequest

MAX_BATCH = 16
BATCH_WAIT_S = 0.01
"""How long the first answer of a batch waits for company; a forward takes longer than that."""


class Scorer:
    """One predictor. `ScorerDeployment` is the same for Ray Serve."""

    def __init__(self, predictor: str, dtype: str, pack_tokens: int, max_tokens: int, num_threads: int):
        """Raises UserError if there is no predictor at `predictor`."""
        from actors.modeling.model_folder import load_format, local_folder
        from actors.scoring.annotator import Annotator

        schema = load_format(local_folder(predictor)).schema
        self._annotator = Annotator(predictor, schema, "", pack_tokens, max_tokens, dtype, num_threads)
        self._schema_json = schema.model_dump_json()

    async def schema_json(self) -> str:
        """Of the values it gives."""
        return self._schema_json

    @ray.serve.batch(max_batch_size=MAX_BATCH, batch_wait_timeout_s=BATCH_WAIT_S)
    async def score(self, asked: Sequence[tuple[GenerationRequest, str]]) -> list[Mapping[str, float]]:
        """What each answer is worth on the predictor's scales; an empty answer, which nothing can be said of, gives no values."""
        rows = [conversation(job, answer, number) for number, (job, answer) in enumerate(asked)]
        written = [row for row in rows if row.messages[-1].content]
        predicted = {row.id: row.predicted[-1] for row in (self._annotator.annotated(written) if written else [])}
        return [{name: round(float(value), 4) for name, value in predicted.get(row.id, {}).items()} for row in rows]


def conversation(job: GenerationRequest, answer: str, number: int) -> Conversation:
    """A job and its answer as a row; `number` tells equal ones apart."""
    messages = (*job.messages, Message("assistant", answer))
    return Conversation(source="served", system=job.system, messages=messages, id=str(number))


ScorerDeployment = ray.serve.deployment(Scorer)
