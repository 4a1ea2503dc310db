"""The HTTP side without Ray: the application is given a way to generate, so these tests give it one and speak ASGI to it."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fastapi import FastAPI

from data.attributes import SHIPPED
from data.conversation import Message
from serve.app import Generate, Limits, application
from serve.wire import Card, Delta, Event, Failed, Job, Started

LAB = SHIPPED["lab"]
USER = {"role": "user", "content": "Why?"}


@dataclass
class Scripted:
    """Generates the events it was given; remembers the jobs, and how many were closed."""

    events: tuple[Event, ...] = (Started(7), Delta("It ", 1), Delta("is.", 2), Delta("", 2, "stop"))
    jobs: list[Job] = field(default_factory=list)
    num_closed: int = 0
    stalls: bool = False

    async def generate(self, job: Job) -> AsyncGenerator[Event, None]:
        self.jobs.append(job)
        try:
            for event in self.events:
                yield event
            if self.stalls:
                await asyncio.sleep(3600)
        finally:
            self.num_closed += 1


@dataclass
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def chunks(self) -> list[Any]:
        events = self.body.decode().split("\n\n")
        assert events.pop() == "", "an event ends with an empty line"
        return [event if event == "data: [DONE]" else json.loads(event.removeprefix("data: ")) for event in events]


def app_around(generate: Generate) -> FastAPI:
    card = Card("demo", LAB.model_dump_json(), 256)
    return application(card, generate, Limits(max_new_tokens=64, max_body_bytes=2000), "<!doctype html><title>page</title>")


async def exchanged(app: FastAPI, method: str, path: str, body: bytes, gone_after: int | None = None) -> Answered:
    """One request over ASGI; with `gone_after`, the client leaves after so many pieces of the body."""
    answered = Answered(0, {}, b"")
    gone = asyncio.Event()
    incoming = [{"type": "http.request", "body": body[:500], "more_body": True}, {"type": "http.request", "body": body[500:], "more_body": False}]
    num_pieces = 0

    async def receive() -> dict[str, Any]:
        if incoming:
            return incoming.pop(0)
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal num_pieces
        if message["type"] == "http.response.start":
            answered.status = message["status"]
            answered.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        else:
            answered.body += message.get("body", b"")
            num_pieces += 1
            if num_pieces == gone_after:
                gone.set()

    scope = {"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path, "raw_path": path.encode()}
    scope |= {"query_string": b"", "headers": [], "scheme": "http", "server": ("127.0.0.1", 1), "client": ("127.0.0.1", 2), "root_path": ""}
    await asyncio.wait_for(app(scope, receive, send), 10)
    return answered


def get(path: str) -> Answered:
    return asyncio.run(exchanged(app_around(Scripted().generate), "GET", path, b""))


def chat(script: Scripted, gone_after: int | None = None, **fields: Any) -> Answered:
    body = json.dumps({"messages": [USER], **fields}).encode()
    return asyncio.run(exchanged(app_around(script.generate), "POST", "/v1/chat/completions", body, gone_after))


def refused(status: int = 400, **fields: Any) -> dict[str, Any]:
    answered = chat(Scripted(), **fields)
    assert answered.status == status
    assert set(answered.json) == {"error"}
    return answered.json["error"]


def test_a_whole_answer() -> None:
    script = Scripted()
    answered = chat(script, attributes={"humor": 2.5})
    assert answered.status == 200
    assert answered.json["choices"][0] == {"index": 0, "message": {"role": "assistant", "content": "It is."}, "finish_reason": "stop", "logprobs": None}
    assert answered.json["usage"] == {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    assert answered.json["steering"] == {"requested": {"humor": 2.5}, "effective": {**LAB.defaults(), "humor": 2}}
    assert answered.json["model"] == "demo"
    assert script.jobs[0].attributes == {**LAB.defaults(), "humor": 2}
    assert script.jobs[0].max_tokens is None
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


def test_everything_reaches_the_job() -> None:
    script = Scripted()
    messages = [{"role": "system", "content": "Brief."}, USER, {"role": "assistant", "content": "So.", "attributes": {"humor": 4}}, USER]
    chat(script, messages=messages, profile="gaming", max_tokens=9, temperature=0, top_p=0.5, top_k=3, seed=5, stop=["x", "y"], model="demo")
    job = script.jobs[0]
    assert job.system == "Brief."
    assert job.messages == (Message("user", "Why?"), Message("assistant", "So."), Message("user", "Why?"))
    assert job.labels == ({"humor": 4.0},)
    assert job.attributes["humor"] == 3
    assert (job.max_tokens, job.temperature, job.top_p, job.top_k, job.seed, job.stop) == (9, 0.0, 0.5, 3, 5, ("x", "y"))


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"attributes": {"humor": 5}}, "attributes.humor", "0 to 4"),
        ({"attributes": {"humor": "3"}}, "attributes.humor", "0 to 4"),
        ({"attributes": {"humor": 10**400}}, "attributes.humor", "0 to 4"),
        ({"attributes": {"humor": None}}, "attributes.humor", "0 to 4"),
        ({"attributes": {"humour": 1}}, "attributes.humour", "did you mean 'humor'"),
        ({"attributes": {"x" * 300: 1}}, "attributes." + "x" * 60 + "…", "lab"),
        ({"attributes": {"toxicity": 1}, "profile": "support"}, "attributes.toxicity", "profile 'support' locks it at 0"),
        ({"profile": "suport"}, "profile", "did you mean 'support'"),
        ({"max_tokens": 65}, "max_tokens", "1 to 64"),
        ({"max_completion_tokens": 65}, "max_completion_tokens", "1 to 64"),
        ({"messages": [USER, {"role": "assistant", "content": "x", "attributes": {"humor": 9}}, USER]}, "messages[1].attributes.humor", "0 to 4"),
    ],
)
def test_a_mistake_names_field_and_range(fields: dict[str, Any], param: str, says: str) -> None:
    error = refused(**fields)
    assert error["param"] == param
    assert says in error["message"]


def test_another_model_is_not_here() -> None:
    error = refused(404, model="gpt-4")
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert "demo" in error["message"]


def test_a_long_body_is_refused_before_it_is_read() -> None:
    error = refused(413, messages=[{"role": "user", "content": "x" * 3000}])
    assert "2000 bytes" in error["message"]


def test_a_job_that_cannot_start_is_an_error_even_when_streamed() -> None:
    for stream in (False, True):
        answered = chat(Scripted((Failed("busy", 429, retry_after_s=3),)), stream=stream)
        assert answered.status == 429
        assert answered.headers["retry-after"] == "3"
        assert answered.json["error"]["type"] == "rate_limit_error"


def test_a_job_that_breaks_off() -> None:
    events = (Started(1), Delta("a", 1), Failed("lost", 503))
    assert chat(Scripted(events)).status == 503
    chunks = chat(Scripted(events), stream=True).chunks
    assert chunks[-1]["error"]["message"] == "lost"
    assert "data: [DONE]" not in chunks


def test_a_client_that_leaves_ends_the_job() -> None:
    script = Scripted((Started(1), Delta("a", 1)), stalls=True)
    chat(script, stream=True, gone_after=2)
    assert script.num_closed == 1


def test_a_bug_is_no_traceback() -> None:
    async def broken(job: Job) -> AsyncGenerator[Event, None]:
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
    assert get("/v1/models").json["data"][0]["id"] == "demo"
    assert get("/healthz").json == {"status": "ok", "model": "demo"}
    page = get("/")
    assert page.body.startswith(b"<!doctype html>")
    assert "default-src 'none'" in page.headers["content-security-policy"]


def test_a_wrong_route_or_method_has_the_error_shape() -> None:
    assert get("/v1/nothing").status == 404
    assert get("/v1/chat/completions").status == 405
    assert set(get("/v1/nothing").json["error"]) == {"message", "type", "param", "code"}


def test_the_ingress_is_free_of_torch() -> None:
    script = "import sys, serve.deploy, serve.__main__; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=False).returncode == 0
