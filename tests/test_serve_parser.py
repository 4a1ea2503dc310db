"""The parser: what a request may hold, and that every error is a 400 that names the field and what is allowed."""

import json
from typing import Any

import pytest
from support.chat_requests import USER, problem, request

from serve.allowed import ALLOWED, IN_COMPLETIONS
from serve.chat_request import ChatRequest
from serve.completion_request import CompletionRequest
from serve.json_body import MAX_MESSAGES, MAX_VALUES, numbers
from serve.parser import parse
from serve.protocol import MAX_MESSAGE_CHARS, ProtocolError


def test_the_smallest_request_takes_the_defaults() -> None:
    chat = request()
    assert (chat.temperature, chat.top_p, chat.top_k, chat.seed, chat.stream, chat.stop) == (
        None,  # the endpoint's own
        None,
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
        ([USER, {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}], "messages[1].tool_calls[0]"),
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
    assert set(CompletionRequest.model_fields) <= set(IN_COMPLETIONS)
