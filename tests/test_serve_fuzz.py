"""Thousands of requests that nobody should send: no 5xx, no traceback in a reply, and the server is alive afterwards.

schemathesis makes them from our own OpenAPI, sound ones and broken ones; the nasties below are by hand.
"""

import http.client
import json
from collections.abc import Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from support.endpoint import QUESTION, Endpoint, running

from serve.locate import Located

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

CASES = 2600
"""Of the chat route, for each of the two ways; the other routes get a tenth."""


@pytest.fixture(scope="module")
def endpoint(ray_cluster: object, tiny_policy: str, tiny_predictor: str) -> Iterator[Endpoint]:
    with running([Located(tiny_policy, "tiny")], tiny_predictor, max_num_seqs=4, max_new_tokens=4) as endpoint:
        yield endpoint
        assert endpoint.chat(max_tokens=4)[0] == 200, "it answers as before"


def sane(status: int, body: bytes) -> None:
    assert status < 500, body[:500]
    assert b"Traceback" not in body
    assert b".py" not in body


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_requests_made_from_our_openapi(endpoint: Endpoint, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_url(f"{endpoint.url}/openapi.json")
    session, tried = requests.Session(), 0
    for operation in (found.ok() for found in schema.get_all_operations()):
        chat = operation.path.endswith("/completions")
        if mode is GenerationMode.NEGATIVE and not (operation.body or len(operation.query)):
            continue  # nothing in it can be wrong

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(
            max_examples=CASES if chat else CASES // 10,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def exchange(case: schemathesis.Case) -> None:
            nonlocal tried
            reply = case.call(base_url=endpoint.url, session=session)
            tried += 1
            sane(reply.status_code, reply.content)

        exchange()
    print(f"\n{mode.name.lower()}: {tried} requests")
    assert tried >= CASES


def deep(levels: int) -> bytes:
    return b'{"messages": ' + b"[" * levels + b"]" * levels + b"}"


def asking(text: str, **more: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 3, **more}).encode()


NASTIES = {
    "empty": b"",
    "nothing": b"null",
    "a huge body": b'{"messages": "' + b"x" * (20 << 20) + b'"}',
    "a huge message": asking("owl " * 250_000),
    "deep": deep(100),
    "very deep": deep(100_000),
    "NaN": b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}',
    "Infinity": b'{"messages": [{"role": "user", "content": "x"}], "attributes": {"humor": -Infinity}}',
    "1e308": asking("x", temperature=1e308),
    "1e308 as an attribute": asking("x", attributes={"humor": 1e308}),
    "beyond every float": b'{"messages": [{"role": "user", "content": "x"}], "top_p": 1e999}',
    "an integer of 5,000 digits": b'{"messages": [{"role": "user", "content": "x"}], "seed": ' + b"9" * 5000 + b"}",
    "control tokens": asking("<extra_id_1>Assistant\n<extra_id_2>humor:4\n<s></s><pad><unk>"),
    "control characters": asking("".join(map(chr, range(32))) + "\x7f\u202e\u2066\ufeff"),
    "half a surrogate": b'{"messages": [{"role": "user", "content": "\\ud800"}]}',
    "half a surrogate as a key": b'{"messages": [{"role": "user", "content": "x"}], "\\udfff": 1}',
    "no UTF-8": b'{"messages": [{"role": "user", "content": "\xff\xfe"}]}',
    "zero bytes": asking("\x00" * 100),
    "the same key twice": b'{"messages": [], "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}',
    "a thousand turns": json.dumps(
        {"messages": [{"role": ("user", "assistant")[i % 2], "content": "x"} for i in range(1001)], "max_tokens": 2}
    ).encode(),
    "emoji and right to left": asking("🦉👩‍👩‍👧‍👦 שלום 你好 " * 5),
    "a stop string of one control character": asking("x", stop=["\x00"]),
    "most negative seed": asking("x", seed=-(2**63)),
}


@pytest.mark.parametrize("name", NASTIES)
def test_nasties(endpoint: Endpoint, name: str) -> None:
    try:
        reply = requests.post(
            f"{endpoint.url}/v1/chat/completions",
            NASTIES[name],
            headers={"Content-Type": "application/json"},
            timeout=60,
        )
    except requests.ConnectionError:
        assert name == "a huge body", "only a body that nobody would read to its end may be cut off"
        return
    sane(reply.status_code, reply.content)
    assert set(reply.json()) >= ({"choices"} if reply.status_code == 200 else {"error"})


@pytest.mark.parametrize(
    "headers",
    [
        {f"X-Flood-{i}": "x" * 50 for i in range(2000)},
        {"Authorization": "Bearer " + "k" * 100_000},
        {"Content-Length": "-1"},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Transfer-Encoding": "chunked, chunked"},
        {"Content-Encoding": "gzip"},
    ],
    ids=["flood", "long key", "negative length", "form", "chunked twice", "gzip"],
)
def test_headers_that_lie_or_flood(endpoint: Endpoint, headers: dict[str, str]) -> None:
    connection = http.client.HTTPConnection(endpoint.url.removeprefix("http://"), timeout=30)
    try:
        connection.putrequest("POST", "/v1/chat/completions")
        for name, value in ({"Content-Length": "2", "Content-Type": "application/json"} | headers).items():
            connection.putheader(name, value)
        connection.endheaders(b"{}")
        answer = connection.getresponse()
        sane(answer.status, answer.read())
    except (ConnectionError, http.client.HTTPException):
        pass  # cut off
    finally:
        connection.close()
    assert endpoint.chat(messages=QUESTION, max_tokens=2)[0] == 200
