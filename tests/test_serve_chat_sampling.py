"""What a chat request says about choosing tokens, and about the answer's form, reaches the policy and comes back."""

import asyncio
from typing import Any

import pytest
from support.asgi import USER, Scripted, app_around, ask, chat, exchanged, refused

from actors.generation.protocol import Grammar
from serve.admission import SamplingDefaults
from serve.logprobs import ReportedToken
from serve.request import Delta, Started

IT, IS = (
    ReportedToken("It", "It", -0.5, (("It", -0.5), ("So", -1.0))),
    ReportedToken(" is", " is", -0.25, ((" is", -0.25),)),
)
TOLD = Scripted((Started(7), Delta("It", 1, tokens=(IT,)), Delta(" is", 2, "stop", tokens=(IS,))))
IN_SCHEMA = "response_format.json_schema.schema"
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


def test_every_parameter_of_sampling_reaches_the_policy() -> None:
    script = Scripted()
    sent = {"frequency_penalty": 0.5, "presence_penalty": -1, "repetition_penalty": 1.25, "min_p": 0.125}
    assert chat(script, **sent, logit_bias={"5": -100, "7": 1.5}, logprobs=True, top_logprobs=3).status == 200
    [request] = script.requests
    assert {name: getattr(request.sampling, name) for name in sent} == sent
    assert (request.sampling.logit_bias, request.sampling.logprobs) == ({5: -100, 7: 1.5}, 3)
    chat(script)
    assert (script.requests[1].sampling.logprobs, script.requests[1].sampling.grammar) == (None, None)


@pytest.mark.parametrize("sent", [{"ignore_eos": True, "max_tokens": 9}, {}])
def test_a_benchmark_s_length_reaches_the_policy(sent: dict[str, Any]) -> None:
    """guidellm and vLLM's bench ask for it by default: answers of one length."""
    script = Scripted()
    assert chat(script, **sent).status == 200
    assert script.requests[0].sampling.ignore_eos == bool(sent)
    form = {"type": "json_object"}
    assert refused(ignore_eos=True, response_format=form)["param"] == "ignore_eos"


@pytest.mark.parametrize(
    ("wanted", "grammar"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar("json_object")),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": {"type": "object"}}},
            Grammar("json_schema", '{"type": "object"}'),
        ),
    ],
)
def test_the_form_of_the_answer_reaches_the_policy(wanted: dict[str, Any], grammar: Grammar | None) -> None:
    script = Scripted()
    assert chat(script, response_format=wanted).status == 200
    assert (script.requests[0].sampling.grammar, script.requests[0].grammar_field) == (grammar, "response_format")


def test_a_schema_may_be_nested_deeper_than_a_conversation() -> None:
    script, schema = Scripted(), SCHEMA
    for _ in range(12):
        schema = {"type": "object", "properties": {"a": schema}}
    wanted = {"type": "json_schema", "json_schema": {"name": "deep", "schema": schema}}
    assert ask(app_around(script.generate), messages=[USER], response_format=wanted).status == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"frequency_penalty": 2.5}, "frequency_penalty"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"min_p": 1.5}, "min_p"),
        ({"logit_bias": {"a": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"logprobs": 5}, "logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, IN_SCHEMA),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
            "response_format.json_schema.schema",
        ),
    ],
)
def test_what_is_out_of_range_is_named(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert error["param"] == param
    assert "allowed" in error["message"]


def test_log_probabilities_whole_and_streamed() -> None:
    [choice] = chat(TOLD, logprobs=True, top_logprobs=1).json["choices"]
    content = choice["logprobs"]["content"]
    assert [(c["token"], c["logprob"], len(c["top_logprobs"])) for c in content] == [("It", -0.5, 1), (" is", -0.25, 1)]
    assert content[0]["top_logprobs"] == [{"token": "It", "logprob": -0.5, "bytes": [73, 116]}]
    *chunks, _ = chat(TOLD, logprobs=True, top_logprobs=1, stream=True).chunks
    found = [c["choices"][0]["logprobs"] for c in chunks]
    assert [token for logprobs in found for token in (logprobs or {"content": []})["content"]] == content
    assert chat(TOLD).json["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/responses"])
def test_who_names_no_temperature_gets_the_endpoint_s(path: str) -> None:
    script = Scripted()
    app = app_around(script.generate, sampling=SamplingDefaults(0.3, 0.9))
    sent = (
        {"messages": [USER]} if "chat" in path else {"prompt": "Why"} if path == "/v1/completions" else {"input": "Why"}
    )
    replies = [ask(app, path=path, **sent, **own) for own in ({}, {"temperature": 1}, {"temperature": 0, "top_p": 0.5})]
    assert [reply.status for reply in replies] == [200] * 3
    chosen = [(request.sampling.temperature, request.sampling.top_p) for request in script.requests]
    assert chosen == [(0.3, 0.9), (1, 0.9), (0, 0.5)]
    if path == "/v1/responses":
        assert [(reply.json["temperature"], reply.json["top_p"]) for reply in replies] == chosen
    stated = asyncio.run(exchanged(app, "GET", "/v1/attributes", b"")).json["sampling"]
    assert stated == {"temperature": 0.3, "top_p": 0.9}
