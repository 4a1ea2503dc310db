"""The replies to one request in OpenAI's shape: the whole at once, or chunk by chunk.

Knows no HTTP, no server-sent events and no policy: it is given the text and the counts.
"""

import time
import uuid
from typing import Any, Literal

from serve.wire import AnswerMessage, ChatCompletion, Choice, Chunk, ChunkChoice, ChunkDelta, Steering, Usage


def usage(prompt_tokens: int, completion_tokens: int) -> Usage:
    return Usage(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens, total_tokens=prompt_tokens + completion_tokens)


class Reply:
    """The replies to one request: the whole, or chunk by chunk, all with one id."""

    def __init__(self, model: str, steering: Steering):
        self.id = f"chatcmpl-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self.model = model
        self.steering = steering

    def whole(self, text: str, finish: Literal["stop", "length"], used: Usage) -> dict[str, Any]:
        choice = Choice(message=AnswerMessage(content=text), finish_reason=finish)
        return ChatCompletion(id=self.id, created=self.created, model=self.model, choices=[choice], usage=used, steering=self.steering).model_dump()

    def opening(self) -> dict[str, Any]:
        """The first chunk: the role, and what was asked."""
        return self._chunk([ChunkChoice(delta=ChunkDelta(role="assistant", content=""))], steering=self.steering)

    def piece(self, text: str) -> dict[str, Any]:
        return self._chunk([ChunkChoice(delta=ChunkDelta(content=text))])

    def closing(self, finish: Literal["stop", "length"]) -> dict[str, Any]:
        return self._chunk([ChunkChoice(delta=ChunkDelta(), finish_reason=finish)])

    def counts(self, used: Usage) -> dict[str, Any]:
        return self._chunk([], usage=used)

    def _chunk(self, choices: list[ChunkChoice], **more: Any) -> dict[str, Any]:
        chunk = Chunk(id=self.id, created=self.created, model=self.model, choices=choices, **more).model_dump()
        # As OpenAI does it: nothing instead of null, except where clients look for the null.
        for name in ("usage", "steering"):
            if chunk[name] is None:
                del chunk[name]
        for choice in chunk["choices"]:
            choice["delta"] = {name: value for name, value in choice["delta"].items() if value is not None}
        return chunk
