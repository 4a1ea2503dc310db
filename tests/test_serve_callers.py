"""Who may call without a key, and with which content: over ASGI, without Ray."""

import asyncio
import functools
import json
from typing import Any

import pytest
from fastapi import FastAPI
from support.asgi import KEYS_TEXT, TEAMS, USER, Answered, Scripted, app_around, exchanged

import serve.ingress
from data.errors import UserError
from serve.auth import Keys

ROUTES = ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/v1/models", "/v1/attributes", "/v1/chat/completions"]
BODY = json.dumps({"messages": [USER]}).encode()


@functools.cache
def app(keys_text: str) -> FastAPI:
    return app_around(Scripted().generate, keys_text=keys_text)


def asked(path: str = "/v1/chat/completions", keys_text: str = "", key: str | None = None, **of: Any) -> Answered:
    method = "POST" if path.endswith("completions") else "GET"
    body = BODY if method == "POST" else b""
    return asyncio.run(exchanged(app(keys_text), method, path, body, key=key, **of))


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "of",
    [
        pytest.param({"client_address": "10.1.2.3"}, marks=pytest.mark.case("B9: a peer of another machine")),
        pytest.param({"client_address": "::ffff:10.1.2.3"}, marks=pytest.mark.case("B9: the same in IPv6")),
        pytest.param({"server_address": "192.0.2.2"}, marks=pytest.mark.case("B9: a peer that a header calls local")),
        pytest.param({"client_address": ""}, marks=pytest.mark.case("B9: a peer without an address")),
        pytest.param(
            {"headers": {"x-forwarded-for": "127.0.0.1"}}, marks=pytest.mark.case("B9: X-Forwarded-For is not trusted")
        ),
        pytest.param({"headers": {"forwarded": "for=127.0.0.1"}}, marks=pytest.mark.case("B9: a proxy on loopback")),
        pytest.param({"headers": {"host": "evil.example"}}, marks=pytest.mark.case("B9: DNS rebinding")),
        pytest.param(
            {"headers": {"host": "localhost.evil.example:8000"}}, marks=pytest.mark.case("B9: a name like ours")
        ),
        pytest.param({"headers": {"host": "192.0.2.2:8000"}}, marks=pytest.mark.case("B9: another address of ours")),
        pytest.param({"headers": {"host": ""}}, marks=pytest.mark.case("B9: no Host")),
        pytest.param({"headers": {"origin": "http://evil.example"}}, marks=pytest.mark.case("B9: another site's page")),
        pytest.param({"headers": {"origin": "null"}}, marks=pytest.mark.case("B9: a page without a site")),
        pytest.param(
            {"headers": {"origin": "http://127.0.0.1:9999"}}, marks=pytest.mark.case("B9: another port's page")
        ),
    ],
)
def test_without_keys_only_this_machine_may_call(path: str, of: dict[str, Any]) -> None:
    answered = asked(path, **of)
    assert (answered.status, answered.json["error"]["code"]) == (403, "local_only")
    assert "python -m serve.keys" in answered.json["error"]["message"]
    assert len(answered.json["error"]["message"]) <= 400
    if path == "/v1/chat/completions":
        assert asked(path, KEYS_TEXT, "key-all", **of).status == 200, "who has a key may come from anywhere"


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    "of",
    [
        {},
        {"client_address": "::1", "server_address": "::1", "headers": {"host": "[::1]:8000"}},
        {"client_address": "::ffff:127.0.0.1", "headers": {"host": "LOCALHOST"}},
        {"client_address": "127.0.0.2", "headers": {"host": "127.0.0.2:9000"}},
        {"headers": {"host": "localhost:9000", "origin": "http://localhost:9000"}},
    ],
)
def test_this_machine_and_its_own_page_may_call(path: str, of: dict[str, Any]) -> None:
    assert asked(path, **of).status == 200


@pytest.mark.case("B9: HAProxy hides who calls")
def test_behind_haproxy_keys_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    none, some = Keys([], None), Keys(TEAMS, None, KEYS_TEXT)
    serve.ingress._require_known_peers(none)
    monkeypatch.setattr(serve.ingress, "RAY_SERVE_ENABLE_HA_PROXY", True)
    serve.ingress._require_known_peers(some)
    with pytest.raises(UserError, match="set teams and keys"):
        serve.ingress._require_known_peers(none)


def test_a_stranger_s_host_is_printable() -> None:
    message = asked(headers={"host": "\x1b]0;x\x07" + "y" * 5000}).json["error"]["message"]
    assert message.isprintable()
    assert len(message) <= 400


@pytest.mark.parametrize("keys_text", ["", KEYS_TEXT])
@pytest.mark.parametrize("sent", ["text/plain", "application/x-www-form-urlencoded", "", "application/jsonp"])
def test_a_post_is_json(sent: str, keys_text: str) -> None:
    answered = asked(keys_text=keys_text, key="key-all", headers={"content-type": sent})
    assert (answered.status, answered.json["error"]["code"]) == (415, "unsupported_media_type")
    assert "application/json" in answered.json["error"]["message"]
    assert asked(headers={"content-type": "Application/JSON; charset=utf-8"}).status == 200


def test_what_stands_in_the_way_of_a_request_reads_none_of_it() -> None:
    script = Scripted()
    answered = asyncio.run(
        exchanged(app_around(script.generate), "POST", "/v1/chat/completions", BODY, client_address="10.1.2.3")
    )
    assert answered.status == 403
    assert script.requests == []
