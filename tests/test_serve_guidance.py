"""Guidance in requests: what reaches the policy, what it costs, what a profile and an engine refuse."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from dataclasses import replace
from typing import Any

import pytest
from support.asgi import LAB, USER, Scripted, app_around, ask, chat, exchanged, refused

from actors.generation.protocol import Sampling, complete
from data.bounds import MAX_GUIDANCE
from data.conversation import Message
from serve.auth import Team, hashed
from serve.models import ServedPolicies, ServedPolicy
from serve.replica import Replica
from serve.request import Delta, Event, Failed, GenerationRequest, PolicyInfo, Revision, Started
from serve.settings import ServedEngineSettings

NO_VLLM = "vLLM cannot; set engine.kind to transformers"
UNGUIDED = ServedPolicies([ServedPolicy(PolicyInfo("demo", LAB.model_dump_json(), context=512, no_guidance=NO_VLLM))])


@pytest.mark.parametrize("stream", [False, True])
def test_guidance_reaches_the_policy_and_comes_back(stream: bool) -> None:
    script = Scripted()
    answered = chat(script, guidance=1.5, attributes={"humor": 4}, stream=stream)
    [request] = script.requests
    assert (request.sampling.guidance, request.guided_from) == (1.5, {})
    assert request.unguided is not None
    assert (request.unguided.attributes, request.unguided.messages) == ({}, request.messages)
    steering = answered.chunks[0]["steering"] if stream else answered.json["steering"]
    assert steering["guidance"] == 1.5


@pytest.mark.parametrize(
    "sent", [{}, {"guidance": 1}, {"guidance": 1.0, "guidance_from": {"humor": 0}}, {"guidance": None}]
)
def test_guidance_1_is_a_request_without(sent: dict[str, Any]) -> None:
    script, plain = Scripted(), Scripted()
    answered = chat(script, **sent)
    chat(plain)
    assert script.requests == plain.requests
    assert "guidance" not in answered.json["steering"]


def test_the_other_prompt_may_have_values_of_its_own() -> None:
    script = Scripted()
    chat(script, guidance=0, attributes={"humor": 4, "verbosity": 1}, guidance_from={"humor": 0.6})
    wanted = {**LAB.defaults(), "humor": 1, "verbosity": 1}
    assert script.requests[0].guided_from == wanted


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guidance": -0.1}, "guidance"),
        ({"guidance": MAX_GUIDANCE + 0.5}, "guidance"),
        ({"guidance": "2"}, "guidance"),
        ({"guidance": True}, "guidance"),
        ({"guidance": 2, "guidance_from": {"wit": 1}}, "guidance_from.wit"),
        ({"guidance": 2, "guidance_from": {"humor": 9}}, "guidance_from.humor"),
        ({"guidance": 2, "guidance_from": {"humor": "much"}}, "guidance_from.humor"),
        ({"guidance": 2, "guidance_from": [1]}, "guidance_from"),
        ({"guidance_from": {"humor": 1}}, "guidance_from"),
    ],
)
def test_what_cannot_be_followed_names_its_field(fields: dict[str, Any], param: str) -> None:
    problem = refused(**fields)
    assert problem["param"] == param
    assert problem["message"].count(param.split(".")[0])


def test_a_profile_s_limits_hold_in_both_prompts() -> None:
    """Else guidance would go beyond them, and 0 around them."""
    script = Scripted()
    chat(script, guidance=0, profile="education", attributes={"humor": 2})
    [request] = script.requests
    away_from = request.guided_from
    assert isinstance(away_from, dict)
    profile = ServedPolicy(PolicyInfo("demo", LAB.model_dump_json(), context=512)).profiles["education"]
    limited = {a.name for a in LAB.attributes if profile.rule(a).narrows(a)}
    assert {"toxicity", "humor"} <= limited < set(LAB.names)
    assert away_from == {name: request.attributes[name] for name in LAB.names if name in limited}
    problem = refused(guidance=3, profile="education", guidance_from={"toxicity": 4})
    assert problem["param"] == "guidance_from.toxicity"
    assert "profile 'education' limits attribute 'toxicity'" in problem["message"]
    assert chat(Scripted(), guidance=3, profile="education", guidance_from={"toxicity": 0}).status == 200


def test_a_profile_may_bound_it() -> None:
    policy = ServedPolicy(PolicyInfo("demo", LAB.model_dump_json(), context=512))
    policy.profiles["education"] = policy.profiles["education"].model_copy(update={"max_guidance": 2.0})
    app = app_around(Scripted().generate, models=ServedPolicies([policy]))
    answered = ask(app, messages=[USER], profile="education", guidance=2.5)
    assert answered.status == 400
    wanted = "guidance is 2.5, but profile 'education' allows a number from 0 to 2"
    assert answered.json["error"]["message"] == wanted
    assert ask(app, messages=[USER], profile="education", guidance=2).status == 200


def test_an_engine_without_guidance_says_what_to_do() -> None:
    app = app_around(Scripted().generate, models=UNGUIDED)
    for path, body in (
        ("/v1/chat/completions", {"messages": [USER]}),
        ("/v1/responses", {"input": "Why?"}),
        ("/v1/completions", {"prompt": "Why?", "guidance_from": "So"}),
    ):
        answered = ask(app, path=path, guidance=2, **body)
        assert (answered.status, answered.json["error"]["param"]) == (400, "guidance")
        assert "set engine.kind to transformers" in answered.json["error"]["message"]
        if path != "/v1/completions":
            assert ask(app, path=path, guidance=1, **body).status == 200
    assert asyncio.run(exchanged(app, "GET", "/v1/attributes", b"")).json["guidance"] is None


def test_attributes_and_openapi_know_it() -> None:
    app = app_around(Scripted().generate)
    found = asyncio.run(exchanged(app, "GET", "/v1/attributes", b"")).json
    assert found["guidance"] == {"low": 0, "high": MAX_GUIDANCE, "default": 1}
    assert {profile["max_guidance"] for profile in found["profiles"]} == {MAX_GUIDANCE}
    schemas = asyncio.run(exchanged(app, "GET", "/openapi.json", b"")).json["components"]["schemas"]
    for record in ("ChatRequest", "CompletionRequest"):
        known = schemas[record]["properties"]
        assert (known["guidance"]["minimum"], known["guidance"]["maximum"]) == (0, MAX_GUIDANCE)
        assert "guidance_from" in known


def test_responses_take_it_too() -> None:
    script = Scripted()
    answered = ask(app_around(script.generate), path="/v1/responses", input="Why?", guidance=2)
    assert answered.json["steering"]["guidance"] == 2
    assert script.requests[0].guided_from == {}


@pytest.mark.parametrize("away_from", ["So", [5, 6]])
def test_a_raw_prompt_is_led_away_from_another_one(away_from: Any) -> None:
    script = Scripted()
    sent = {"prompt": ["Why?", "How?"], "guidance": 3, "guidance_from": away_from}
    assert ask(app_around(script.generate), path="/v1/completions", **sent).status == 200
    assert [request.prompt for request in script.requests] == ["Why?", "How?"]
    wanted = tuple(away_from) if isinstance(away_from, list) else away_from
    assert {request.unguided and request.unguided.prompt for request in script.requests} == {wanted}


@pytest.mark.parametrize("away_from", [None, "", [], {"humor": 1}, 5, ["a", "b"], ["a"], [[1], [2]]])
def test_a_raw_prompt_needs_one_other_prompt(away_from: Any) -> None:
    app = app_around(Scripted().generate)
    answered = ask(app, path="/v1/completions", prompt="Why?", guidance=3, guidance_from=away_from)
    assert (answered.status, answered.json["error"]["param"]) == (400, "guidance_from")


class Guided(Scripted):
    """Writes all tokens that a request may have; guided ones have a second prompt of 5 tokens."""

    async def generate(self, model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        yield Started(7, 5 if request.guided_from is not None else 0)
        for count in range(1, request.sampling.max_tokens + 1):
            yield Delta("x", count)
        yield Delta("", request.sampling.max_tokens, "length")


@pytest.mark.parametrize(
    ("fields", "used"), [({}, 7 + 20), ({"guidance": 2}, 7 + 5 + 40), ({"guidance": 2, "n": 2}, 92)]
)
def test_a_team_pays_for_both_rows_and_usage_counts_the_answer(fields: dict[str, Any], used: int) -> None:
    team = Team(name="games", tokens_per_minute=1050)
    app = app_around(Guided().generate, teams=[team], keys_text=f"games {hashed('key')}")
    answered = ask(app, "key", messages=[USER], max_tokens=20, **fields)
    num_answers = fields.get("n", 1)
    assert answered.json["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 20 * num_answers,
        "total_tokens": 7 + 20 * num_answers,
    }
    full = ask(app, "key", messages=[USER], max_tokens=64, n=8, guidance=2).json["error"]["message"]
    assert f"has used {used} " in full, full


def test_a_request_whose_rows_exceed_the_budget_is_a_sentence() -> None:
    team = Team(name="games", tokens_per_minute=100)
    app = app_around(Guided().generate, teams=[team], keys_text=f"games {hashed('key')}")
    assert ask(app, "key", messages=[USER], max_tokens=60).status == 200
    answered = ask(app, "key", messages=[USER], max_tokens=60, guidance=2)
    assert (answered.status, answered.json["error"]["code"]) == (400, "request_exceeds_budget")
    assert "120 for 1 answer of up to 60, twice because of guidance" in answered.json["error"]["message"]


@pytest.fixture(scope="module")
def replica(tiny_policy: str) -> Iterator[Replica]:
    made = Replica("tiny", Revision(tiny_policy, 0), ServedEngineSettings(max_num_seqs=4))
    yield made
    made._loaded.engine.close()


REQUEST = GenerationRequest(
    system="",
    messages=(Message("user", "Tell me about the moon."),),
    labels=(),
    attributes={"humor": 4},
    sampling=Sampling(24, seed=3, guidance=3.0),
    guided_from={},
)


def _events(replica: Replica, request: GenerationRequest) -> list[Event]:
    async def collected() -> list[Event]:
        return [event async for event in replica.generate(request)]

    return asyncio.run(collected())


def test_a_replica_guides_with_the_prompt_without_attributes(replica: Replica) -> None:
    policy = replica._loaded.text
    ids, unguided_ids = (policy.prompt("", REQUEST.messages, values) for values in ({"humor": 4}, {}))
    sampling = Sampling(24, seed=3, guidance=3.0, unguided_ids=tuple(unguided_ids))
    [(expected, _)] = complete(replica._loaded.engine, [(ids, sampling)])
    events = _events(replica, REQUEST)
    assert events[0] == Started(len(ids), len(unguided_ids))
    assert "".join(event.text for event in events if isinstance(event, Delta)) == policy.decode(expected).rstrip()
    assert asyncio.run(replica.info()).no_guidance == ""


def test_a_prompt_that_is_led_away_from_itself_has_one_row(replica: Replica) -> None:
    same = replace(REQUEST, guided_from={"humor": 4})
    plain = replace(REQUEST, guided_from=None, sampling=replace(REQUEST.sampling, guidance=1.0))
    (first, *_, last), (plain_first, *_, plain_last) = _events(replica, same), _events(replica, plain)
    assert (first, last) == (plain_first, plain_last)
    assert isinstance(first, Started)
    assert first.unguided_tokens == 0


def test_a_second_prompt_that_cannot_fit_is_refused_by_its_field(replica: Replica) -> None:
    raw = replace(REQUEST, prompt=(5, 6), guided_from=(5,) * 600, input_field="prompt")
    [failed] = _events(replica, raw)
    assert isinstance(failed, Failed)
    assert (failed.status, failed.prompt_tokens, failed.param) == (400, 602, "guidance_from")
    assert failed.message.startswith("guidance_from has 600 tokens, the policy's context 512")
    [unknown] = _events(replica, replace(raw, guided_from=(10**7,)))
    assert isinstance(unknown, Failed)
    assert (unknown.param, unknown.code) == ("guidance_from", "unknown_token")
