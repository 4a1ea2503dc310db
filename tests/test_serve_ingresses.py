"""Two ingresses side by side: limits hold over both and outlive processes, and both answer from the same checkpoint."""

import json
import re
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.endpoint import Endpoint, running
from support.policies import turned_policy
from support.replicas import MODEL, replicas, wait_for

from serve import scrape
from serve.auth import Team, hashed
from serve.locate import Located
from serve.settings import IngressSettings

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

BUDGET, MINUTE_S = 1000, 60
TEAMS = (
    Team(name="games", tokens_per_minute=BUDGET),
    Team(name="single", max_concurrent=1),
    Team(name="ops", admin=True),
)
COUNTER = "ray_serve_deployment_request_counter"
"""Ray's own, of each replica."""


@pytest.fixture(scope="module")
def earlier(ray_cluster: object) -> set[str]:
    """Ingresses of other tests, which Ray goes on counting after their end."""
    return took_part()


@pytest.fixture(scope="module")
def endpoint(earlier: set[str], tiny_policy: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    keys = tmp_path_factory.mktemp("keys") / "keys.txt"
    keys.write_text("".join(f"{team.name} {hashed(team.name)}\n" for team in TEAMS))
    two = IngressSettings(min_replicas=2, max_replicas=2)
    with running([Located(tiny_policy, MODEL)], keys=str(keys), teams=TEAMS, ingress=two, max_num_seqs=8) as endpoint:
        wait_for(lambda: len(replicas("ingress")) == 2, 60)
        yield endpoint


@dataclass(frozen=True)
class Asked:
    status: int
    tokens: int
    began: float
    ended: float


def ask(endpoint: Endpoint, seed: int) -> Asked:
    began = time.monotonic()
    status, answer = endpoint.chat(seed=seed, max_tokens=20)
    tokens = answer["usage"]["total_tokens"] if status == 200 else 0
    return Asked(status, tokens, began, time.monotonic())


def most_in_a_minute(asked: list[Asked]) -> int:
    """Tokens of requests that lie whole within one minute."""
    return max(
        sum(one.tokens for one in asked if one.began >= first.began and one.ended <= first.began + MINUTE_S)
        for first in asked
    )


@pytest.mark.case("limits over several ingresses: 500 requests at the same time")
def test_the_budget_holds_over_both_and_outlives_the_ledger(endpoint: Endpoint, earlier: set[str]) -> None:
    games = Endpoint(endpoint.url, "games")
    with ThreadPoolExecutor(500) as pool:
        found = list(pool.map(lambda seed: ask(games, seed), range(500)))
    one = max(asked.tokens for asked in found)
    assert {asked.status for asked in found} == {200, 429}
    assert BUDGET / 4 < most_in_a_minute(found) <= BUDGET + one
    wait_for(lambda: len(took_part() - earlier) == 2, 60)

    [ledger] = replicas("limits")
    ledger.kill()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and (found[-1].status != 429 or not replicas("limits")):
        found.append(ask(games, len(found)))
    assert found[-1].status == 429, "the next ledger knows what was used"
    with ThreadPoolExecutor(100) as pool:
        found += pool.map(lambda seed: ask(games, seed), range(100))
    statuses = Counter(asked.status for asked in found)
    print(
        f"\ntwo ingresses, a ledger killed: {dict(statuses)}; {most_in_a_minute(found)} tokens in a minute of {BUDGET}"
    )
    assert set(statuses) <= {200, 429, 503}
    assert most_in_a_minute(found) <= BUDGET + one


def took_part() -> set[str]:
    """The ingresses that have answered something, as Ray counts."""
    lines: list[str] = []
    for agent in scrape.agents():
        with urllib.request.urlopen(f"http://{agent}/metrics", timeout=10) as answer:
            lines += answer.read().decode().splitlines()
    counted = [line for line in lines if line.startswith(COUNTER) and 'deployment="ingress"' in line]
    return {found[1] for line in counted if (found := re.search(r'replica="([^"]+)"', line))}


@pytest.mark.case("counters of several ingresses")
def test_the_counters_of_both_add_up(endpoint: Endpoint, earlier: set[str]) -> None:
    ops = Endpoint(endpoint.url, "ops")
    before, ingresses = answered(ops), took_part()
    assert [ops.chat(seed=seed, max_tokens=1)[0] for seed in range(40)] == [200] * 40
    wait_for(lambda: answered(ops) >= before + 40, 60)
    assert answered(ops) == before + 40
    assert len((ingresses | took_part()) - earlier) == 2


def answered(endpoint: Endpoint) -> float:
    """Requests of its team that were answered, as the endpoint's own metrics say."""
    status, text = endpoint.get("/metrics")
    assert status == 200, text
    mine = [line for line in text.decode().splitlines() if line.startswith("ray_steerlm_requests_total{")]
    mine = [line for line in mine if f'team="{endpoint.key}"' in line and 'status="200"' in line and "/chat/" in line]
    return sum(float(line.split()[-1]) for line in mine)


def test_the_end_of_a_request_is_known_at_the_other_ingress(endpoint: Endpoint) -> None:
    single = Endpoint(endpoint.url, "single")
    assert [single.chat(seed=seed, max_tokens=4)[0] for seed in range(40)] == [200] * 40
    stream = single.stream(max_tokens=400, ignore_eos=True)
    next(stream)
    assert {single.chat(seed=seed, max_tokens=1)[0] for seed in range(4)} <= {429, 200}
    stream.close()


@pytest.mark.case("an ingress dies")
def test_what_a_dead_ingress_ran_holds_nobody(endpoint: Endpoint) -> None:
    single = Endpoint(endpoint.url, "single")
    wait_for(lambda: single.chat(max_tokens=1)[0] == 200, 30)
    victims = replicas("ingress")
    stream = single.stream(max_tokens=400, ignore_eos=True)
    next(stream)
    for victim in victims:
        victim.kill()
    stream.close()
    gone = {victim.pid for victim in victims}
    wait_for(lambda: len({process.pid for process in replicas("ingress")} - gone) == 2, 60)

    def answered() -> bool:
        try:
            return single.chat(max_tokens=1)[0] == 200
        except OSError:
            return False

    seconds = wait_for(answered, 60)
    print(f"\na team with one answer at a time is served {seconds:.1f} s after its ingress died")


@pytest.mark.case("A8: a swap over several ingresses")
def test_all_ingresses_answer_from_the_checkpoint_of_a_swap(endpoint: Endpoint, tiny_base: str, tmp_path: Path) -> None:
    operator = Endpoint(endpoint.url, "ops")
    wait_for(lambda: operator.get("/readyz")[0] == 200, 60)
    old = operator.chat()[1]["choices"][0]["message"]["content"]
    new = turned_policy(tiny_base, str(tmp_path / "new"))
    body = json.dumps({"policy": new}).encode()
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: operator.post(body, f"/admin/models/{MODEL}"), range(2)))
    assert {status for status, _ in both} <= {200, 409}
    assert 200 in {status for status, _ in both}
    for status, answer in both:
        assert status == 200 or "is being swapped already" in answer["error"]["message"]
    found = [operator.chat()[1]["choices"][0]["message"]["content"] for _ in range(20)]
    assert len(set(found)) == 1
    assert found[0] != old
    rows = {operator.get(f"/v1/models/{MODEL}")[1] for _ in range(20)}
    assert len(rows) == 1, "both have what the same replica said of it"
