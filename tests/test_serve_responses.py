"""POST /v1/responses: OpenAI's newer route, in the shape that its own types read."""

import json
from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from support.asgi import KEYS_TEXT, Answered, Scripted, app_around, ask

from actors.generation.protocol import Grammar
from serve.request import Delta, GenerationRequest, Started

ROUTE = "/v1/responses"


def responded(script: Scripted, **fields: Any) -> Answered:
    return ask(app_around(script.generate, rated), path=ROUTE, **fields)


async def rated(request: GenerationRequest, answer: str) -> dict[str, float]:
    return {"humor": 1.5}


def test_text_in_text_out() -> None:
    script = Scripted()
    sent = {"input": "Why?", "instructions": "Be brief.", "max_output_tokens": 9, "temperature": 0.5}
    answered = responded(
        script, **sent, attributes={"humor": 4}, text={"verbosity": "low"}, score=True, metadata={"run": "7"}
    )
    [request] = script.requests
    assert (request.system, [m.content for m in request.messages]) == ("Be brief.", ["Why?"])
    assert (request.sampling.max_tokens, request.sampling.temperature) == (9, 0.5)
    assert (request.attributes["humor"], request.attributes["verbosity"]) == (4, 0)
    body = answered.json
    read = Response.model_validate(body)
    assert (read.output_text, read.status, read.object) == ("It is.", "completed", "response")
    assert (read.metadata, read.instructions) == ({"run": "7"}, "Be brief.")
    assert read.usage is not None
    assert (read.usage.input_tokens, read.usage.output_tokens) == (7, 2)
    assert body["steering"]["measured"] == {"humor": 1.5}


def test_a_conversation_and_a_form() -> None:
    script = Scripted()
    parts = [{"type": "input_text", "text": "Wh"}, {"type": "input_text", "text": "y?"}]
    earlier = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"}
    conversation = [
        {"role": "user", "content": parts},
        earlier | {"content": [{"type": "output_text", "text": "So.", "annotations": []}]},
        {"role": "user", "content": "And?"},
    ]
    form = {"type": "json_schema", "name": "a", "strict": True, "schema": {"type": "object"}}
    assert responded(script, input=conversation, text={"format": form}, store=True, truncation="disabled").status == 200
    [request] = script.requests
    assert [(m.role, m.content) for m in request.messages] == [("user", "Why?"), ("assistant", "So."), ("user", "And?")]
    assert request.sampling.grammar == Grammar("json_schema", '{"type": "object"}')
    assert request.grammar_field == "text.format"
    assert request.input_field == "input", "what a policy refuses names this route's field"


def test_a_stream_is_the_events_that_openai_s_types_know() -> None:
    cut = Scripted((Started(7), Delta("It ", 1), Delta("is.", 2), Delta("", 2, "length")))
    sent = responded(cut, input="Why?", stream=True, score=True).body.decode().split("\n\n")
    assert sent.pop() == ""
    read: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    events = []
    for event in sent:
        name, data = event.split("\n")
        found = read.validate_python(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found.type}"
        events.append(found)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type.removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "incomplete"),
    ]
    last = events[-1].response
    assert (last.output_text, last.incomplete_details.reason, last.usage.total_tokens) == (
        "It is.",
        "max_output_tokens",
        9,
    )
    assert last.model_extra["steering"]["measured"] == {"humor": 1.5}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": [5]}, "input[0]"),
        ({"input": "  "}, "input[0].content"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input"),
        ({"input": [{"type": "reasoning"}]}, "input[0].type"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input[0].content[0]"),
        ({"input": [{"role": "robot", "content": "a"}]}, "input[0].role"),
        ({"input": [{"role": "robot", "content": "a"}], "instructions": "b"}, "input[0].role"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "a", "metadata": {"a": 1}}, "metadata"),
        ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "a", "text": 5}, "text"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "a", "truncation": "auto"}, "truncation"),
        ({"input": "a", "n": 2}, "n"),
        ({"input": "a", "attributes": {"humor": 9}}, "attributes.humor"),
        ({"input": "a", "tools": [{"type": "function"}], "tool_choice": "required"}, "tool_choice"),
    ],
)
def test_an_error_names_the_field_of_this_route(fields: dict[str, Any], param: str) -> None:
    answered = responded(Scripted(), **fields)
    assert (answered.status, answered.json["error"]["param"]) == (400, param)


def test_a_team_s_profile_holds_here_too() -> None:
    script = Scripted()
    app = app_around(script.generate, keys_text=KEYS_TEXT)
    assert ask(app, "key-games", ROUTE, input="Why?").status == 200
    assert script.requests[0].attributes["humor"] == 3
    assert ask(app, "key-games", ROUTE, input="Why?", attributes={"toxicity": 4}).status == 400
    assert ask(app, "key-nobody", ROUTE, input="Why?").status == 401
