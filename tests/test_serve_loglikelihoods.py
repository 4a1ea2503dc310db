"""What evaluations and applications ask of a policy's probabilities: through the routes, on a replica without Ray."""

import asyncio
import json
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from support.asgi import USER, app_around, exchanged

from actors.modeling.policy import Policy
from serve.models import ServedPolicies, ServedPolicy
from serve.replica import Replica
from serve.request import Event, GenerationRequest, Revision
from serve.settings import ServedEngineSettings

TEXTS = ("The moon is round.", "Owls sleep by day, and é is a letter.", "One, two, three, four; five!", "a b")
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "n": {"enum": [1, 2]}},
    "required": ["ok", "n"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def replica(tiny_policy: str) -> Iterator[Replica]:
    made = Replica("demo", Revision(tiny_policy, 0), ServedEngineSettings(max_num_seqs=2))
    yield made
    made._loaded.engine.close()


@pytest.fixture(scope="module")
def app(replica: Replica) -> FastAPI:
    async def generate(model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        async for event in replica.generate(request):
            yield event

    return app_around(generate, models=ServedPolicies([ServedPolicy(asyncio.run(replica.info()))]))


def sent(app: FastAPI, path: str, stream: bool = False, **fields: Any) -> Any:
    body = json.dumps({"stream": stream, **fields}).encode()
    answered = asyncio.run(exchanged(app, "POST", path, body))
    return answered.chunks if stream and answered.status == 200 else answered.json


@torch.inference_mode()
def expected(policy: Policy, ids: Sequence[int]) -> tuple[list[float], list[bool]]:
    """Transformers' own: log-probability of each token but the first, and whether it was the likeliest."""
    logprobs_TV = policy.model(torch.tensor([list(ids)]), use_cache=False).logits[0, :-1].float().log_softmax(-1)
    own = logprobs_TV.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    return own.tolist(), (logprobs_TV.argmax(-1) == torch.tensor(ids[1:])).tolist()


def test_log_likelihoods_as_lm_eval_asks_for_them_are_transformers_own(
    app: FastAPI, replica: Replica, tiny_policy: str
) -> None:
    policy = Policy.load(tiny_policy)
    for text in TEXTS:
        ids = policy.raw_prompt(text)
        asked = {"model": "demo", "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
        [choice] = sent(app, "/v1/completions", prompt=ids, **asked)["choices"]
        found, context = choice["logprobs"], 2
        own, greedy = expected(policy, ids)
        assert len(found["token_logprobs"]) == len(ids) + 1, "the last one is the answer's, which lm-eval drops"
        assert found["token_logprobs"][0] is None
        assert found["token_logprobs"][1:-1] == pytest.approx(own, abs=1e-4)
        assert sum(found["token_logprobs"][context:-1]) == pytest.approx(sum(own[context - 1 :]), abs=1e-4)
        likeliest = zip(found["tokens"][context:-1], found["top_logprobs"][context:-1], strict=True)
        assert all(max(top, key=top.get) == token for token, top in likeliest) == all(greedy[context - 1 :])
        nothing_more = sent(app, "/v1/completions", prompt=ids, **(asked | {"max_tokens": 0}))["choices"][0]
        assert nothing_more["text"] == text
        assert nothing_more["logprobs"]["token_logprobs"] == found["token_logprobs"][:-1]
        as_text = sent(app, "/v1/completions", prompt=text, **(asked | {"max_tokens": 0}))["choices"][0]
        assert as_text == nothing_more


def test_several_prompts_and_a_stream_say_the_same(app: FastAPI, replica: Replica) -> None:
    asked = {"prompt": list(TEXTS), "max_tokens": 5, "temperature": 0, "logprobs": 2, "echo": True}
    whole = sent(app, "/v1/completions", **asked)
    alone = [sent(app, "/v1/completions", **(asked | {"prompt": text}))["choices"][0] for text in TEXTS]
    assert [choice["text"] for choice in whole["choices"]] == [choice["text"] for choice in alone]
    assert whole["usage"]["prompt_tokens"] == sum(len(replica._loaded.text.raw_prompt(text)) for text in TEXTS)
    *chunks, _ = sent(app, "/v1/completions", stream=True, **asked)
    for index, choice in enumerate(whole["choices"]):
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(c["text"] for c in own) == choice["text"]
        assert [t for c in own for t in c["logprobs"]["tokens"]] == choice["logprobs"]["tokens"]
        assert "".join(choice["logprobs"]["tokens"]).startswith(TEXTS[index].split("é")[0])


def test_an_echo_without_log_probabilities_or_an_answer(app: FastAPI) -> None:
    answered = sent(app, "/v1/completions", prompt="The moon", max_tokens=0, echo=True)
    assert answered["choices"] == [{"index": 0, "text": "The moon", "logprobs": None, "finish_reason": "length"}]
    assert answered["usage"]["completion_tokens"] == 0


def test_an_answer_s_log_probabilities_are_those_of_its_tokens(app: FastAPI, replica: Replica) -> None:
    asked = {"messages": [USER], "max_tokens": 8, "seed": 3, "logprobs": True, "top_logprobs": 2}
    [choice] = sent(app, "/v1/chat/completions", **asked)["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) in (7, 8)
    assert b"".join(bytes(c["bytes"] or ()) for c in content).decode(errors="ignore").strip()
    assert all(len(c["top_logprobs"]) == 2 and c["logprob"] <= 0 for c in content)
    *chunks, _ = sent(app, "/v1/chat/completions", stream=True, **asked)
    streamed = [c["choices"][0]["logprobs"] for c in chunks]
    pieces = [token for found in streamed for token in (found or {"content": []})["content"]]
    assert [piece["token"] for piece in pieces] == [c["token"] for c in content]
    assert [piece["logprob"] for piece in pieces] == pytest.approx([c["logprob"] for c in content], abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_has_the_form_that_was_asked_for(app: FastAPI, stream: bool) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    for seed in range(3):
        asked = {"messages": [USER], "seed": seed, "response_format": wanted}
        answered = sent(app, "/v1/chat/completions", stream=stream, **asked)
        if stream:
            text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in answered[:-1])
        else:
            text = answered["choices"][0]["message"]["content"]
        found = json.loads(text)
        assert set(found) == {"ok", "n"}
        assert (type(found["ok"]), found["n"] in (1, 2)) == (bool, True)


def test_a_bias_and_a_penalty_change_the_answer(app: FastAPI, replica: Replica) -> None:
    [token] = replica._loaded.text.raw_prompt("x")
    asked = {"prompt": "The moon", "max_tokens": 6, "temperature": 0}
    assert sent(app, "/v1/completions", logit_bias={str(token): 100}, **asked)["choices"][0]["text"] == "xxxxxx"
    biased = {"logit_bias": {str(token): 4}, **asked}
    free, penalized = (
        sent(app, "/v1/completions", frequency_penalty=penalty, **biased)["choices"][0]["text"] for penalty in (0, 2)
    )
    assert free.count("x") > penalized.count("x")


@pytest.mark.parametrize(
    ("path", "fields", "param", "code"),
    [
        ("/v1/completions", {"prompt": [10**6]}, "prompt", "unknown_token"),
        ("/v1/completions", {"prompt": [-1]}, "prompt", "unknown_token"),
        ("/v1/completions", {"prompt": ""}, "prompt", "invalid_prompt"),
        ("/v1/completions", {"prompt": [5] * 600}, "prompt", "context_length_exceeded"),
        ("/v1/chat/completions", {"messages": [USER], "logit_bias": {"99999": 1}}, "logit_bias", "unknown_token"),
        (
            "/v1/chat/completions",
            {
                "messages": [USER],
                "response_format": {"type": "json_schema", "json_schema": {"schema": {"$ref": "#/nowhere"}}},
            },
            "response_format",
            "invalid_grammar",
        ),
    ],
)
def test_what_the_policy_cannot_take_is_refused_by_its_field(
    app: FastAPI, path: str, fields: dict[str, Any], param: str, code: str
) -> None:
    error = sent(app, path, **fields)["error"]
    assert (error["param"], error["code"]) == (param, code)


def test_who_leaves_while_a_grammar_is_compiled_leaves_nothing_behind(replica: Replica) -> None:
    from actors.generation.protocol import Grammar, Sampling
    from data.conversation import Message

    engine = replica._loaded.engine
    compile_s, compiled = 0.3, engine._compiled  # type: ignore[attr-defined]

    def slow(grammar: Grammar) -> object:
        import time

        time.sleep(compile_s)
        return compiled(grammar)

    request = GenerationRequest(
        "", (Message("user", "Why?"),), (), {}, Sampling(400, seed=3, grammar=Grammar("json_object"))
    )

    async def leave() -> None:
        task = asyncio.ensure_future(anext(replica.generate(request)))
        await asyncio.sleep(compile_s / 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(2 * compile_s)

    engine._compiled = slow  # type: ignore[attr-defined]
    try:
        asyncio.run(leave())
    finally:
        engine._compiled = compiled  # type: ignore[attr-defined]
    for _ in range(100):
        if not (engine.load.running or engine.load.waiting):
            return
        asyncio.run(asyncio.sleep(0.05))
    raise AssertionError("the request runs on")
