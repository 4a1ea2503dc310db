"""POST /tokenize: which request is tokenized, what it costs, and vLLM's shape of the reply."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from support.asgi import KEYS_TEXT, USER, Answered, Scripted, app_around, ask, exchanged

from serve.models import ServedPolicies, ServedPolicy
from serve.replica import Replica
from serve.request import Revision
from serve.settings import ServedEngineSettings

ROUTE = "/tokenize"


def tokenized(key: str | None = None, **fields: Any) -> Answered:
    return ask(app_around(Scripted().generate, keys_text=KEYS_TEXT if key else ""), key, ROUTE, **fields)


@pytest.fixture(scope="module")
def replica(tiny_policy: str) -> Iterator[Replica]:
    made = Replica("demo", Revision(tiny_policy, 0), ServedEngineSettings(max_num_seqs=2))
    yield made
    made._loaded.engine.close()


def test_a_text_and_a_conversation_have_the_policy_s_own_tokens(replica: Replica) -> None:
    async def tokenize(model: str, *arguments: Any) -> Any:
        return await replica.tokenized(*arguments)

    models = ServedPolicies([ServedPolicy(asyncio.run(replica.info()))])
    app = app_around(Scripted().generate, models=models, tokenize=tokenize)
    text = replica._loaded.text
    ids = text.raw_prompt("The moon")
    for more in ({}, {"add_special_tokens": False}):
        assert ask(app, path=ROUTE, prompt="The moon", **more).json == {
            "count": len(ids),
            "max_model_len": 512,
            "tokens": ids,
            "token_strs": None,
        }
    named = ask(app, path=ROUTE, prompt="The moon", return_token_strs=True).json
    assert "".join(named["token_strs"]) == "The moon"
    from data.conversation import Message

    attributes = text.schema.defaults() | {"humor": 4}
    chat = ask(app, path=ROUTE, messages=[USER], attributes={"humor": 4}, add_special_tokens=False).json
    assert chat["tokens"] == text.prompt("", [Message("user", "Why?")], attributes)
    too_long = ask(app, path=ROUTE, prompt="x" * 1900)
    assert (too_long.status, too_long.json["count"]) == (200, len(text.raw_prompt("x" * 1900)))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": ["a"]}, "prompt"),
        ({"prompt": "a", "add_special_tokens": 1}, "add_special_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [USER], "attributes": {"humor": 9}}, "attributes.humor"),
        ({"messages": [USER], "return_token_strs": 1}, "return_token_strs"),
    ],
)
def test_what_cannot_be_tokenized_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    answered = tokenized(**fields)
    assert (answered.status, answered.json["error"]["param"]) == (400, param)


def test_who_may_ask_and_what_it_costs() -> None:
    assert tokenized("key-nobody", prompt="a").status == 401
    assert tokenized("key-games", messages=[USER], profile="education").status == 403
    assert tokenized(prompt="a b", model="nobody").status == 404
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT)
    words = " ".join("a" * 70)
    assert ask(app, "key-slow", ROUTE, prompt=words).json["count"] == 70
    assert ask(app, "key-slow", ROUTE, prompt=words).status == 429, "a second one is above the minute's tokens"


def test_the_log_has_a_line_for_each_request() -> None:
    lines: list[str] = []
    app = app_around(Scripted().generate, lines=lines)
    assert ask(app, path=ROUTE, prompt="a b").status == 200
    assert ask(app, path=ROUTE, prompt=5).status == 400
    logged = [json.loads(line) for line in lines]
    shown = [(line["status"], line["answers"], line["model"], line["prompt_tokens"]) for line in logged]
    assert shown == [(200, 0, "demo", 2), (400, 0, "", 0)]


def test_the_route_is_described() -> None:
    app = app_around(Scripted().generate)
    described = asyncio.run(exchanged(app, "GET", "/openapi.json", b"")).json
    assert "add_special_tokens" in described["components"]["schemas"]["TokenizeRequest"]["properties"]
    assert "200" in described["paths"][ROUTE]["post"]["responses"]
