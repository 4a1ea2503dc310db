"""The reply of a chat completion that may call tools: calls are read out of the answer's text, whole or as it comes.

Knows no HTTP and no policy.
"""

import uuid
from collections.abc import Sequence

from data.tool_use import ToolCall
from serve.logprobs import ReportedToken
from serve.reply import (
    AnswerMessage,
    CalledFunction,
    ChatReply,
    Choice,
    Chunk,
    ChunkChoice,
    ChunkDelta,
    FinishedAnswer,
    MadeCall,
    Steering,
)
from serve.request import Finish
from serve.tool_request import WantedTools
from serve.tools import Parsed, ToolCallReader


class ToolReply(ChatReply):
    """A call is sent when it is whole: what has only begun may turn out to be text."""

    def __init__(self, model: str, steering: Steering, wanted: WantedTools, num_top: int | None = None):
        super().__init__(model, steering, num_top)
        self.wanted = wanted
        self._readers: dict[int, ToolCallReader] = {}

    def pieces(self, index: int, text: str, tokens: Sequence[ReportedToken] = ()) -> list[Chunk]:
        return self._chunks(index, self._reader(index).push(text), tokens)

    def closing(self, index: int, finish: Finish, measured: dict[str, float] | None = None) -> list[Chunk]:
        rest = self._chunks(index, self._reader(index).push("", last=True))
        chunks = super().closing(index, finish, measured)
        if self._reader(index).num_calls and finish == "stop":
            chunks = [_called(chunk) for chunk in chunks]
        return [*rest, *chunks]

    def _choice(self, index: int, answer: FinishedAnswer) -> Choice:
        parsed = ToolCallReader(self.wanted.form, self.wanted.names).push(answer.text, last=True)
        choice = super()._choice(index, answer)
        if not parsed.calls:
            return choice
        calls = [_made(call) for call in parsed.calls]
        message = AnswerMessage(content=parsed.content or None, tool_calls=calls)
        finish = "tool_calls" if answer.finish == "stop" else answer.finish
        return choice.model_copy(update={"message": message, "finish_reason": finish})

    def _reader(self, index: int) -> ToolCallReader:
        return self._readers.setdefault(index, ToolCallReader(self.wanted.form, self.wanted.names))

    def _chunks(self, index: int, parsed: Parsed, tokens: Sequence[ReportedToken] = ()) -> list[Chunk]:
        """Text and log-probabilities in one, then one for each call."""
        found = []
        if parsed.content or tokens:
            delta = ChunkDelta(content=parsed.content)
            found.append(ChunkChoice(index=index, delta=delta, logprobs=self._logprobs(tokens)))
        first = self._reader(index).num_calls - len(parsed.calls)
        for place, call in enumerate(parsed.calls, first):
            made = _made(call).model_copy(update={"index": place})
            found.append(ChunkChoice(index=index, delta=ChunkDelta(tool_calls=[made])))
        return [self._chunk([choice]) for choice in found]


def _made(call: ToolCall) -> MadeCall:
    function = CalledFunction(name=call.name, arguments=call.arguments)
    return MadeCall(id=f"call_{uuid.uuid4().hex[:24]}", function=function)


def _called(chunk: Chunk) -> Chunk:
    """A closing chunk of an answer with calls."""
    choices = [choice.model_copy(update={"finish_reason": "tool_calls"}) for choice in chunk.choices]
    return chunk.model_copy(update={"choices": choices})
