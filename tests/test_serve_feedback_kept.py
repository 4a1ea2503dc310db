"""Feedback of three keys on Ray Serve: what was answered with 200 outlives kill -9 of the ingresses and a restart."""

import contextlib
import json
import time
from pathlib import Path

import pytest
from support.endpoint import QUESTION, Endpoint, running
from support.feedback import files, human, rows
from support.replicas import MODEL, replicas, wait_for

from data.conversation import Conversation
from serve.auth import Team, hashed
from serve.feedback_store import FeedbackSettings
from serve.locate import Located
from serve.settings import IngressSettings

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

TEAMS = (Team(name="games", feedback=True), Team(name="school", feedback=True), Team(name="silent"))
KEYS = {"a": "games", "b": "games", "c": "school"}
"""Of those who rate."""


def rated(endpoint: Endpoint, id: str, **attributes: float) -> int:
    """The status of a rating, sent again while no ingress answers, as a client does."""
    body, deadline = json.dumps({"id": id, "attributes": attributes}).encode(), time.monotonic() + 60
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError):  # no connection, or what Ray says without an ingress
            status, _ = endpoint.post(body, "/v1/feedback")
            if status < 500:
                return status
        time.sleep(0.2)
    raise AssertionError("the endpoint did not come back")


def killed(ingresses: int) -> None:
    """All ingresses, as kill -9 does; others come."""
    victims = replicas("ingress")
    assert len(victims) == ingresses
    for victim in victims:
        victim.kill()
    gone = {victim.pid for victim in victims}
    wait_for(lambda: len({process.pid for process in replicas("ingress")} - gone) == ingresses, 60)


@pytest.mark.case("feedback: posted by three keys, kill -9 between")
def test_feedback_outlives_the_endpoint(ray_cluster: object, tiny_policy: str, tmp_path: Path) -> None:
    keys, store = tmp_path / "keys.txt", tmp_path / "store"
    lines = [f"{team} {hashed(key)}" for key, team in [*KEYS.items(), ("d", "silent")]]
    keys.write_text("\n".join(lines))
    settings = {
        "keys": str(keys),
        "teams": TEAMS,
        "feedback": FeedbackSettings(store=str(store)),
        "ingress": IngressSettings(min_replicas=2, max_replicas=2),
    }
    ids: dict[str, str] = {}
    with running([Located(tiny_policy, MODEL)], **settings) as anonymous:
        callers = {key: Endpoint(anonymous.url, key) for key in (*KEYS, "d")}
        wait_for(lambda: len(replicas("ingress")) == 2, 60)
        for number, (key, caller) in enumerate(callers.items()):
            messages = [{"role": "user", "content": f"{QUESTION[0]['content']} {number}"}]
            status, reply = caller.chat(messages=messages, max_tokens=8)
            assert status == 200
            ids[key] = reply["id"]
        assert rated(callers["d"], ids["d"], humor=1) == 403
        assert rated(callers["a"], ids["a"], humor=1, verbosity=2.5) == 200
        killed(2)
        for _ in range(2):  # the second time replaces the first
            assert rated(callers["b"], ids["b"], humor=2) == 200
        assert rated(callers["c"], ids["a"], humor=1) == 404, "of another team"
    with running([Located(tiny_policy, MODEL)], **settings) as anonymous:
        callers = {key: Endpoint(anonymous.url, key) for key in KEYS}
        assert rated(callers["c"], ids["c"], humor=3) == 200, "its text is from before the restart"
        killed(2)
        found = [row for row in rows(store) if isinstance(row, Conversation)]
        assert {row.messages[0].content.split()[-1] for row in found} == {"0", "1", "2"}
        assert len(found) == len(rows(store)) == 3
        assert sorted(human(store), key=str) == [[{"humor": 1.0, "verbosity": 2.5}], [{"humor": 2.0}], [{"humor": 3.0}]]
        assert rated(callers["c"], ids["c"], humor=3) == 200, "the endpoint is back"
        assert callers["c"].delete(f"/v1/feedback/{ids['c']}")[0] == 200
        assert not [name for name in files(store) if name.startswith("school/")]
        assert callers["a"].delete("/v1/feedback")[0] == 200
        assert files(store) == [], "nothing was kept of the team without the right"
