"""The reply of the responses route where tools may be called: each call is an item of its own beside the message.

Knows no HTTP and no policy.
"""

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from actors.generation.protocol import Sampling
from data.tool_use import ToolCall
from serve.logprobs import ReportedToken
from serve.reply import BestOfChoice, FinishedAnswer, Steering, Usage
from serve.request import Finish
from serve.responses_reply import OutputCall, OutputMessage, ResponseEvent, ResponseObject, ResponsesReply
from serve.tool_request import WantedTools
from serve.tools import Parsed, ToolCallReader


class ToolResponsesReply(ResponsesReply):
    """The message begins with its first text: an answer may be calls alone."""

    def __init__(
        self,
        model: str,
        steering: Steering,
        sampling: Sampling,
        metadata: Mapping[str, str],
        instructions: str | None,
        wanted: WantedTools,
        tools: Mapping[str, Any],
    ):
        """`tools`: the request's `tools` and `tool_choice`, which the reply repeats."""
        super().__init__(model, steering, sampling, metadata, instructions)
        self._tools = dict(tools)
        self._reader = ToolCallReader(wanted.form, wanted.names)
        self._calls: list[OutputCall] = []

    def whole(
        self, answers: Sequence[FinishedAnswer], usage: Usage, choice: BestOfChoice | None = None
    ) -> ResponseObject:
        [answer] = answers
        self._finish = answer.finish
        self._events(self._reader.push(answer.text, last=True))
        return self._response(usage)

    def opening(self, index: int) -> list[ResponseEvent]:
        return self._started()

    def pieces(self, index: int, text: str, tokens: Sequence[ReportedToken] = ()) -> list[ResponseEvent]:
        return self._events(self._reader.push(text))

    def closing(self, index: int, finish: Finish, measured: dict[str, float] | None = None) -> list[ResponseEvent]:
        self._finish = finish
        events = self._events(self._reader.push("", last=True))
        return [*events, *(self._message_done() if self._text else ())]

    def _events(self, parsed: Parsed) -> list[ResponseEvent]:
        events = []
        if parsed.content:
            if not self._text:
                self._message_place = len(self._calls)
                events += self._message_begun()
            events += super().pieces(0, parsed.content)
        return [*events, *(event for call in parsed.calls for event in self._called(call))]

    def _called(self, call: ToolCall) -> list[ResponseEvent]:
        place = {"output_index": len(self._output())}
        made = OutputCall(
            id=f"fc_{uuid.uuid4().hex[:24]}",
            call_id=f"call_{uuid.uuid4().hex[:24]}",
            name=call.name,
            arguments=call.arguments,
        )
        self._calls.append(made)
        begun = made.model_copy(update={"arguments": "", "status": "in_progress"})
        item = {"item_id": made.id, **place}
        done = "response.function_call_arguments.done"
        return [
            self._event("response.output_item.added", **place, item=begun),
            self._event("response.function_call_arguments.delta", **item, delta=made.arguments),
            self._event(done, **item, name=made.name, arguments=made.arguments),
            self._event("response.output_item.done", **place, item=made),
        ]

    def _output(self) -> list[OutputMessage | OutputCall]:
        output: list[OutputMessage | OutputCall] = list(self._calls)
        if self._text:
            output.insert(self._message_place, self._message())
        return output
