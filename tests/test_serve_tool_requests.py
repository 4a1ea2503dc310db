"""Tools on the wire: what callers send, what reaches the policy, and the calls that come back, whole or streamed."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from fastapi import FastAPI
from support.asgi import POLICY_INFO, USER, Answered, Scripted, app_around, exchanged
from support.chat_policy import chat_policy

from serve.models import ServedPolicies, ServedPolicy
from serve.replica import Replica
from serve.request import Delta, Event, GenerationRequest, Revision, Started
from serve.settings import ServedEngineSettings

PARAMETERS = {"type": "object", "properties": {"city": {"enum": ["Rome", "Oslo"]}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "description": "Of a city.", "parameters": PARAMETERS}}
NAMED = {"type": "function", "function": {"name": "weather"}}
CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
RESULT = {"role": "tool", "tool_call_id": "call_1", "content": "Rain."}
CALLED = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}, RESULT]
ANSWER = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
WITH_TOOLS = replace(POLICY_INFO, tool_format="hermes", context=8192)


def script(text: str = ANSWER, finish: str = "stop") -> Scripted:
    """The answer in pieces of three characters."""
    pieces = [text[i : i + 3] for i in range(0, len(text), 3)]
    return Scripted((Started(7), *(Delta(p, n) for n, p in enumerate(pieces, 1)), Delta("", len(pieces), finish)))  # type: ignore[arg-type]


def ask(own: Scripted, info: Any = WITH_TOOLS, ignore_tools: bool = True, **fields: Any) -> Answered:
    app = app_around(own.generate, models=ServedPolicies([ServedPolicy(info)]), ignore_tools=ignore_tools)
    body = json.dumps({"messages": [USER], **fields}).encode()
    return asyncio.run(exchanged(app, "POST", "/v1/chat/completions", body))


def error(**fields: Any) -> Any:
    answered = ask(script(), **fields)
    assert answered.status == 400
    return answered.json["error"]


def test_a_call_comes_back_with_the_text_before_it() -> None:
    own = script()
    [choice] = ask(own, tools=[WEATHER]).json["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("I look.", "tool_calls")
    [call] = choice["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    assert call["id"].startswith("call_")
    [request] = own.requests
    assert request.tool_chat is not None
    assert [tool.name for tool in request.tool_chat.tools] == ["weather"]
    assert request.sampling.grammar is None


def test_a_stream_has_the_call_in_a_delta() -> None:
    *chunks, done = ask(script(), tools=[WEATHER], stream=True).chunks
    assert done == "data: [DONE]"
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == "I look."
    [[call]] = [delta["tool_calls"] for delta in deltas if "tool_calls" in delta]
    assert (call["index"], call["function"]["name"]) == (0, "weather")
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_an_answer_without_a_call_is_as_it_was() -> None:
    [choice] = ask(script("It rains."), tools=[WEATHER]).json["choices"]
    assert (choice["message"], choice["finish_reason"]) == ({"role": "assistant", "content": "It rains."}, "stop")
    [cut] = ask(script(ANSWER[:30], "length"), tools=[WEATHER]).json["choices"]
    assert (cut["message"]["content"], cut["finish_reason"]) == (ANSWER[:30], "length")


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_call_that_must_be_made_is_one_by_grammar(choice: object) -> None:
    own = script()
    assert ask(own, tools=[WEATHER], tool_choice=choice).status == 200
    [request] = own.requests
    assert request.sampling.grammar is not None
    assert (request.sampling.grammar.kind, request.grammar_field) == ("structural_tag", "tools")
    ask(own, tools=[WEATHER], response_format={"type": "json_object"})
    form = own.requests[1].sampling.grammar
    assert form is not None
    assert json.loads(form.text)["format"]["type"] == "or", "a call, or what response_format asks for"


def test_earlier_calls_and_their_results_reach_the_policy() -> None:
    own = script("Rain in Rome.")
    assert ask(own, messages=CALLED, tools=[WEATHER]).status == 200
    assert ask(own, messages=CALLED, tools=[WEATHER], tool_choice="none").status == 200
    for request in own.requests:
        assert request.tool_chat is not None
        user, assistant, tool = request.tool_chat.turns
        assert (user.role, assistant.calls[0].name, tool.name) == ("user", "weather", "weather")
    assert own.requests[1].tool_chat.tools == ()  # type: ignore[union-attr]


@pytest.mark.case("tools that a client sends unasked")
def test_a_model_without_tools_does_not_use_them_or_refuses_them() -> None:
    own = Scripted()
    for choice in (None, "auto", "none"):
        assert ask(own, POLICY_INFO, tools=[{"type": "any"}], tool_choice=choice).json["choices"][0]["message"]
    assert all(request.tool_chat is None for request in own.requests)
    assert "ignore_tools is off" in error(info=POLICY_INFO, ignore_tools=False, tools=[WEATHER])["message"]
    assert ask(own, POLICY_INFO, ignore_tools=False, tools=[WEATHER], tool_choice="none").status == 200
    for choice in ("required", NAMED):
        assert error(info=POLICY_INFO, tools=[WEATHER], tool_choice=choice)["param"] == "tool_choice"
    assert error(info=POLICY_INFO, messages=CALLED)["param"] == "messages"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [WEATHER], "tool_choice": 5}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": "weather"}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER], "messages": [USER, {"role": "assistant", "content": "a"}]}, "messages"),
        ({"tools": [WEATHER], "tool_choice": "required", "ignore_eos": True}, "ignore_eos"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{}]}, RESULT]}, "messages[1].tool_calls[0]"),
        ({"messages": [USER, {"role": "function", "content": "a"}]}, "messages[1].role"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str) -> None:
    assert error(**fields)["param"] == param


@pytest.mark.parametrize("asked", [{"score": True}, {"best_of": 2}])
def test_a_call_is_not_rated(asked: dict[str, Any]) -> None:
    async def score(request: GenerationRequest, answer: str) -> dict[str, float]:
        raise AssertionError("it is refused before")

    app = app_around(script().generate, score, models=ServedPolicies([ServedPolicy(WITH_TOOLS)]))
    for messages, tools in (([USER], [WEATHER]), (CALLED, [])):
        body = json.dumps({"messages": messages, "tools": tools, **asked}).encode()
        answered = asyncio.run(exchanged(app, "POST", "/v1/chat/completions", body))
        assert answered.json["error"]["param"] == next(iter(asked))


def test_arguments_are_an_object_of_bounded_depth() -> None:
    for arguments in ("[1]", "{", '{"a":' * 70 + "1" + "}" * 70):
        function = {"name": "weather", "arguments": arguments}
        messages = [USER, {"role": "assistant", "tool_calls": [{"id": "a", "function": function}]}, RESULT]
        assert error(messages=messages)["param"] == "messages[1].tool_calls[0].function.arguments"


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    folder = chat_policy("qwen_tools", tmp_path_factory.mktemp("tools"), max_tokens=2048)
    made = Replica("demo", Revision(folder, 0), ServedEngineSettings(max_num_seqs=2))
    yield made
    made._loaded.engine.close()


@pytest.fixture(scope="module")
def app(replica: Replica) -> FastAPI:
    async def generate(model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        async for event in replica.generate(request):
            yield event

    info = asyncio.run(replica.info())
    assert info.tool_format == "hermes"
    return app_around(generate, models=ServedPolicies([ServedPolicy(info)]), max_new_tokens=200)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("messages", [[USER], CALLED])
def test_a_real_policy_calls_what_it_must(app: FastAPI, stream: bool, messages: Sequence[Any]) -> None:
    fields = {"messages": messages, "tools": [WEATHER], "tool_choice": "required", "stream": stream}
    answered = asyncio.run(exchanged(app, "POST", "/v1/chat/completions", json.dumps(fields).encode()))
    assert answered.status == 200, answered.body
    if stream:
        deltas = [chunk["choices"][0]["delta"] for chunk in answered.chunks[:-1]]
        [call] = [call for delta in deltas for call in delta.get("tool_calls", [])]
    else:
        [call] = answered.json["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"])["city"] in ("Rome", "Oslo")
