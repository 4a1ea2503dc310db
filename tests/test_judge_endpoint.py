"""The way to the judge: when to come back, and that a told pause holds everybody."""

import email.utils
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.judge_server import Answer, Asked, serving

from data.judge_settings import JudgeSettings
from data.storage import Storage
from jobs.judge_client.endpoint import Failure, JudgeEndpoint, JudgeReply, retry_after_s
from jobs.judge_client.replies import Replies

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


def test_when_to_come_back() -> None:
    assert retry_after_s({"retry-after": "3"}) == 3
    assert retry_after_s({"retry-after-ms": "250", "retry-after": "3"}) == 0.25
    assert retry_after_s({"retry-after": email.utils.formatdate(time.time() + 100, usegmt=True)}) == pytest.approx(
        100, abs=5
    )
    assert retry_after_s({"retry-after": email.utils.formatdate(time.time() - 100, usegmt=True)}) == 0
    for nothing in ({}, {"retry-after": "soon"}, {"retry-after": "-1"}, {"retry-after": "inf"}, {"retry-after": "nan"}):
        assert retry_after_s(nothing) is None


def test_a_told_pause_holds_all_requests() -> None:
    def busy_once(asked: Asked) -> Answer:
        return Answer("busy", 429, {"Retry-After": "0.5"}) if len(judge.asked) == 1 else Answer("[[5]]")

    with serving(busy_once) as judge:
        endpoint = JudgeEndpoint(JudgeSettings(model="m", base_url=judge.url, key_variable=None), None)
        with ThreadPoolExecutor(4) as pool:
            first = pool.submit(endpoint.ask, "s", "first")
            while not endpoint._hold_until:
                time.sleep(0.01)
            others = [pool.submit(endpoint.ask, "s", f"other {n}") for n in range(3)]
            assert all(isinstance(f.result(), JudgeReply) for f in (first, *others))
        endpoint.close()
    assert all(a.at - judge.asked[0].at >= 0.5 for a in judge.asked[1:])


def test_a_slow_judge_is_a_timeout_and_an_empty_reply_is_a_reply() -> None:
    slow = {
        "slow": Answer("[[5]]", slow_s=1.0),
        "none": Answer(body=b'{"choices": []}'),
        "html": Answer(body=b"<html>", headers={"Content-Type": "text/html"}),
    }
    with serving(lambda asked: slow.get(asked.prompt.split("\n")[1], Answer(""))) as judge:
        endpoint = JudgeEndpoint(
            JudgeSettings(model="m", base_url=judge.url, key_variable=None, timeout_s=0.3, max_retries=0), None
        )
        found = {what: endpoint.ask("s", what) for what in ("slow", "none", "html", "silent")}
        endpoint.close()
    assert [f.reason for f in found.values() if isinstance(f, Failure)] == ["timeout", "garbled body", "garbled body"]
    assert found["silent"] == JudgeReply("", "stop", 100, 10, 0)


def test_replies_are_found_again_and_a_failure_never_hides_a_reply(tmp_path: Path) -> None:
    folder = Storage(str(tmp_path / "replies"))
    replies = Replies(folder)
    replies.keep("one", "j", Failure("timeout", "", False, 3))
    replies.keep("two", "j", Failure("400", "too long", True, 0))
    for n in range(150):
        replies.keep(f"more {n}", "j", JudgeReply("[[5]]", "stop", 1, 2, 0))
    assert len(folder.names(".jsonl")) == 3
    again = Replies(folder)
    assert len(again) == 152
    assert (again.answered("one"), again.answered("two"), again.answered("more 7"), again.answered("nothing")) == (
        False,
        True,
        True,
        False,
    )
    again.keep("one", "j", JudgeReply("[[9]]", "stop", None, None, 1))
    again.keep("one", "j", Failure("timeout", "", False, 3))
    found = Replies(folder).get("one")
    assert found is not None
    assert found["reply"] == "[[9]]"
