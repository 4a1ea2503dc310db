"""The HTTP side without Ray: the application is given a way to generate, and ASGI is spoken to it."""

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI
from starlette.types import ASGIApp

from data.attributes import SHIPPED
from data.errors import UserError
from serve.admission import RequestLimits, SamplingDefaults
from serve.answering import Generate, Score
from serve.app import application
from serve.auth import Keys, Team, hashed
from serve.backend import Backend
from serve.bodies import BodyLimits
from serve.feedback import Feedback
from serve.ledger import Ledger
from serve.live import Live
from serve.models import ServedPolicies, ServedPolicy
from serve.rate_limits import RateLimiter, Sync
from serve.request import Delta, Event, Failed, GenerationRequest, PolicyInfo, Started, Tokenized
from serve.telemetry import Telemetry

LAB = SHIPPED["lab"]
USER = {"role": "user", "content": "Why?"}


@dataclass
class Scripted:
    """Generates the events it was given; remembers the requests, and how many were closed."""

    events: tuple[Event, ...] = (Started(7), Delta("It ", 1), Delta("is.", 2), Delta("", 2, "stop"))
    requests: list[GenerationRequest] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    num_closed: int = 0
    stalls: bool = False

    async def generate(self, model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        self.models.append(model)
        self.requests.append(request)
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
        sent = [event for event in events if not event.startswith(":")]
        return [event if event == "data: [DONE]" else json.loads(event.removeprefix("data: ")) for event in sent]


POLICY_INFO = PolicyInfo("demo", LAB.model_dump_json(), "runs/demo", context=512)
TEAMS = [
    Team(name="games", profiles=("gaming",), max_concurrent=2),
    Team(name="all"),
    Team(name="ops", admin=True),
    Team(name="slow", tokens_per_minute=72),
]
BODY = BodyLimits(max_bytes=2000)
OPENAI_S = SamplingDefaults()
KEYS_TEXT = "\n".join(f"{team.name} {hashed(f'key-{team.name}')}" for team in TEAMS)


async def _words(model: str, request: GenerationRequest, names: bool) -> Tokenized:
    """A token for each word, and its length for its id."""
    found = " ".join(request.texts).split()
    return Tokenized([len(word) for word in found], found if names else None)


async def _replicas() -> dict[str, int]:
    return {"demo": 1, "dead": 0}


async def _metrics() -> str:
    return "ray_steerlm_requests_total 1.0\n"


@dataclass(frozen=True)
class Changes:
    """What an administrator may change, without any replica."""

    served: ServedPolicies

    async def swap(self, model: str, policy: str) -> PolicyInfo:
        if policy == "nowhere":
            raise UserError("no policy at nowhere")
        self.served.put(PolicyInfo(model, LAB.model_dump_json(), policy, context=512))
        return self.served.named(model).info

    async def adapt(self, name: str, adapter: str) -> PolicyInfo:
        if adapter == "nowhere":
            raise UserError(f"adapter {name}: no exported adapter at nowhere")
        base = self.served.first.name
        self.served.put(PolicyInfo(name, LAB.model_dump_json(), adapter, base=base, context=512))
        return self.served.named(name).info

    async def remove(self, name: str) -> None:
        if not self.served.named(name).info.base:
            raise UserError(f"{name} is a policy, no adapter")
        self.served.remove(name)


def app_around(
    generate: Generate,
    score: Score | None = None,
    keys_text: str = "",
    lines: list[str] | None = None,
    models: ServedPolicies | None = None,
    body: BodyLimits = BODY,
    teams: Sequence[Team] = TEAMS,
    max_new_tokens: int | None = 64,
    ignore_tools: bool = True,
    root_path: str = "",
    cors_origins: tuple[str, ...] = (),
    tokenize: Callable[[str, GenerationRequest, bool], Awaitable[Tokenized | Failed]] | None = None,
    ledger: Sync | None = None,
    sampling: SamplingDefaults = OPENAI_S,
    feedback: Feedback | None = None,
    live: Live | None = None,
) -> FastAPI:
    served = models or ServedPolicies([ServedPolicy(POLICY_INFO)])
    log: list[str] = [] if lines is None else lines
    changes = Changes(served)

    backend = Backend(
        models=served,
        generate=generate,
        score=score,
        tokenize=tokenize or _words,
        swap=changes.swap,
        adapt=changes.adapt,
        remove=changes.remove,
        replicas=_replicas,
        metrics=_metrics,
        keys=Keys(teams, None, keys_text),
        limits=RequestLimits(max_new_tokens, body, max_messages=8, ignore_tools=ignore_tools, sampling=sampling),
        telemetry=Telemetry(None, True, write=log.append),
        rate_limiter=RateLimiter(Ledger(teams) if ledger is None else ledger),
        page="<!doctype html><title>page</title>",
        feedback=feedback,
        live=live,
        root_path=root_path,
        cors_origins=cors_origins,
    )
    return application(backend)


class Client:
    """The client's side of one request over ASGI."""

    def __init__(self, body: bytes, gone_after: int | None, cancelled: Exception | None):
        self.answered = Answered(0, {}, b"")
        self._gone_after, self._cancelled, self._num_pieces = gone_after, cancelled, 0
        self._gone = asyncio.Event()
        self._incoming = [
            {"type": "http.request", "body": body[:500], "more_body": True},
            {"type": "http.request", "body": body[500:], "more_body": False},
        ]
        if gone_after == 0:
            del self._incoming[1:]
            self._gone.set()

    async def receive(self) -> dict[str, Any]:
        if self._incoming:
            return self._incoming.pop(0)
        await self._gone.wait()
        if self._cancelled:
            raise self._cancelled
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.answered.status = message["status"]
            self.answered.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        self.answered.body += message.get("body", b"")
        self._num_pieces += 1
        if self._num_pieces == self._gone_after:
            self._gone.set()


async def exchanged(
    app: ASGIApp,
    method: str,
    path: str,
    body: bytes,
    gone_after: int | None = None,
    key: str | None = None,
    cancelled: Exception | None = None,
    headers: Mapping[str, str] = {},
    client_address: str = "127.0.0.1",
    server_address: str = "127.0.0.1",
    query: bytes = b"",
) -> Answered:
    """One request over ASGI; with `gone_after`, the client leaves after so many pieces of the answer.

    0 is in the middle of the client's own body. `cancelled` is what the server raises then, instead of a message.
    `headers` replaces those that are always sent; "" leaves one out.
    """
    client = Client(body, gone_after, cancelled)
    scope = scope_of(method, path, key, client_address, server_address, headers) | {"query_string": query}
    await asyncio.wait_for(app(scope, client.receive, client.send), 10)
    return client.answered


def scope_of(
    method: str,
    path: str,
    key: str | None = None,
    peer: str = "127.0.0.1",
    server: str = "127.0.0.1",
    headers: Mapping[str, str] = {},
) -> dict[str, Any]:
    sent = {"host": "127.0.0.1:8000"} | ({"content-type": "application/json"} if method == "POST" else {})
    sent |= {} if key is None else {"authorization": f"Bearer {key}"}
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(name.encode(), value.encode()) for name, value in (sent | dict(headers)).items() if value],
        "scheme": "http",
        "server": (server, 1),
        "client": (peer, 2),
        "root_path": "",
    }


def get(path: str, **of: Any) -> Answered:
    return asyncio.run(exchanged(app_around(Scripted().generate), "GET", path, b"", **of))


def chat(script: Scripted, gone_after: int | None = None, **fields: Any) -> Answered:
    body = json.dumps({"messages": [USER], **fields}).encode()
    return asyncio.run(exchanged(app_around(script.generate), "POST", "/v1/chat/completions", body, gone_after))


def refused(status: int = 400, **fields: Any) -> dict[str, Any]:
    answered = chat(Scripted(), **fields)
    assert answered.status == status
    assert set(answered.json) == {"error"}
    return answered.json["error"]


def ask(
    app: ASGIApp,
    key: str | None = None,
    path: str = "/v1/chat/completions",
    headers: Mapping[str, str] = {},
    **fields: Any,
) -> Answered:
    return asyncio.run(exchanged(app, "POST", path, json.dumps(fields).encode(), key=key, headers=headers))


@dataclass
class Counting(Scripted):
    """The i-th generation of a request writes i + 1 letters."""

    async def generate(self, model: str, request: GenerationRequest) -> AsyncGenerator[Event, None]:
        self.requests.append(request)
        length = 1 + (request.sampling.seed or 0)
        try:
            yield Started(7)
            for count in range(1, length + 1):
                yield Delta("x", count)
                await asyncio.sleep(0)
            yield Delta("", length, "stop")
        finally:
            self.num_closed += 1
