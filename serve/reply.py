"""The replies to one request in OpenAI's shape: the whole at once, or chunk by chunk.

Knows no HTTP, no server-sent events and no policy: it is given the texts and the counts.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serve.protocol import (
    AnswerMessage,
    Candidate,
    ChatCompletion,
    Choice,
    Chunk,
    ChunkChoice,
    ChunkDelta,
    Steering,
    Usage,
)

Finish = Literal["stop", "length"]


@dataclass(frozen=True)
class Answer:
    """One whole answer."""

    text: str
    finish: Finish
    completion_tokens: int
    measured: dict[str, float] | None = None


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return Usage(
        prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, total_tokens=prompt_tokens + completion_tokens
    )


class Reply:
    """The replies to one request: the whole, or chunk by chunk, all with one id."""

    def __init__(self, model: str, steering: Steering):
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.steering = steering

    def whole(
        self, answers: Sequence[Answer], used: Usage, candidates: list[Candidate] | None = None
    ) -> dict[str, Any]:
        choices = [
            Choice(
                index=i,
                message=AnswerMessage(content=answer.text),
                finish_reason=answer.finish,
                measured=answer.measured,
            )
            for i, answer in enumerate(answers)
        ]
        steering = self.steering.model_copy(update={"measured": answers[0].measured, "candidates": candidates})
        reply = ChatCompletion(
            id=self.id, created=self.created, model=self.model, choices=choices, usage=used, steering=steering
        ).model_dump()
        for choice in reply["choices"]:
            _drop_nones(choice, "measured")
        _drop_nones(reply["steering"], "measured", "candidates")
        return reply

    def opening(self, index: int) -> dict[str, Any]:
        """The first chunk of an answer: the role, and what was asked."""
        return self._chunk(
            [ChunkChoice(index=index, delta=ChunkDelta(role="assistant", content=""))], steering=self.steering
        )

    def piece(self, index: int, text: str) -> dict[str, Any]:
        return self._chunk([ChunkChoice(index=index, delta=ChunkDelta(content=text))])

    def closing(self, index: int, finish: Finish) -> dict[str, Any]:
        return self._chunk([ChunkChoice(index=index, delta=ChunkDelta(), finish_reason=finish)])

    def measured(self, measured: dict[str, float]) -> dict[str, Any]:
        """What the predictor says of the first answer, once it is whole."""
        return self._chunk([], steering=self.steering.model_copy(update={"measured": measured}))

    def counts(self, used: Usage) -> dict[str, Any]:
        return self._chunk([], usage=used)

    def _chunk(self, choices: list[ChunkChoice], **more: Any) -> dict[str, Any]:
        chunk = Chunk(id=self.id, created=self.created, model=self.model, choices=choices, **more).model_dump()
        # As OpenAI does it: nothing instead of null, except where clients look for the null.
        _drop_nones(chunk, "usage", "steering")
        if "steering" in chunk:
            _drop_nones(chunk["steering"], "measured", "candidates")
        for choice in chunk["choices"]:
            _drop_nones(choice["delta"], "role", "content")
        return chunk


def _drop_nones(record: dict[str, Any], *names: str) -> None:
    for name in names:
        if record[name] is None:
            del record[name]
