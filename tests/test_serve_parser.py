"""The parser: what a request may hold, and that every error is a 400 that names the field and what is allowed."""

import json
from typing import Any

import pytest

from serve.parser import ALLOWED, MAX_MESSAGES, MAX_VALUES, numbers, parse
from serve.protocol import MAX_MESSAGE_CHARS, ChatRequest, ProtocolError
from serve.tolerance import NEUTRAL, UNSUPPORTED

USER = {"role": "user", "content": "Why is the sky blue?"}


def request(**fields: Any) -> ChatRequest:
    return parse(json.dumps({"messages": [USER], **fields}).encode()).chat


def unused(**fields: Any) -> set[str]:
    return set(parse(json.dumps({"messages": [USER], **fields}).encode()).unused)


def problem(**fields: Any) -> ProtocolError:
    with pytest.raises(ProtocolError) as caught:
        request(**fields)
    assert caught.value.status == 400
    return caught.value


def test_the_smallest_request_takes_openai_s_defaults() -> None:
    chat = request()
    assert (chat.temperature, chat.top_p, chat.top_k, chat.seed, chat.stream, chat.stop) == (
        1.0,
        1.0,
        0,
        None,
        False,
        [],
    )
    assert chat.system == ""
    assert chat.attributes == {}
    assert [turn.message.content for turn in chat.turns] == ["Why is the sky blue?"]


def test_a_whole_conversation() -> None:
    chat = request(
        messages=[
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Why "}, {"type": "text", "text": "so?"}]},
            {"role": "assistant", "content": "Well.", "attributes": {"humor": 3}, "refusal": None, "tool_calls": []},
            USER,
        ],
        attributes={"humor": 2.5},
        profile="gaming",
        stream=True,
        stream_options={"include_usage": True},
        max_completion_tokens=5,
        temperature=0,
        top_p=1,
        top_k=7,
        seed=-3,
        stop="\n",
        n=1,
        user="me",
    )
    assert chat.system == "Be brief."
    assert [(turn.message.role, turn.message.content) for turn in chat.turns] == [
        ("user", "Why so?"),
        ("assistant", "Well."),
        ("user", USER["content"]),
    ]
    assert [chat.labels_of(turn) for turn in chat.answers] == [[("messages[2].attributes", {"humor": 3})]]
    assert chat.begun is None
    assert chat.stop == ["\n"]
    assert chat.answer_limit == ("max_completion_tokens", 5)


@pytest.mark.parametrize(
    "field",
    ["stop", "seed", "attributes", "profile", "max_tokens", "temperature", "stream_options", "tools", "logprobs"],
)
def test_null_is_as_good_as_nothing(field: str) -> None:
    assert request(**{field: None}) == request()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 10**400}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.01}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"verbosity": "most"}, "verbosity"),
        ({"reasoning_effort": 3}, "reasoning_effort"),
        ({"metadata": {"attributes": {"humor": 4}}}, "metadata.attributes"),
        ({"top_k": 1.5}, "top_k"),
        ({"seed": 2**63}, "seed"),
        ({"seed": "7"}, "seed"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"stop": 3}, "stop"),
        ({"stream": 1}, "stream"),
        ({"stream": True, "stream_options": {"include_usage": "yes"}}, "stream_options.include_usage"),
        ({"attributes": [1]}, "attributes"),
        ({"profile": 1}, "profile"),
        ({"model": 1}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hello"}, "messages"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(fields: dict[str, Any], param: str) -> None:
    wrong = problem(**fields)
    assert wrong.param == param
    assert param in str(wrong)
    assert ALLOWED[param] in str(wrong)
    assert len(str(wrong)) < 400


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([5], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "bot", "content": "x"}], "messages[0].role"),
        ([{"role": [], "content": "x"}], "messages[0].role"),
        ([{"role": "tool", "content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 5}], "messages[0].content"),
        ([{"role": "user", "content": "  "}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": ["x"]}], "messages[0].content[0]"),
        (
            [{"role": "user", "content": "x"}, {"role": "assistant"}, {"role": "user", "content": ""}],
            "messages[2].content",
        ),
        ([{"role": "system", "content": "x"}], "messages"),
        ([{**USER, "attributes": {"humor": 1}}], "messages[0].attributes"),
        ([{**USER, "contents": "me"}], "messages[0].contents"),
        ([USER, {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}], "messages[1].tool_calls"),
        ([USER, {"role": "assistant", "content": "x", "attributes": 4}, USER], "messages[1].attributes"),
    ],
)
def test_a_wrong_conversation_names_the_message(messages: list[Any], param: str) -> None:
    wrong = problem(messages=messages)
    assert wrong.param == param
    assert param in str(wrong)


def test_an_unknown_field_names_the_nearest() -> None:
    assert "'temprature' (did you mean 'temperature'?)" in str(problem(temprature=1))
    assert problem(temprature=1).param == "temprature"
    assert "did you mean 'content'" in str(problem(messages=[{"role": "user", "content": "x", "contents": "y"}]))
    assert "include_usage" in str(problem(stream=True, stream_options={"include_usages": True}))
    assert "unknown field 'scored' (did you mean 'score'?)" in str(problem(scored=True))


@pytest.mark.parametrize("field", [*NEUTRAL, *UNSUPPORTED])
def test_what_would_change_the_answer_and_is_not_here_is_refused_by_name(field: str) -> None:
    wrong = problem(**{field: {"some": "thing"}})
    assert (wrong.param, wrong.code) == (field, "unsupported_parameter")


@pytest.mark.case("a parameter at its neutral value")
@pytest.mark.parametrize(
    "fields",
    [
        {"tools": [], "presence_penalty": 0, "logprobs": False, "response_format": {"type": "text"}},
        {"repetition_penalty": 1, "min_p": 0.0, "ignore_eos": False, "skip_special_tokens": True},
        {"tool_choice": "auto", "function_call": "none", "logit_bias": {}, "modalities": ["text"]},
        {"store": None, "a_parameter_of_tomorrow": False, "another": [], "third": None},
    ],
)
def test_asking_for_nothing_is_no_mistake(fields: dict[str, Any]) -> None:
    assert request(**fields) == request()
    assert unused(**fields) == set()


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"presence_penalty": False}, "presence_penalty"),
        ({"presence_penalty": 0.1}, "presence_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_p": 0.1}, "min_p"),
        ({"ignore_eos": True}, "ignore_eos"),
        ({"skip_special_tokens": False}, "skip_special_tokens"),
        ({"a_parameter_of_tomorrow": 0}, "a_parameter_of_tomorrow"),
        ({"attribute": {}}, "attribute"),
        ({"scores": False}, "scores"),
        ({"add_generation_prompt": False}, "add_generation_prompt"),
    ],
)
def test_what_is_not_neutral_is_refused_and_so_is_one_of_our_names_written_wrong(
    fields: dict[str, Any], param: str
) -> None:
    assert problem(**fields).param == param


@pytest.mark.case("hints of clients that run as they come")
def test_what_changes_no_answer_is_taken_and_reported() -> None:
    hints = {
        "store": True,
        "metadata": {"run": "7"},
        "safety_identifier": "me",
        "prompt_cache_key": "k",
        "parallel_tool_calls": True,
        "service_tier": "flex",
        "prediction": {"type": "content", "content": "x"},
    }
    assert request(**hints) == request()
    assert unused(**hints) == set(hints)
    marked = {"type": "text", "text": USER["content"], "cache_control": {"type": "ephemeral"}}
    noted = [{**USER, "name": "me", "id": "1", "content": [marked]}]
    assert request(messages=noted) == request()
    assert unused(messages=noted) == {"messages[].name", "messages[].id", "messages[].content[].cache_control"}
    answer = {"role": "assistant", "content": "So.", "reasoning": "Hm.", "refusal": None, "annotations": []}
    assert unused(messages=[USER, answer, USER]) == {"messages[].reasoning"}


@pytest.mark.case("26-openai-clients")
def test_stream_options_of_newer_clients_are_hints() -> None:
    plain = request(stream=True, stream_options={"include_usage": True})
    newer = {"include_usage": True, "include_obfuscation": True, "continuous_usage_stats": True}
    assert request(stream=True, stream_options=newer) == plain
    assert unused(stream=True, stream_options=newer) == {
        "stream_options.include_obfuscation",
        "stream_options.continuous_usage_stats",
    }


TOOLS = [{"type": "function", "function": {"name": "f"}}]


@pytest.mark.case("tools that a client sends unasked")
def test_tools_that_need_not_be_used_are_not_used() -> None:
    for fields in ({"tools": TOOLS}, {"tools": TOOLS, "tool_choice": "auto"}, {"tools": TOOLS, "tool_choice": "none"}):
        assert request(**fields) == request()
        assert unused(**fields) == {"tools"}
    assert unused(functions=[{"name": "f"}], function_call="auto") == {"functions"}


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "f"}}, 5])
def test_tools_that_must_be_used_are_refused(choice: object) -> None:
    assert problem(tools=TOOLS, tool_choice=choice).param == "tool_choice"
    assert problem(functions=TOOLS, function_call={"name": "f"}).param == "function_call"


def test_an_endpoint_may_refuse_tools_that_it_cannot_use() -> None:
    def parsed(**fields: Any) -> ChatRequest:
        return parse(json.dumps({"messages": [USER], **fields}).encode(), ignore_tools=False).chat

    with pytest.raises(ProtocolError, match="ignore_tools is off") as caught:
        parsed(tools=TOOLS)
    assert caught.value.param == "tools"
    assert parsed(tools=TOOLS, tool_choice="none") == parsed(tools=[]) == request()


@pytest.mark.case("turns in any order")
def test_turns_come_in_any_order() -> None:
    def said(*messages: tuple[str, str]) -> tuple[str, list[tuple[str, str]]]:
        chat = request(messages=[{"role": role, "content": content} for role, content in messages])
        return chat.system, [(turn.message.role, turn.message.content) for turn in chat.turns]

    u, a = ("user", "q"), ("assistant", "a")
    assert said(("system", "s"), u, ("developer", "t"), u) == ("s\n\nt", [("user", "q\n\nq")])
    assert said(a, u, a, a, u) == ("", [a, u, ("assistant", "a\n\na"), u])
    assert said(u, u, a) == ("", [("user", "q\n\nq"), a])
    assert said(u, ("user", " ")) == ("", [("user", "q\n\n ")])


def test_an_answer_that_is_last_is_to_be_continued() -> None:
    begun = {"role": "assistant", "content": "It", "attributes": {"humor": 1}}
    chat = request(messages=[USER, begun], continue_final_message=True, add_generation_prompt=False)
    assert chat.begun is not None
    assert (chat.begun.message.content, chat.answers) == ("It", [])
    assert chat.labels_of(chat.begun) == [("messages[1].attributes", {"humor": 1})]


def test_a_byte_order_mark_is_no_mistake() -> None:
    assert parse(b"\xef\xbb\xbf" + json.dumps({"messages": [USER]}).encode()).chat == request()


def test_fields_that_contradict_each_other() -> None:
    assert problem(max_tokens=3, max_completion_tokens=4).param == "max_tokens"
    assert request(max_tokens=3, max_completion_tokens=3).answer_limit[1] == 3
    assert problem(stream_options={"include_usage": True}).param == "stream_options"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": -Infinity}',
        b'{"messages": [{"role": "user", "content": "x"}], "temperature": 1e999}',
        b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
        b'{"a":' * 100_000,
        b"[" * 500 + b"]" * 500,
        b'{"x": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"messages": [{"role": "user", "content": "x"}], "\\udfff": 1}',
    ],
)
def test_no_body_breaks_the_parser(body: bytes) -> None:
    with pytest.raises(ProtocolError) as caught:
        parse(body)
    assert caught.value.status == 400
    error = json.loads(json.dumps(caught.value.body().model_dump(), ensure_ascii=False).encode())["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) < 500


def exchange(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}, {"role": "assistant", "content": text}]


@pytest.mark.case("B12: a conversation of 16,131 messages")
def test_the_number_of_messages_is_limited() -> None:
    many = problem(messages=[*exchange("a") * 8065, USER])
    assert (many.param, str(many)) == ("messages", f"messages has 16131 entries; allowed: at most {MAX_MESSAGES}")
    body = json.dumps({"messages": [*exchange("a"), USER]}).encode()
    assert len(parse(body, 3).chat.messages) == 3
    with pytest.raises(ProtocolError, match="messages has 3 entries; allowed: at most 2"):
        parse(body, 2)


@pytest.mark.case("B12: a megabyte of zeros")
@pytest.mark.parametrize(
    "fields",
    [
        {"x": [0] * 500_000},
        {"x": {str(i): 0 for i in range(20_000)}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 30_000}]},
        {"messages": [{**USER, "x": [[]] * 40_000}]},
    ],
)
def test_the_number_of_values_is_limited(fields: dict[str, Any]) -> None:
    body = json.dumps({"messages": [USER], **fields}).encode()
    with pytest.raises(ProtocolError, match=f"more than {MAX_VALUES} values: send fewer messages, or fewer parts"):
        parse(body)


def test_the_longest_conversation_is_within_the_number_of_values() -> None:
    answer = {
        "role": "assistant",
        "content": [{"type": "text", "text": "a"}],
        "attributes": dict.fromkeys("abcdefg", 1),
    }
    assert len(request(messages=[*[USER, answer] * 511, USER]).messages) == 1023


@pytest.mark.case("B12: JSON that is too deep")
@pytest.mark.parametrize("levels", [30, 500, 100_000])
def test_the_depth_of_a_body_is_limited_by_name(levels: int) -> None:
    for body in (b"[" * levels + b"]" * levels, b'{"messages": ' + b'{"a":' * levels + b"1" + b"}" * (levels + 1)):
        with pytest.raises(ProtocolError, match=r"deeper than 16 levels|the body is .*: send a JSON object"):
            parse(body)


ESCAPES = "\x1b]0;you\x07\n\r\x9b2J\u202e\u2028"


@pytest.mark.case("B11: escapes from a request")
@pytest.mark.parametrize(
    "fields",
    [
        {ESCAPES: 1},
        {ESCAPES * 10_000: 1},
        {"model": [ESCAPES]},
        {"attributes": ESCAPES},
        {"messages": [{"role": ESCAPES, "content": "x"}]},
        {"messages": [{"role": "user", "content": [ESCAPES]}]},
        {"messages": [{"role": "tool" + ESCAPES, "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": ESCAPES}]}]},
        {"\ud800" + ESCAPES * 10_000: 1},
        {"tools": ESCAPES},
    ],
)
def test_an_error_is_one_printable_line_whatever_it_repeats(fields: dict[str, Any]) -> None:
    error = problem(**fields).body().error
    for text, limit in ((error.message, MAX_MESSAGE_CHARS), (error.param or "", 200)):
        assert text.isprintable()
        assert len(text) <= limit * 10, "every character may be escaped"


def test_the_constant_that_is_no_json_is_named() -> None:
    with pytest.raises(ProtocolError, match="NaN"):
        parse(b'{"temperature": NaN}')


def test_attribute_values_fit_to_be_checked() -> None:
    assert numbers({"humor": 2.5, "quality": 3}) == {"humor": 2.5, "quality": 3}
    short = numbers({"h" * 500: 1, "a": 10**400, "b": float("inf"), "c": True, "d": ["x" * 500], "e": None})
    assert all(isinstance(value, str) for name, value in short.items() if name[0] != "h")
    assert max(len(name) + len(str(value)) for name, value in short.items()) < 150


def test_every_bounded_field_says_what_is_allowed() -> None:
    assert set(ChatRequest.model_fields) <= set(ALLOWED)
