"""What outlives a crash: a swap, when ingress and replicas die; the other callers, when the predictor is stuck."""

import asyncio
import json
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray.serve
from support.adapters import base_policy, exported_adapter
from support.chat_base import chat_base
from support.endpoint import Endpoint, running
from support.policies import turned_policy
from support.replicas import MODEL, replicas, wait_for

import serve.deploy
from serve.auth import Team, hashed
from serve.deploy import APPLICATION, deployment_name
from serve.locate import Located
from serve.request import Revision
from serve.revisions import kept, wanted
from serve.settings import ScorerSettings

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.case("A8: a swap outlives the ingress and a replica")
def test_a_swap_outlives_the_ingress_and_the_replicas(
    ray_cluster: object, tiny_base: str, tiny_policy: str, tmp_path: Path
) -> None:
    new, keys = turned_policy(tiny_base, str(tmp_path / "new")), tmp_path / "keys.txt"
    keys.write_text(f"ops {hashed('key')}")
    team = Team(name="ops", admin=True)
    with running([Located(tiny_policy, MODEL)], keys=str(keys), teams=(team,)) as anonymous:
        endpoint = Endpoint(anonymous.url, "key")
        old_answer = endpoint.chat()[1]["choices"][0]["message"]
        status, answer = endpoint.post(json.dumps({"policy": new}).encode(), f"/admin/models/{MODEL}")
        assert (status, answer.get("policy")) == (200, new), answer
        new_answer = endpoint.chat()[1]["choices"][0]["message"]
        assert new_answer != old_answer
        victims = [*replicas("ingress"), *replicas()]
        assert len(victims) == 2
        for victim in victims:
            victim.kill()
        gone = {victim.pid for victim in victims}
        wait_for(lambda: len({p.pid for p in [*replicas("ingress"), *replicas()]} - gone) == 2, 60)
        wait_for(lambda: answers(anonymous, "/readyz"), 60)
        handle = ray.serve.get_deployment_handle(deployment_name(MODEL), APPLICATION)
        assert handle.info.remote().result(timeout_s=30).policy == new, "before any request says so"
        for _ in range(5):
            status, answer = endpoint.chat()
            assert (status, answer["choices"][0]["message"]) == (200, new_answer)
    assert wanted(APPLICATION, MODEL, tiny_policy) == Revision(tiny_policy, 0), "the next start begins anew"


def test_adapters_that_are_added_and_removed_outlive_the_ingress_and_the_replicas(
    ray_cluster: object, tmp_path: Path
) -> None:
    base = chat_base(str(tmp_path / "base"))
    games, school, late = (
        exported_adapter(base, tmp_path / n, seed) for seed, n in enumerate(("games", "school", "l"), start=1)
    )
    keys, team = tmp_path / "keys.txt", Team(name="ops", admin=True)
    keys.write_text(f"ops {hashed('key')}")
    question = [{"role": "user", "content": "Why?"}]
    asked = {"messages": question, "temperature": 0, "max_tokens": 12, "ignore_eos": True}
    served = Located(base_policy(games, tmp_path / "served"), MODEL, adapters={"games": games, "school": school})
    with running([served], keys=str(keys), teams=(team,)) as anonymous:
        endpoint = Endpoint(anonymous.url, "key")

        def said(model: str) -> str:
            status, answer = endpoint.chat(model=model, **asked)
            assert status == 200, answer
            return str(answer["choices"][0]["message"]["content"])

        def admin(model: str, folder: str) -> tuple[int, dict[str, Any]]:
            return endpoint.post(json.dumps({"adapter": folder}).encode(), f"/admin/models/{model}")

        before = {model: said(model) for model in (MODEL, "games", "school")}
        assert len(set(before.values())) == 3
        status, answer = admin("added", late)
        assert (status, answer.get("policy")) == (200, late), answer
        status, answer = admin("school", games)
        assert (status, answer.get("policy")) == (200, games), answer
        before |= {"added": said("added"), "school": before["games"]}
        assert said("school") == before["games"]
        status, answer = admin("added", base)
        assert (status, answer["error"]["code"]) == (409, "adapter_refused"), answer
        assert endpoint.delete("/admin/models/games")[0] == 200
        del before["games"]
        assert endpoint.chat(model="games", **asked)[0] == 404
        victims = [*replicas("ingress"), *replicas()]
        for victim in victims:
            victim.kill()
        gone = {victim.pid for victim in victims}
        wait_for(lambda: len({p.pid for p in [*replicas("ingress"), *replicas()]} - gone) == 2, 60)
        wait_for(lambda: answers(anonymous, "/readyz"), 60)
        assert {model: said(model) for model in before} == before
        assert endpoint.chat(model="games", **asked)[0] == 404
    assert kept(APPLICATION) == [], "the next start begins anew"


def answers(endpoint: Endpoint, path: str) -> bool:
    try:
        return endpoint.get(path)[0] == 200
    except OSError:
        return False


def stuck() -> type:
    """A predictor that never comes back. Made in a function, so that Ray ships it as it is."""

    class Stuck:
        def __init__(self, **settings: object):
            pass

        async def score(self, answer: object) -> dict[str, float]:
            await asyncio.sleep(3600)
            return {}

    return Stuck


@pytest.mark.case("A8: a predictor that is slow")
def test_a_predictor_that_is_stuck_holds_nobody(
    ray_cluster: object, tiny_policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve.deploy, "ScorerDeployment", ray.serve.deployment(stuck()))
    scorer = ScorerSettings(num_cpus=0.1, max_ongoing_requests=1, max_queued_requests=1, timeout_s=2)
    with running([Located(tiny_policy, MODEL)], "a predictor", scorer=scorer, max_num_seqs=8) as endpoint:
        assert endpoint.chat(max_tokens=2)[0] == 200, "who does not ask for it is served"
        started = time.monotonic()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda seed: endpoint.chat(max_tokens=2, seed=seed, score=True), range(8)))
        seconds = time.monotonic() - started
        assert {(status, answer["error"]["code"]) for status, answer in found} == {(503, "scorer_failed")}
        texts = Counter(answer["error"]["message"].partition(":")[0] for _, answer in found)
        print(f"\n8 answers for a stuck predictor with room for two: {dict(texts)}; all answered after {seconds:.1f} s")
        assert any("within 2 s" in text for text in texts)
        assert any("too many answers" in text for text in texts)
        assert seconds < 20
        chunks = list(endpoint.stream(max_tokens=2, score=True))
        assert chunks[-1]["error"]["code"] == "scorer_failed"
        assert [c for c in chunks[:-1] if c["choices"]], "the text came before"
