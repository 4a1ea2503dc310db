"""The endpoint among crowds: bodies that stall, connections that say nothing, and requests that all come at once.

Prints what the others saw meanwhile.
"""

import json
import resource
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from support.endpoint import QUESTION, Endpoint, running

from serve.auth import Team, hashed
from serve.locate import Located

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

HUNG_S = 10.0
"""A limit that no machine is too slow for; what counts is the figure that is printed."""


@pytest.fixture
def endpoint(ray_cluster: object, tiny_policy: str) -> Iterator[Endpoint]:
    with running([Located(tiny_policy, "tiny")]) as endpoint:
        yield endpoint


class Visits:
    """How long others wait: /healthz and short answers, over and over, while `meanwhile` runs."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint, self._over = endpoint, threading.Event()
        self.health_s: list[float] = []
        self.answers: Counter[int] = Counter()

    @contextmanager
    def meanwhile(self) -> Iterator[None]:
        with ThreadPoolExecutor(2) as pool:
            visitors = [pool.submit(self._look), pool.submit(self._ask)]
            try:
                yield
            finally:
                self._over.set()
            for visitor in visitors:
                visitor.result(timeout=60)

    def _look(self) -> None:
        while not self._over.wait(0.02):
            started = time.monotonic()
            assert self._endpoint.get("/healthz")[0] == 200
            self.health_s.append(time.monotonic() - started)

    def _ask(self) -> None:
        while not self._over.is_set():
            self.answers[self._endpoint.chat(max_tokens=2)[0]] += 1

    def __str__(self) -> str:
        return f"/healthz took {max(self.health_s):.2f} s at most, {len(self.health_s)} times; {dict(self.answers)}"


def connections(
    endpoint: Endpoint, number: int, sends: bytes, stack: ExitStack, pause_s: float = 0.0
) -> list[socket.socket]:
    host, port = endpoint.url.removeprefix("http://").split(":")
    opened = []
    for _ in range(number):
        opened.append(stack.enter_context(socket.create_connection((host, int(port)), timeout=30)))
        opened[-1].sendall(sends)
        time.sleep(pause_s)
    return opened


def status_line(connection: socket.socket) -> str:
    """Of a reply that has come already."""
    try:
        return connection.recv(1000, socket.MSG_DONTWAIT)[9:12].decode()
    except BlockingIOError:
        return "none yet"


def needs_descriptors(number: int) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        pytest.skip(f"needs {number} open files, here and in Ray's proxy, and `ulimit -n` is {soft}")


@pytest.mark.parametrize("pause_s", [0.004, 0.0], ids=["one after another", "all at once"])
def test_1200_stalled_bodies_take_nobody_s_place(endpoint: Endpoint, pause_s: float) -> None:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: 1000\r\n\r\n{"
    visits = Visits(endpoint)
    needs_descriptors(4000)
    with ExitStack() as stack, visits.meanwhile():
        opened = connections(endpoint, 1200, head, stack, pause_s)
        time.sleep(10)
        replies = Counter(status_line(connection) for connection in opened)
    print(f"\n1,200 stalled bodies, {pause_s:g} s apart: {dict(replies)}; {visits}")
    assert max(visits.health_s) < HUNG_S
    assert set(visits.answers) == {200}
    assert "none yet" not in replies, "the first ones made place for the last"


def test_10000_idle_connections_take_nobody_s_place(endpoint: Endpoint) -> None:
    needs_descriptors(12_000)
    visits = Visits(endpoint)
    with ExitStack() as stack, visits.meanwhile():
        connections(endpoint, 10_000, b"", stack)
        time.sleep(10)
    print(f"\n10,000 idle connections: {visits}")
    assert max(visits.health_s) < HUNG_S
    assert set(visits.answers) == {200}


@pytest.mark.case("200 clients at once, each tries three times")
@pytest.mark.parametrize("stream", [False, True])
def test_200_clients_of_openai_with_default_retries_are_all_answered(endpoint: Endpoint, stream: bool) -> None:
    def answered(number: int) -> str:
        client = openai.OpenAI(base_url=f"{endpoint.url}/v1", api_key="none", timeout=300)
        fields: dict[str, Any] = {"messages": QUESTION, "max_tokens": 40, "seed": number, "stream": stream}
        try:
            with client:
                reply = client.chat.completions.create(model="tiny", **fields)
                return "answered" if not stream or list(reply) else "empty"
        except openai.OpenAIError as problem:
            return repr(problem)[:120]

    started = time.monotonic()
    with ThreadPoolExecutor(200) as pool:
        found = Counter(pool.map(answered, range(200)))
    print(f"\n200 clients: {dict(found)} after {time.monotonic() - started:.0f} s")
    assert found == {"answered": 200}


@pytest.mark.parametrize(
    "fields", [{"max_tokens": 20}, {"max_tokens": 20, "stream": True}, {"max_tokens": 4, "n": 8, "seed": 1}]
)
def test_500_requests_at_once_spend_no_more_than_the_budget(
    ray_cluster: object, tiny_policy: str, tmp_path: Path, fields: dict[str, Any]
) -> None:
    keys, budget = tmp_path / "keys.txt", 1000
    keys.write_text(f"games {hashed('k')}\n")
    limits: dict[str, Any] = {"teams": (Team(name="games", tokens_per_minute=budget),), "keys": str(keys)}
    with running([Located(tiny_policy, "tiny")], max_num_seqs=8, **limits) as endpoint:
        caller = Endpoint(endpoint.url, "k")
        with ThreadPoolExecutor(500) as pool:
            found = list(pool.map(lambda _: spent(caller, fields), range(500)))
    print(f"\n500 requests against {budget} tokens a minute: {sum(found)} spent by {sum(n > 0 for n in found)} of them")
    assert 0 < sum(found) <= budget


def spent(caller: Endpoint, fields: dict[str, Any]) -> int:
    """Tokens of one request's answer; 0 if it was turned away."""
    body = json.dumps({"messages": QUESTION, **fields})
    if "stream" not in fields:
        status, answer = caller.post(body.encode())
        assert status in (200, 408, 429), answer  # 408: its body looked stalled among 500; clients send it again
        return answer["usage"]["total_tokens"] if status == 200 else 0
    try:
        *_, last = caller.stream(**fields, stream_options={"include_usage": True})
    except AssertionError as refused:
        if any(code in str(refused) for code in ("rate_limit_exceeded", "body_timeout", "too_many_bodies")):
            return 0
        raise
    return last["usage"]["total_tokens"]
