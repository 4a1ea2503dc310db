"""Tools on OpenAI's newer route: flat functions in, calls as items of their own, and their outputs back in."""

import asyncio
import json
from typing import Any

import pytest
from support.asgi import POLICY_INFO, Answered, app_around, exchanged
from test_serve_tool_requests import ANSWER, PARAMETERS, WITH_TOOLS, script

from serve.models import ServedPolicies, ServedPolicy

WEATHER = {"type": "function", "name": "weather", "description": "Of a city.", "parameters": PARAMETERS, "strict": True}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Rome"}'}
OUTPUT = {"type": "function_call_output", "call_id": "call_1", "output": "Rain."}
USER = {"role": "user", "content": "Rain?"}


def ask(own: Any, info: Any = WITH_TOOLS, **fields: Any) -> Answered:
    app = app_around(own.generate, models=ServedPolicies([ServedPolicy(info)]))
    return asyncio.run(exchanged(app, "POST", "/v1/responses", json.dumps({"input": "Rain?", **fields}).encode()))


def test_a_call_is_an_item_beside_the_message() -> None:
    own = script()
    answered = ask(own, tools=[WEATHER]).json
    message, call = answered["output"]
    assert message["content"][0]["text"] == "I look."
    assert {key: call[key] for key in ("type", "name", "arguments", "status")} == {
        "type": "function_call",
        "name": "weather",
        "arguments": '{"city": "Rome"}',
        "status": "completed",
    }
    assert (answered["tools"], answered["tool_choice"]) == ([WEATHER], "auto")
    [alone] = ask(script(ANSWER.removeprefix("I look.\n")), tools=[WEATHER]).json["output"]
    assert alone["type"] == "function_call"


def test_a_stream_has_the_events_of_both_items_in_order() -> None:
    own = script()
    sent = ask(own, tools=[WEATHER], stream=True).body.decode()
    events = [json.loads(line.removeprefix("data: ")) for line in sent.splitlines() if line.startswith("data: ")]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    added = [(e["output_index"], e["item"]["type"]) for e in events if e["type"] == "response.output_item.added"]
    assert added == [(0, "message"), (1, "function_call")]
    [done] = [e for e in events if e["type"] == "response.function_call_arguments.done"]
    assert (done["name"], done["arguments"], done["output_index"]) == ("weather", '{"city": "Rome"}', 1)
    assert [item["type"] for item in events[-1]["response"]["output"]] == ["message", "function_call"]
    assert sum(e["type"] == "response.output_item.done" for e in events) == 2


def test_earlier_calls_of_one_answer_are_one_turn() -> None:
    own = script("Rain.")
    second = {**CALL, "call_id": "call_2"}
    sent = [USER, CALL, second, OUTPUT, {**OUTPUT, "call_id": "call_2"}]
    assert ask(own, input=sent, tools=[WEATHER]).status == 200
    chat = own.requests[0].tool_chat
    assert chat is not None
    assert [(turn.role, len(turn.calls)) for turn in chat.turns] == [
        ("user", 0),
        ("assistant", 2),
        ("tool", 0),
        ("tool", 0),
    ]
    assert len(own.requests[0].labels) == 1


def test_a_call_that_must_be_made_is_one_by_grammar() -> None:
    own = script()
    for choice in ("required", {"type": "function", "name": "weather"}):
        assert ask(own, tools=[WEATHER], tool_choice=choice).status == 200
    assert [request.grammar_field for request in own.requests] == ["tools", "tools"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"info": POLICY_INFO, "tools": [WEATHER], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"input": [USER, {"type": "reasoning"}]}, "input[1].type"),
        ({"input": [USER, OUTPUT]}, "input[1].role"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    answered = ask(script(), **fields)
    assert (answered.status, answered.json["error"]["param"]) == (400, param)


def test_a_model_without_tools_answers_as_before() -> None:
    answered = ask(script("It rains."), POLICY_INFO, tools=[WEATHER]).json
    assert [item["type"] for item in answered["output"]] == ["message"]
    assert (answered["tools"], answered["tool_choice"]) == ([], "none")
