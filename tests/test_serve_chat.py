"""A chat request from its bytes to its reply, whole and streamed, and the line it leaves in the log."""

import asyncio
import json
from typing import Any

import pytest
import ray.exceptions
from support.asgi import KEYS_TEXT, LAB, USER, Scripted, app_around, ask, chat, exchanged, refused

from data.conversation import Message
from serve.disconnects import DisconnectsOfRay
from serve.request import Delta, Failed, Started


def test_a_whole_answer() -> None:
    script = Scripted()
    answered = chat(script, attributes={"humor": 2.5})
    assert answered.status == 200
    assert answered.json["choices"][0] == {
        "index": 0,
        "message": {"role": "assistant", "content": "It is."},
        "finish_reason": "stop",
        "logprobs": None,
    }
    assert answered.json["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert answered.json["steering"] == {"requested": {"humor": 2.5}, "effective": {**LAB.defaults(), "humor": 2}}
    assert answered.json["model"] == "demo"
    assert script.requests[0].attributes == {**LAB.defaults(), "humor": 2}
    assert script.requests[0].sampling.max_tokens == 64
    assert script.num_closed == 1


def test_a_streamed_answer() -> None:
    script = Scripted()
    answered = chat(script, stream=True, stream_options={"include_usage": True})
    assert answered.headers["content-type"].startswith("text/event-stream")
    *chunks, done = answered.chunks
    assert done == "data: [DONE]"
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"]) == "It is."
    assert chunks[0]["steering"]["effective"] == LAB.defaults()
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["usage"]["completion_tokens"] == 2
    assert all("usage" not in c for c in chat(Scripted(), stream=True).chunks[:-1])
    assert script.num_closed == 1


def test_everything_reaches_the_generation_request() -> None:
    script = Scripted()
    messages = [
        {"role": "system", "content": "Brief."},
        USER,
        {"role": "assistant", "content": "So.", "attributes": {"humor": 4}},
        USER,
    ]
    chat(
        script,
        messages=messages,
        profile="gaming",
        max_tokens=9,
        temperature=0,
        top_p=0.5,
        top_k=3,
        seed=5,
        stop=["x", "y"],
        model="demo",
    )
    request = script.requests[0]
    assert request.system == "Brief."
    assert request.messages == (Message("user", "Why?"), Message("assistant", "So."), Message("user", "Why?"))
    assert request.labels == ({"humor": 4.0},)
    assert request.attributes["humor"] == 3
    own = request.sampling
    assert (own.max_tokens, own.temperature, own.top_p, own.top_k, own.seed, request.stop) == (
        9,
        0.0,
        0.5,
        3,
        5,
        ("x", "y"),
    )


@pytest.mark.parametrize(
    ("fields", "param", "part"),
    [
        ({"attributes": {"humor": 5}}, "attributes.humor", "0 to 4"),
        ({"attributes": {"humor": "3"}}, "attributes.humor", "0 to 4"),
        ({"attributes": {"humor": 10**400}}, "attributes.humor", "0 to 4"),
        ({"attributes": {"humor": None}}, "attributes.humor", "0 to 4"),
        ({"attributes": {"humour": 1}}, "attributes.humour", "did you mean 'humor'"),
        ({"attributes": {"x" * 300: 1}}, "attributes." + "x" * 60 + "…", "lab"),
        (
            {"attributes": {"toxicity": 1}, "profile": "support"},
            "attributes.toxicity",
            "profile 'support' locks it at 0",
        ),
        ({"profile": "suport"}, "profile", "did you mean 'support'"),
        ({"max_tokens": 0}, "max_tokens", "from 1"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "from 1"),
        (
            {"messages": [USER, {"role": "assistant", "content": "x", "attributes": {"humor": 9}}, USER]},
            "messages[1].attributes.humor",
            "0 to 4",
        ),
    ],
)
def test_an_error_names_field_and_range(fields: dict[str, Any], param: str, part: str) -> None:
    error = refused(**fields)
    assert error["param"] == param
    assert part in error["message"]


@pytest.mark.case("a longer answer than there is room for")
@pytest.mark.parametrize(
    ("limit", "asked", "expected"),
    [(64, {"max_tokens": 10**6}, 64), (64, {}, 64), (None, {"max_tokens": 10**6}, 512), (None, {}, 128), (9, {}, 9)],
)
def test_the_length_of_an_answer_is_cut_to_what_fits(limit: int | None, asked: dict[str, int], expected: int) -> None:
    script = Scripted((Started(7), Delta("It", 2, "length")))
    app = app_around(script.generate, max_new_tokens=limit)
    answered = ask(app, messages=[USER], **asked)
    assert (answered.status, answered.json["choices"][0]["finish_reason"]) == (200, "length")
    assert script.requests[0].sampling.max_tokens == expected


@pytest.mark.case("turns in any order")
def test_the_policy_gets_a_conversation_as_in_training() -> None:
    script = Scripted()
    chat(
        script,
        messages=[
            {"role": "assistant", "content": "Hello.", "attributes": {"humor": 1}},
            {"role": "system", "content": "Brief."},
            USER,
            {**USER, "name": "me"},
            {"role": "assistant", "content": "So", "attributes": {"humor": 2}},
            {"role": "assistant", "content": "it is."},
            {"role": "system", "content": "Kind."},
            USER,
            {"role": "assistant", "content": "Because", "attributes": {"humor": 4, "verbosity": 1}},
        ][1:],
        attributes={"verbosity": 3},
    )
    request = script.requests[0]
    assert request.system == "Brief.\n\nKind."
    assert [(m.role, m.content) for m in request.messages] == [
        ("user", "Why?\n\nWhy?"),
        ("assistant", "So\n\nit is."),
        ("user", "Why?"),
        ("assistant", "Because"),
    ]
    assert request.labels == ({"humor": 2.0},), "of the earlier answer"
    assert (request.begun, request.attributes["humor"], request.attributes["verbosity"]) == ("Because", 4, 3)


def test_another_model_is_not_here() -> None:
    error = refused(404, model="gpt-4")
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "demo" in error["message"]


def test_a_long_body_is_refused_before_it_is_read() -> None:
    error = refused(413, messages=[{"role": "user", "content": "x" * 3000}])
    assert "2000 bytes" in error["message"]


def test_a_generation_that_cannot_start_is_an_error_even_when_streamed() -> None:
    for stream in (False, True):
        answered = chat(Scripted((Failed("busy", 429, retry_after_s=3),)), stream=stream)
        assert answered.status == 429
        assert answered.headers["retry-after"] == "3"
        assert answered.json["error"]["type"] == "rate_limit_error"


def test_a_generation_that_breaks_off() -> None:
    events = (Started(1), Delta("a", 1), Failed("lost", 503))
    assert chat(Scripted(events)).status == 503
    chunks = chat(Scripted(events), stream=True).chunks
    assert chunks[-1]["error"]["message"] == "lost"
    assert "data: [DONE]" not in chunks


def test_a_client_that_leaves_ends_the_generation() -> None:
    script = Scripted((Started(1), Delta("a", 1)), stalls=True)
    chat(script, stream=True, gone_after=2)
    assert script.num_closed == 1


def test_each_request_is_one_line_in_the_log_without_its_texts() -> None:
    lines: list[str] = []
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT, lines=lines)
    secret = {"role": "user", "content": "my password is hunter2"}
    ask(app, "key-games", messages=[secret])
    ask(app, "key-games", messages=[secret], stream=True)
    ask(app, "key-games", messages=[secret], temperature=9)
    ask(app, "wrong", messages=[secret])
    records = [json.loads(line) for line in lines]
    assert [
        (r["status"], r["code"], r["team"], r["stream"], r["prompt_tokens"], r["completion_tokens"]) for r in records
    ] == [
        (200, None, "games", False, 7, 2),
        (200, None, "games", True, 7, 2),
        (400, "invalid_request", "games", False, 0, 0),
        (401, "invalid_api_key", "", False, 0, 0),
    ]
    assert records[1]["first_text_s"] is not None
    assert "hunter2" not in "".join(lines)
    assert "It is" not in "".join(lines)


@pytest.mark.case("hints are noted, not refused")
def test_what_was_not_used_is_noted_once_for_each_key() -> None:
    lines: list[str] = []
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT, lines=lines)
    for key, hints in (
        ("key-games", {"store": True}),
        ("key-games", {"store": True, "tools": [{}]}),
        ("key-all", {"store": True}),
        ("wrong", {"user": "x", "store": True}),
    ):
        ask(app, key, messages=[USER], **hints)
    noted = [record for line in lines if (record := json.loads(line))["event"] == "unused"]
    assert [(record["team"], record["parameters"]) for record in noted] == [
        ("games", ["store"]),
        ("games", ["tools"]),
        ("all", ["store"]),
    ]


def test_a_caller_that_leaves_is_logged_once() -> None:
    lines: list[str] = []
    body = json.dumps({"messages": [USER], "stream": True}).encode()
    for events in ((Started(1), Delta("a", 1)), (Started(1),)):  # in mid-answer, and before its first text
        script = Scripted(events, stalls=True)
        asyncio.run(
            exchanged(
                app_around(script.generate, lines=lines), "POST", "/v1/chat/completions", body, gone_after=len(events)
            )
        )
        assert script.num_closed == 1
    asyncio.run(
        exchanged(
            app_around(Scripted((Started(1), Failed("lost", 503, code="lost"))).generate, lines=lines),
            "POST",
            "/v1/chat/completions",
            body,
        )
    )
    asyncio.run(
        exchanged(app_around(Scripted().generate, lines=lines), "POST", "/v1/chat/completions", body, gone_after=0)
    )
    assert [(json.loads(line)["status"], json.loads(line)["code"]) for line in lines] == [(499, "client_left")] * 2 + [
        (503, "lost"),
        (499, "client_left"),
    ]


@pytest.mark.parametrize("gone_after", [0, 2])
def test_what_ray_raises_of_a_caller_that_leaves_is_a_caller_that_leaves(gone_after: int) -> None:
    lines: list[str] = []
    script = Scripted((Started(1), Delta("a", 1)), stalls=True)
    app = DisconnectsOfRay(app_around(script.generate, lines=lines))
    body = json.dumps({"messages": [USER], "stream": True}).encode()
    asyncio.run(
        exchanged(app, "POST", "/v1/chat/completions", body, gone_after, cancelled=ray.exceptions.TaskCancelledError())
    )
    assert script.num_closed == (1 if gone_after else 0)
    assert [json.loads(line)["code"] for line in lines] == ["client_left"]
