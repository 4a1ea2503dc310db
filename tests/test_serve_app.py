"""The routes without Ray: who may use them, what they return, and how errors look."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from support.asgi import KEYS_TEXT, LAB, POLICY_INFO, USER, Scripted, app_around, ask, exchanged, get

from serve.models import ServedPolicies, ServedPolicy
from serve.request import Event, GenerationRequest, PolicyInfo, Started

OTHER = PolicyInfo("other", LAB.model_dump_json(), context=512)


def test_a_bug_is_no_traceback() -> None:
    async def broken(model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        yield Started(1)
        raise KeyError("secret")

    body = json.dumps({"messages": [USER]}).encode()
    app = app_around(broken)
    answered: list[Any] = []

    async def go() -> None:
        # Starlette raises again after it has answered, so that the server's log gets the traceback.
        with pytest.raises(KeyError):
            answered.append(await exchanged(app, "POST", "/v1/chat/completions", body))

    asyncio.run(go())


def test_the_other_routes() -> None:
    attributes = get("/v1/attributes").json
    assert [a["name"] for a in attributes["attributes"]] == list(LAB.names)
    assert {"name", "low", "high", "default", "meaning", "better", "steerable"} <= set(attributes["attributes"][0])
    assert [p["name"] for p in attributes["profiles"]] == ["gaming", "education", "accessibility", "support"]
    assert attributes["profiles"][0]["attributes"]["humor"] == {"default": 3, "low": 1, "high": 4, "locked": False}
    assert attributes["measures"] is False
    assert get("/readyz").json == {"status": "ready", "replicas": {"demo": 1, "dead": 0}}
    assert get("/v1/models").json["data"][0]["id"] == "demo"
    assert get("/healthz").json == {"status": "ok", "model": "demo"}
    page = get("/")
    assert page.body.startswith(b"<!doctype html>")
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.case("26-openai-clients")
def test_one_model_by_its_name() -> None:
    assert get("/v1/models/demo").json == get("/v1/models").json["data"][0]
    assert get("/v1/models/demo:education").json["root"] == "demo"
    for name in ("other", "demo:nobody"):
        unknown = get(f"/v1/models/{name}")
        assert (unknown.status, unknown.json["error"]["code"]) == (404, "model_not_found")


@pytest.mark.case("a drop-down of models is the steering")
def test_every_profile_is_a_model_of_its_own() -> None:
    rows = get("/v1/models").json["data"]
    names = ["demo", "demo:gaming", "demo:education", "demo:accessibility", "demo:support"]
    assert [row["id"] for row in rows] == names
    assert {(row["object"], row["root"], row["max_model_len"]) for row in rows} == {("model", "demo", 512)}
    assert [row["parent"] for row in rows] == [None, *["demo"] * 4]
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT)
    listed = asyncio.run(exchanged(app, "GET", "/v1/models", b"", key="key-games")).json["data"]
    assert [row["id"] for row in listed] == ["demo", "demo:gaming"], "a team sees the profiles that it may use"
    assert asyncio.run(exchanged(app, "GET", "/v1/models/demo:support", b"", key="key-games")).status == 403


def test_the_dials_and_what_they_set_are_stated() -> None:
    attributes = get("/v1/attributes").json
    assert attributes["dials"] == {
        "verbosity": {"attribute": "verbosity", "values": {"low": 0, "medium": 2, "high": 4}}
    }
    gaming = attributes["profiles"][0]["dials"]["verbosity"]["values"]
    assert (gaming["low"], gaming["high"]) == (0, 3)
    assert (attributes["context"], attributes["max_new_tokens"]) == (512, 64)
    assert get("/v1/attributes", query=b"model=demo:education").json["model"] == "demo"


def test_a_wrong_route_or_method_has_the_error_shape() -> None:
    for path, status, code in (("/v1/nothing", 404, "not_found"), ("/v1/chat/completions", 405, "method_not_allowed")):
        answered = get(path)
        assert (answered.status, answered.json["error"]["code"]) == (status, code)
        assert set(answered.json["error"]) == {"message", "type", "param", "code"}
    assert get("/v1/chat/completions").headers["allow"] == "POST"


@pytest.mark.case("pages under a path of a proxy")
@pytest.mark.parametrize("asked", ["/docs", "/steer/docs"])
def test_pages_work_under_a_proxy_s_path(asked: str) -> None:
    app = app_around(Scripted().generate, root_path="/steer")
    docs = asyncio.run(exchanged(app, "GET", asked, b""))
    assert docs.status == 200
    addresses = re.findall(r"""(?:src|href|url)[=:] ?["']([^"']+)["']""", docs.body.decode())
    assert len(addresses) == 4
    for address in addresses:
        assert not address.startswith("/"), "relative to the page"
        assert asyncio.run(exchanged(app, "GET", asked.removesuffix("docs") + address, b"")).status == 200
    prefix = asked.removesuffix("/docs")
    assert asyncio.run(exchanged(app, "GET", f"{prefix}/openapi.json", b"")).json["servers"] == [{"url": "/steer"}]
    assert ask(app, path=f"{prefix}/v1/chat/completions", messages=[USER]).status == 200


def test_the_page_asks_for_nothing_by_an_absolute_path() -> None:
    page = (Path(__file__).parent.parent / "serve" / "playground.html").read_text()
    assert re.findall(r"""(?:fetch\(|src=|href=)["'`]/""", page) == []
    assert "location.origin" not in page


ELSEWHERE = "https://chat.example"
PREFLIGHT = {
    "origin": ELSEWHERE,
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,x-stainless-lang",
}


@pytest.mark.case("a page of another site")
@pytest.mark.parametrize("keys_text", ["", KEYS_TEXT])
def test_a_page_of_another_site_may_call_where_the_settings_say_so(keys_text: str) -> None:
    allowed = app_around(Scripted().generate, keys_text=keys_text, cors_origins=(ELSEWHERE,))
    preflight = asyncio.run(exchanged(allowed, "OPTIONS", "/v1/chat/completions", b"", headers=PREFLIGHT))
    assert preflight.status == 200
    assert preflight.headers["access-control-allow-origin"] == ELSEWHERE
    assert "x-stainless-lang" in preflight.headers["access-control-allow-headers"]
    for key, status in (("key-all", 200), ("wrong", 401 if keys_text else 200)):
        answered = ask(allowed, key, headers={"origin": ELSEWHERE}, messages=[USER])
        assert (answered.status, answered.headers["access-control-allow-origin"]) == (status, ELSEWHERE)
    other = ask(allowed, "key-all", headers={"origin": "https://evil.example"}, messages=[USER])
    assert "access-control-allow-origin" not in other.headers
    assert other.status == (200 if keys_text else 403), "with a key, it is the browser that keeps the answer back"


@pytest.mark.parametrize("keys_text", ["", KEYS_TEXT])
def test_without_the_setting_no_other_site_may_call(keys_text: str) -> None:
    app = app_around(Scripted().generate, keys_text=keys_text)
    preflight = asyncio.run(exchanged(app, "OPTIONS", "/v1/chat/completions", b"", headers=PREFLIGHT))
    assert preflight.status == (405 if keys_text else 403)
    assert "access-control-allow-origin" not in preflight.headers


def test_the_ingress_is_free_of_torch() -> None:
    script = (
        "import sys, serve.deploy, serve.__main__; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=False).returncode == 0


def test_who_has_no_key_stays_outside() -> None:
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT)
    for key in (None, "key-nobody", "", "key-gamés"):
        answered = ask(app, key, messages=[USER])
        assert (answered.status, answered.json["error"]["code"]) == (401, "invalid_api_key")
        assert answered.headers["www-authenticate"] == "Bearer"
        for path in ("/v1/models", "/v1/models/demo", "/v1/attributes"):
            assert asyncio.run(exchanged(app, "GET", path, b"", key=key)).status == 401
    assert ask(app, "key-all", messages=[USER]).status == 200
    for path in ("/", "/healthz", "/readyz"):
        assert asyncio.run(exchanged(app, "GET", path, b"")).status == 200


@pytest.mark.case("B13: /healthz and /readyz name no model without a key")
def test_without_a_key_nobody_learns_what_is_served() -> None:
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT)
    for key in (None, "key-nobody"):
        answers = [asyncio.run(exchanged(app, "GET", path, b"", key=key)) for path in ("/healthz", "/readyz")]
        assert [a.json for a in answers] == [{"status": "ok"}, {"status": "ready"}]
    answers = [asyncio.run(exchanged(app, "GET", path, b"", key="key-all")) for path in ("/healthz", "/readyz")]
    assert [a.json.get("model") for a in answers] == ["demo", None]
    assert answers[1].json["replicas"] == {"demo": 1, "dead": 0}
    gone = app_around(Scripted().generate, keys_text=KEYS_TEXT, models=ServedPolicies([ServedPolicy(OTHER)]))
    assert (
        asyncio.run(exchanged(gone, "GET", "/readyz", b"")).json["error"]["message"] == "no replica of a model answers"
    )


def test_a_team_is_under_its_profile_and_no_other() -> None:
    script = Scripted()
    app = app_around(script.generate, keys_text=KEYS_TEXT)
    assert ask(app, "key-games", messages=[USER]).status == 200
    assert script.requests[0].attributes["humor"] == 3, "the first profile of the team is its default"
    answered = ask(app, "key-games", messages=[USER], profile="education")
    assert (answered.status, answered.json["error"]["code"]) == (403, "profile_forbidden")
    answered = ask(app, "key-games", messages=[USER], attributes={"toxicity": 4})
    assert (answered.status, answered.json["error"]["param"]) == (400, "attributes.toxicity")
    profiles = asyncio.run(exchanged(app, "GET", "/v1/attributes", b"", key="key-games")).json["profiles"]
    assert [p["name"] for p in profiles] == ["gaming"]


@pytest.mark.case("B11: attributes of earlier answers")
@pytest.mark.parametrize(
    ("attributes", "turn", "reason"),
    [
        ([{"toxicity": 4}], 1, "profile 'gaming' allows a number from 0 to 1"),
        ([None, {"humor": 0}], 3, "profile 'gaming' allows a number from 1 to 4"),
        ([{"humor": 3}, {"verbosity": 4}], 3, "profile 'gaming' allows a number from 0 to 3"),
    ],
)
def test_earlier_answers_are_under_the_profile_too(attributes: list[Any], turn: int, reason: str) -> None:
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT)
    messages: list[Any] = []
    for values in attributes:
        messages += [USER, {"role": "assistant", "content": "So."} | ({"attributes": values} if values else {})]
    answered = ask(app, "key-games", messages=[*messages, USER])
    assert (answered.status, answered.json["error"]["code"]) == (400, "invalid_attribute")
    assert answered.json["error"]["param"].startswith(f"messages[{turn}].attributes.")
    assert reason in answered.json["error"]["message"]
    assert ask(app, "key-all", messages=[*messages, USER]).status == 200, "a team without profiles may set them"


@pytest.mark.case("B11: a locked attribute of an earlier answer")
def test_a_locked_attribute_of_an_earlier_answer_stays_at_its_default() -> None:
    script = Scripted()
    app = app_around(script.generate, keys_text=KEYS_TEXT)

    def sent(**values: int) -> Any:
        earlier = {"role": "assistant", "content": "So.", "attributes": values}
        return ask(app, "key-all", messages=[USER, earlier, USER], profile="support")

    refused = sent(toxicity=1)
    assert (refused.status, refused.json["error"]["param"]) == (400, "messages[1].attributes.toxicity")
    assert "profile 'support' locks it at 0" in refused.json["error"]["message"]
    assert sent(toxicity=0, humor=1).status == 200
    assert script.requests[-1].labels == ({"humor": 1.0, "toxicity": 0.0},), "only what was sent enters the prompt"


async def rated(request: GenerationRequest, answer: str) -> dict[str, float]:
    return {}


def test_limits_of_a_team() -> None:
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT)
    for field in ("n", "best_of"):
        answered = ask(app_around(Scripted().generate, rated, KEYS_TEXT), "key-games", messages=[USER], **{field: 3})
        error = answered.json["error"]
        assert (answered.status, error["code"], error["param"]) == (400, "request_exceeds_limit", field)
        assert f"asks for 3 answers, and team 'games' may have 2 at the same time: lower {field}" in error["message"]
    assert ask(app, "key-games", messages=[USER], n=2).status == 200
    assert ask(app, "key-slow", messages=[USER]).status == 200
    answered = ask(app, "key-slow", messages=[USER])
    assert answered.status == 429
    assert 1 <= int(answered.headers["retry-after"]) <= 61


def test_several_models_side_by_side() -> None:
    script = Scripted()
    draws = iter([0.0, 0.89, 0.91])
    models = ServedPolicies(
        [
            ServedPolicy(POLICY_INFO, 9),
            ServedPolicy(PolicyInfo("canary", LAB.model_dump_json(), context=512), 1),
            ServedPolicy(PolicyInfo("named", LAB.model_dump_json(), context=512), 0),
        ],
        lambda: next(draws),
    )
    app = app_around(script.generate, models=models)
    assert [ask(app, messages=[USER]).json["model"] for _ in range(3)] == ["demo", "demo", "canary"]
    assert ask(app, messages=[USER], model="named").json["model"] == "named"
    assert script.models == ["demo", "demo", "canary", "named"]
    missing = asyncio.run(exchanged(app, "GET", "/readyz", b""))
    assert (missing.status, missing.json["error"]["message"]) == (503, "no replica of canary, named answers")


def test_a_swap_is_for_operators() -> None:
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT)
    path = "/admin/models/demo"
    assert ask(app, "key-all", path, policy="runs/next").status == 403
    assert ask(app, None, path, policy="runs/next").status == 401
    assert ask(app_around(Scripted().generate), None, path, policy="runs/next").status == 403
    answered = ask(app, "key-ops", path, policy="runs/next")
    assert (answered.status, answered.json["policy"]) == (200, "runs/next")
    assert ask(app, "key-ops", path, policy="nowhere").status == 409
    assert ask(app, "key-ops", path, polcy="x").status == 400
    assert ask(app, "key-ops", "/admin/models/other", policy="runs/next").status == 404


def test_openapi_knows_our_bodies() -> None:
    described = get("/openapi.json").json
    chat = described["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatRequest"}
    assert "attributes" in described["components"]["schemas"]["ChatRequest"]["properties"]
    assert {"200", "400", "401", "429"} <= set(chat["responses"])
    text = json.dumps(described)
    for name in re.findall(r'"#/components/schemas/(\w+)"', text):
        assert name in described["components"]["schemas"]
    docs = get("/docs")
    assert docs.status == 200
    assert b"https://" not in docs.body
