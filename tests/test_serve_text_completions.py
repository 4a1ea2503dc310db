"""POST /v1/completions without Ray: what reaches the policy, and what comes back."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
from support.asgi import KEYS_TEXT, Answered, Scripted, app_around, ask, exchanged

from serve.logprobs import ReportedToken
from serve.request import Delta, Echo, Started
from serve.requested import HEADER

ROUTE = "/v1/completions"
ECHO = Echo("The sea", (ReportedToken("The", "The", None), ReportedToken(" sea", " sea", -2.0, ((" cat", -0.5),))))
IS = ReportedToken(" is", " is", -0.25, ((" is", -0.25),))
TOLD = (Started(2), Delta("", 0, echo=ECHO), Delta(" is", 1, tokens=(IS,)), Delta("", 1, "length"))


def completed(script: Scripted, key: str | None = None, headers: Mapping[str, str] = {}, **fields: Any) -> Answered:
    app = app_around(script.generate, keys_text=KEYS_TEXT if key else "")
    return ask(app, key, ROUTE, headers, **fields)


def test_a_raw_prompt_reaches_the_policy_as_it_is() -> None:
    script = Scripted()
    answered = completed(script, prompt="The sea", seed=3, min_p=0.5)
    [request] = script.requests
    assert (request.prompt, request.messages, request.attributes, request.system) == ("The sea", (), {}, "")
    chosen = request.sampling
    assert (chosen.max_tokens, chosen.temperature, chosen.seed, chosen.min_p) == (16, 1.0, 3, 0.5)
    assert (request.echo, chosen.logprobs) == (False, None)
    body = answered.json
    assert (answered.status, body["object"], body["model"]) == (200, "text_completion", "demo")
    assert body["choices"] == [{"index": 0, "text": "It is.", "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}


def test_several_prompts_have_answers_each() -> None:
    script = Scripted()
    body = completed(script, prompt=[[1, 2], [3]], n=2, seed=5).json
    assert [(r.prompt, r.sampling.seed) for r in script.requests] == [((1, 2), 5), ((1, 2), 6), ((3,), 5), ((3,), 6)]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"] == {"prompt_tokens": 14, "completion_tokens": 8, "total_tokens": 22}, "each prompt once"


def test_an_echoed_prompt_comes_before_its_answer_whole_and_streamed() -> None:
    sent = {"prompt": [1, 2], "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
    whole = completed(script := Scripted(TOLD), **sent).json["choices"][0]
    [asked] = script.requests
    assert (asked.echo, asked.sampling.logprobs, asked.sampling.max_tokens) == (True, 1, 1)
    assert (whole["text"], whole["finish_reason"]) == ("The sea is", "length")
    assert whole["logprobs"]["token_logprobs"] == [None, -2.0, -0.25]
    assert whole["logprobs"]["top_logprobs"] == [None, {" cat": -0.5, " sea": -2.0}, {" is": -0.25}]
    assert whole["logprobs"]["text_offset"] == [0, 3, 7]
    *chunks, done = completed(Scripted(TOLD), stream=True, stream_options={"include_usage": True}, **sent).chunks
    assert done == "data: [DONE]"
    counts = chunks.pop()
    assert (counts["choices"], counts["usage"]["total_tokens"]) == ([], 3)
    choices = [chunk["choices"][0] for chunk in chunks]
    assert "".join(choice["text"] for choice in choices) == whole["text"]
    assert [choice["finish_reason"] for choice in choices] == [None, None, "length"]
    for name, values in whole["logprobs"].items():
        assert [value for choice in choices for value in choice["logprobs"][name]] == values


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "logprobs": 21}, "logprobs"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "attributes": {"humor": 4}}, "attributes"),
        ({"prompt": "a", "profile": "gaming"}, "profile"),
        ({"prompt": "a", "score": True}, "score"),
        ({"prompt": "a", "messages": [{}]}, "messages"),
        ({"prompt": "a", "model": "demo:gaming"}, "model"),
        ({"prompt": "a", "model": "demo@humor=4"}, "model"),
        ({"prompt": "a", "headers": {HEADER.lower(): "humor=4"}}, HEADER),
    ],
)
def test_what_a_raw_prompt_cannot_have_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    answered = completed(script := Scripted(), **fields)
    assert (answered.status, answered.json["error"]["param"], script.requests) == (400, param, [])


@pytest.mark.case("locks of a profile")
def test_a_team_under_a_profile_cannot_write_around_it() -> None:
    answered = completed(Scripted(), "key-games", prompt="a")
    assert (answered.status, answered.json["error"]["code"]) == (403, "profile_forbidden")
    assert completed(Scripted(), "key-all", prompt="a").status == 200
    assert completed(Scripted(), "key-nobody", prompt="a").status == 401


def test_both_routes_share_a_team_s_limits() -> None:
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT)
    assert ask(app, "key-slow", messages=[{"role": "user", "content": "Why?"}]).status == 200
    assert ask(app, "key-slow", ROUTE, prompt="a", max_tokens=64).status == 429


def test_parameters_that_ask_for_nothing_and_hints_are_taken() -> None:
    sent = {
        "suffix": None,
        "best_of": 1,
        "store": True,
        "user": "me",
        "attributes": {},
        "logit_bias": {},
        "echo": False,
    }
    assert completed(Scripted(), prompt="a", **sent).status == 200


def test_the_route_is_described() -> None:
    app = app_around(Scripted().generate)
    described = asyncio.run(exchanged(app, "GET", "/openapi.json", b"")).json
    assert "prompt" in described["components"]["schemas"]["CompletionRequest"]["properties"]
    assert {"200", "400", "403", "429"} <= set(described["paths"][ROUTE]["post"]["responses"])
