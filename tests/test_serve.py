"""The real endpoint on Ray Serve with a tiny random policy: started as `python -m serve` starts it, over HTTP."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray.serve
from support.endpoint import QUESTION, Endpoint, running

from serve.deploy import APPLICATION, deployment_name
from serve.locate import Located
from serve.scrape import agents, targets_file

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def endpoint(ray_cluster: object, tiny_policy: str, tiny_predictor: str) -> Iterator[Endpoint]:
    with running([Located(tiny_policy, "tiny")], tiny_predictor) as endpoint:
        yield endpoint


def first_attribute(endpoint: Endpoint) -> dict[str, Any]:
    attribute = json.loads(endpoint.get("/v1/attributes")[1])["attributes"][0]
    assert attribute["steerable"]
    return dict(attribute)


def text_of(chunks: list[Any]) -> str:
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c["choices"])


def test_chat(endpoint: Endpoint) -> None:
    attribute = first_attribute(endpoint)
    status, answer = endpoint.chat(attributes={attribute["name"]: attribute["high"]})
    assert status == 200
    assert answer["model"] == "tiny"
    assert answer["choices"][0]["message"]["role"] == "assistant"
    assert 0 < answer["usage"]["completion_tokens"] <= 24
    assert answer["steering"]["requested"] == {attribute["name"]: attribute["high"]}
    assert answer["steering"]["effective"][attribute["name"]] == attribute["high"]
    assert endpoint.chat()[1]["steering"]["requested"] == {}


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_streamed_answer_is_the_same(endpoint: Endpoint, temperature: int) -> None:
    status, whole = endpoint.chat(temperature=temperature)
    assert status == 200
    chunks = list(endpoint.stream(temperature=temperature, stream_options={"include_usage": True}))
    assert text_of(chunks) == whole["choices"][0]["message"]["content"]
    assert temperature == 0 or len(text_of(chunks)) > 10
    assert chunks[-1]["usage"] == whole["usage"]
    assert chunks[-2]["choices"][0]["finish_reason"] == whole["choices"][0]["finish_reason"]
    assert chunks[0]["steering"] == whole["steering"]


def test_a_seed_repeats_the_answer(endpoint: Endpoint) -> None:
    once, again, other = (endpoint.chat(seed=seed)[1]["choices"] for seed in (-7, -7, 8))
    assert once == again != other


def test_a_stop_string_ends_the_answer(endpoint: Endpoint) -> None:
    whole = endpoint.chat()[1]["choices"][0]["message"]["content"]
    middle = whole[len(whole) // 2 :][:3]
    choice = endpoint.chat(stop=middle)[1]["choices"][0]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": whole[: whole.index(middle)]},
        "finish_reason": "stop",
        "logprobs": None,
    }


def test_several_turns(endpoint: Endpoint) -> None:
    attribute = first_attribute(endpoint)
    earlier = [
        *QUESTION,
        {"role": "assistant", "content": "It is round.", "attributes": {attribute["name"]: attribute["low"]}},
    ]
    status, answer = endpoint.chat(messages=[{"role": "system", "content": "Be brief."}, *earlier, *QUESTION])
    assert status == 200
    assert answer["usage"]["prompt_tokens"] > endpoint.chat()[1]["usage"]["prompt_tokens"]


def test_the_other_routes(endpoint: Endpoint) -> None:
    status, body = endpoint.get("/v1/attributes")
    assert status == 200
    assert {"model", "schema", "attributes", "profiles"} <= set(json.loads(body))
    assert endpoint.get("/healthz") == (200, b'{"status":"ok","model":"tiny"}')
    assert json.loads(endpoint.get("/v1/models")[1])["data"][0]["id"] == "tiny"
    assert [endpoint.get(path)[0] for path in ("/health", "/ping", "/version")] == [200] * 3
    status, page = endpoint.get("/")
    assert status == 200
    assert b"<title>SteerLM playground</title>" in page


def test_answers_are_rated_and_the_nearest_is_chosen(endpoint: Endpoint) -> None:
    status, scored = endpoint.chat(score=True)
    assert status == 200
    assert set(scored["steering"]["measured"]) == set(scored["steering"]["effective"])
    chunks = list(endpoint.stream(score=True))
    assert chunks[-1]["steering"]["measured"] == pytest.approx(scored["steering"]["measured"], abs=1e-3)
    status, best = endpoint.chat(best_of=4)
    candidates = best["steering"]["candidates"]
    [chosen] = [c for c in candidates if c["chosen"]]
    assert chosen["distance"] == min(c["distance"] for c in candidates)
    assert chosen["measured"] == best["steering"]["measured"]


def test_n_answers_are_those_of_the_seeds_that_follow(endpoint: Endpoint) -> None:
    choices = endpoint.chat(n=3, seed=11)[1]["choices"]
    assert [c["message"]["content"] for c in choices] == [
        endpoint.chat(seed=11 + i)[1]["choices"][0]["message"]["content"] for i in range(3)
    ]


def test_its_metrics_and_the_list_that_lets_prometheus_find_them(endpoint: Endpoint) -> None:
    endpoint.chat(max_tokens=2)
    deadline = time.monotonic() + 60  # Ray hands metrics on every ten seconds
    while b"\nray_steerlm_requests_total{" not in endpoint.get("/metrics")[1]:
        assert time.monotonic() < deadline, endpoint.get("/metrics")
        time.sleep(1)
    file = targets_file(int(endpoint.url.rpartition(":")[2]))
    if file is not None:  # else Ray's own list has them
        [group] = json.loads(file.read_text())
        assert group["targets"] == agents()


def test_it_is_ready(endpoint: Endpoint) -> None:
    assert endpoint.get("/readyz") == (200, b'{"status":"ready","replicas":{"tiny":1}}')
    assert endpoint.get("/docs")[0] == 200


def test_mistakes_are_400_and_name_the_field(endpoint: Endpoint) -> None:
    attribute = first_attribute(endpoint)
    name, high = attribute["name"], attribute["high"]
    status, answer = endpoint.chat(attributes={name: high + 1})
    assert (status, answer["error"]["param"]) == (400, f"attributes.{name}")
    assert f"{attribute['low']} to {high}" in answer["error"]["message"]
    status, answer = endpoint.chat(attributes={name + "x": 1})
    assert (status, answer["error"]["param"]) == (400, f"attributes.{name}x")
    assert f"did you mean {name!r}" in answer["error"]["message"]
    status, answer = endpoint.chat(temprature=1)
    assert (status, answer["error"]["param"]) == (400, "temprature")
    for body in b"{", b'{"messages": NaN}', b"", b"\xff":
        status, answer = endpoint.post(body)
        assert (status, answer["error"]["type"]) == (400, "invalid_request_error")
    status, answer = endpoint.chat(messages=[{"role": "user", "content": "x" * (1 << 20)}])
    assert status == 413
    status, answer = endpoint.chat(messages=[{"role": "user", "content": "moon " * 20_000}])
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_a_client_that_leaves_is_cancelled(endpoint: Endpoint) -> None:
    """24 long answers take 12 times one, two at a time, if nothing is cancelled; clients that leave take a moment."""
    policy = ray.serve.get_deployment_handle(deployment_name("tiny"), APPLICATION)
    started = time.monotonic()
    long = endpoint.chat(max_tokens=400, temperature=0)[1]
    full_s = time.monotonic() - started
    assert long["usage"]["completion_tokens"] > 100, "the answer is long enough to leave in the middle of it"
    started = time.monotonic()
    for _ in range(24):
        chunks = endpoint.stream(max_tokens=400, temperature=0)
        next(chunks)
        chunks.close()
    while policy.num_running.remote().result(timeout_s=30):
        assert time.monotonic() - started < 12 * full_s, "requests were not cancelled"
        time.sleep(0.02)
    assert time.monotonic() - started < 8 * full_s
    assert endpoint.chat()[0] == 200
