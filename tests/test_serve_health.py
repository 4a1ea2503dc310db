"""Routes for machines that watch the endpoint."""

import asyncio

import pytest
from support.asgi import KEYS_TEXT, Scripted, app_around, exchanged, get
from support.manual_clock import ManualClock

from serve.health import READY_S, VERSION, Readiness


@pytest.mark.case("B13: /readyz is no amplifier")
def test_many_who_ask_for_readiness_cost_the_replicas_one_question() -> None:
    clock, asked = ManualClock(), []

    async def replicas() -> dict[str, int]:
        asked.append(clock.now)
        await asyncio.sleep(0)
        return {"demo": len(asked)}

    async def go() -> None:
        readiness = Readiness(replicas, clock)
        assert await asyncio.gather(*(readiness() for _ in range(500))) == [{"demo": 1}] * 500
        clock.now += READY_S / 2
        assert await readiness() == {"demo": 1}
        clock.now += READY_S / 2
        assert await asyncio.gather(*(readiness() for _ in range(500))) == [{"demo": 2}] * 500

    asyncio.run(go())


@pytest.mark.case("clients that ask for /health first")
@pytest.mark.parametrize("path", ["/healthz", "/health", "/ping", "/version", "/readyz", "/", "/v1/models", "/metrics"])
def test_what_clients_ask_first_is_there_also_without_a_body(path: str) -> None:
    whole, head = get(path), asyncio.run(exchanged(app_around(Scripted().generate), "HEAD", path, b""))
    assert (whole.status, head.status, head.body) == (200, 200, b"")
    assert head.headers["content-length"] == str(len(whole.body))


def test_the_version_is_the_project_s() -> None:
    assert get("/version").json == {"version": VERSION}
    assert get("/openapi.json").json["info"]["version"] == VERSION


def test_metrics_are_for_operators_where_there_are_keys() -> None:
    plain = get("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert plain.body == b"ray_steerlm_requests_total 1.0\n"
    app = app_around(Scripted().generate, keys_text=KEYS_TEXT)
    found = [asyncio.run(exchanged(app, "GET", "/metrics", b"", key=key)) for key in (None, "key-all", "key-ops")]
    assert [answered.status for answered in found] == [401, 403, 200]
