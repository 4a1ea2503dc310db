"""The reply of OpenAI's newer route, responses: its records, whole or event by event. Knows no HTTP and no policy."""

import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from actors.generation.protocol import Sampling
from serve.answer_ids import RESPONSE, new_id
from serve.logprobs import ReportedToken
from serve.protocol import ProtocolRecord
from serve.reply import BestOfChoice, FinishedAnswer, Steering, Usage
from serve.request import Finish


def _absent(value: object) -> bool:
    return value is None


class OutputText(ProtocolRecord):
    """The text of an answer."""

    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[str] = []
    logprobs: list[float] = []


class OutputMessage(ProtocolRecord):
    """An answer."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[OutputText]


class OutputCall(ProtocolRecord):
    """A call of one of the request's tools."""

    id: str
    type: Literal["function_call"] = "function_call"
    call_id: str
    name: str
    arguments: str
    """An object, as JSON."""
    status: Literal["in_progress", "completed"] = "completed"


class ResponseUsage(ProtocolRecord):
    """Token counts."""

    input_tokens: int
    input_tokens_details: dict[str, int] = {"cached_tokens": 0, "cache_write_tokens": 0}
    output_tokens: int
    output_tokens_details: dict[str, int] = {"reasoning_tokens": 0}
    total_tokens: int


class IncompleteDetails(ProtocolRecord):
    """Why an answer was cut."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class ResponseObject(ProtocolRecord):
    """Reply to POST /v1/responses."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    model: str
    output: list[OutputMessage | OutputCall]
    usage: ResponseUsage | None = None
    error: None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None = None
    metadata: dict[str, str] = {}
    """The caller's own notes, as they came."""
    parallel_tool_calls: bool = False
    tool_choice: Any = "none"
    """As they were sent, where the model calls tools."""
    tools: list[Any] = []
    temperature: float
    top_p: float
    steering: Steering
    """Ours: what was requested, what the prompt held, and with score what was measured."""


class ResponseEvent(ProtocolRecord):
    """One server-sent event of a streamed reply; which fields it has depends on its type."""

    type: str
    sequence_number: int
    response: ResponseObject | None = Field(None, exclude_if=_absent)
    output_index: int | None = Field(None, exclude_if=_absent)
    content_index: int | None = Field(None, exclude_if=_absent)
    item_id: str | None = Field(None, exclude_if=_absent)
    item: OutputMessage | OutputCall | None = Field(None, exclude_if=_absent)
    part: OutputText | None = Field(None, exclude_if=_absent)
    delta: str | None = Field(None, exclude_if=_absent)
    text: str | None = Field(None, exclude_if=_absent)
    name: str | None = Field(None, exclude_if=_absent)
    arguments: str | None = Field(None, exclude_if=_absent)
    logprobs: list[float] | None = Field(None, exclude_if=_absent)

    @property
    def event_name(self) -> str | None:
        return self.type


class ResponsesReply:
    """The reply to one request, which has one answer."""

    has_done = False

    def __init__(
        self, model: str, steering: Steering, sampling: Sampling, metadata: Mapping[str, str], instructions: str | None
    ):
        self.id, self.created = new_id(RESPONSE), int(time.time())
        self._message_id = f"msg_{uuid.uuid4().hex}"
        self._model, self._steering, self._sampling = model, steering, sampling
        self._metadata, self._instructions = dict(metadata), instructions
        self._text, self._finish, self._num_events = "", "stop", 0
        self._message_place = 0
        self._tools: dict[str, Any] = {}

    def whole(
        self, answers: Sequence[FinishedAnswer], usage: Usage, choice: BestOfChoice | None = None
    ) -> ResponseObject:
        [answer] = answers
        self._text, self._finish = answer.text, answer.finish
        chosen = {} if choice is None else choice.steering
        self._steering = self._steering.model_copy(update={"measured": answer.measured, **chosen})
        return self._response(usage)

    def opening(self, index: int) -> list[ResponseEvent]:
        return [*self._started(), *self._message_begun()]

    def pieces(self, index: int, text: str, tokens: Sequence[ReportedToken] = ()) -> list[ResponseEvent]:
        self._text += text
        return [self._event("response.output_text.delta", **self._place, delta=text, logprobs=[])]

    def closing(self, index: int, finish: Finish, measured: dict[str, float] | None = None) -> list[ResponseEvent]:
        self._finish = finish
        self._steering = self._steering.model_copy(update={"measured": measured})
        return self._message_done()

    def counts(self, usage: Usage) -> list[ResponseEvent]:
        """The last event has the whole response, with its counts."""
        response = self._response(usage)
        return [self._event(f"response.{response.status}", response=response)]

    def _started(self) -> list[ResponseEvent]:
        kinds = ("response.created", "response.in_progress")
        return [self._event(kind, response=self._response()) for kind in kinds]

    def _message_begun(self) -> list[ResponseEvent]:
        empty = OutputMessage(id=self._message_id, status="in_progress", content=[])
        return [
            self._event("response.output_item.added", output_index=self._message_place, item=empty),
            self._event("response.content_part.added", **self._place, part=OutputText(text="")),
        ]

    def _message_done(self) -> list[ResponseEvent]:
        return [
            self._event("response.output_text.done", **self._place, text=self._text, logprobs=[]),
            self._event("response.content_part.done", **self._place, part=OutputText(text=self._text)),
            self._event("response.output_item.done", output_index=self._message_place, item=self._message()),
        ]

    @property
    def _place(self) -> dict[str, object]:
        return {"item_id": self._message_id, "output_index": self._message_place, "content_index": 0}

    def _output(self) -> list[OutputMessage | OutputCall]:
        """Of a whole answer."""
        return [self._message()]

    def _event(self, type: str, **fields: object) -> ResponseEvent:
        event = ResponseEvent.model_validate({"type": type, "sequence_number": self._num_events, **fields})
        self._num_events += 1
        return event

    def _message(self) -> OutputMessage:
        status: Literal["completed", "incomplete"] = "incomplete" if self._finish == "length" else "completed"
        return OutputMessage(id=self._message_id, status=status, content=[OutputText(text=self._text)])

    def _response(self, usage: Usage | None = None) -> ResponseObject:
        """Without its counts it is not whole yet."""
        cut = usage is not None and self._finish == "length"
        counted = None
        if usage is not None:
            counted = ResponseUsage(
                input_tokens=usage.prompt_tokens,
                output_tokens=usage.completion_tokens,
                total_tokens=usage.total_tokens,
            )
        return ResponseObject(
            id=self.id,
            created_at=self.created,
            status="in_progress" if usage is None else "incomplete" if cut else "completed",
            model=self._model,
            output=[] if usage is None else self._output(),
            usage=counted,
            incomplete_details=IncompleteDetails() if cut else None,
            instructions=self._instructions,
            metadata=self._metadata,
            temperature=self._sampling.temperature,
            top_p=self._sampling.top_p,
            steering=self._steering,
            **self._tools,
        )
