"""Feedback where its storage is slow, full or broken: no answer waits for it, and no rating is lost unsaid."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from support.asgi import USER, exchanged
from support.feedback import Lost, answer_id, error_code, feedback_in, files, keyed_app, rated

from serve import feedback
from serve.answer_ids import begun_s, day_of
from serve.feedback_store import FeedbackSettings, FeedbackStore, KeptAnswer


class SlowStore(FeedbackStore):
    """Writes nothing until it is let."""

    def __init__(self, folder: Path):
        super().__init__(str(folder))
        self.may = threading.Event()

    def put_answer(self, answer: KeptAnswer) -> None:
        assert self.may.wait(30)
        super().put_answer(answer)


def slow_app(store: SlowStore, lost: Lost) -> tuple[feedback.Feedback, Any, bytes]:
    """What keeps its answers, the endpoint, and a request to it."""
    found = feedback.Feedback(store, FeedbackSettings(), lost)
    return found, keyed_app(found), json.dumps({"messages": [USER]}).encode()


def test_a_slow_storage_holds_up_one_reply_and_loses_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "KEEP_S", 0.05)
    lost, store = Lost(), SlowStore(tmp_path)
    found, app, body = slow_app(store, lost)

    async def several() -> list[str]:
        ids = []
        for _ in range(3):
            answered = await exchanged(app, "POST", "/v1/chat/completions", body, key="a")
            ids.append(answered.json["id"])
        assert files(tmp_path) == [], "the replies came first"
        store.may.set()
        while found._writing:
            await asyncio.sleep(0.01)
        return ids

    ids = asyncio.run(several())
    assert [name for id in sorted(ids) for name in files(tmp_path) if id in name] == files(tmp_path)
    assert len(files(tmp_path)) == 3
    assert lost.num == 0


def test_answers_beyond_what_may_wait_are_counted_as_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feedback, "KEEP_S", 0.05)
    monkeypatch.setattr(feedback, "MOST_WAITING", 2)
    lost, store = Lost(), SlowStore(tmp_path)
    found, app, body = slow_app(store, lost)

    async def several() -> None:
        for _ in range(3):
            assert (await exchanged(app, "POST", "/v1/chat/completions", body, key="a")).status == 200
        store.may.set()
        while found._writing:
            await asyncio.sleep(0.01)

    asyncio.run(several())
    assert (len(files(tmp_path)), lost.num) == (2, 1)


def test_a_storage_that_fails_costs_no_answer_and_takes_no_rating(tmp_path: Path) -> None:
    lost = Lost()
    app = keyed_app(feedback_in(tmp_path / "file" / "below", lost=lost))
    (tmp_path / "file").write_text("in the way")
    id = answer_id(app)
    assert lost.num == 1
    assert error_code(rated(app, "a", id, humor=1)) == (503, "feedback_failed")


def test_a_rating_that_was_not_written_is_no_200(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = keyed_app(feedback_in(tmp_path))
    id = answer_id(app)
    (tmp_path / "games" / day_of(begun_s(id))).write_text("in the way")
    assert error_code(rated(app, "a", id, humor=1)) == (503, "feedback_failed")


def test_the_log_never_has_a_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    app = keyed_app(feedback_in(tmp_path))
    id = answer_id(app)
    [file] = files(tmp_path)
    (tmp_path / file).write_text('{"choices": "It is a secret"')
    with caplog.at_level("ERROR", "ray.serve"):
        assert error_code(rated(app, "a", id, humor=1)) == (503, "feedback_failed")
    assert [record.getMessage() for record in caplog.records] == ["feedback failed: ValidationError"]
