"""Live records: which answers have one, what is in it, and that no request waits for it or fails of it."""

import asyncio
import json
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.asgi import KEYS_TEXT, LAB, USER, Answered, Counting, Scripted, app_around, exchanged
from support.live import NOW_S, VALUES, Counted, Predictor, live_in, records
from support.manual_clock import ManualClock

from data.storage import Storage, Unwritable
from serve import live as live_module
from serve.answering import Generate
from serve.live import MOST_RATING, Live
from serve.live_store import LiveFile, LiveSettings, LiveStore
from serve.locate import locate_all
from serve.models import ServedPolicies, ServedPolicy
from serve.request import Delta, PolicyInfo, Started
from serve.settings import ServeSettings

CHAT = "/v1/chat/completions"
TWO_TOKENS = "It is."


async def sent(app: Any, fields: dict[str, Any], path: str = CHAT, key: str | None = None) -> Answered:
    body = json.dumps({"messages": [USER], **fields} if path == CHAT else fields).encode()
    return await exchanged(app, "POST", path, body, key=key)


def run(
    live: Live, predictor: Predictor, *requests: dict[str, Any], generate: Generate | None = None, path: str = CHAT
) -> list[Answered]:
    """The answers to requests, one after the other; then what waits is rated and written."""
    app = app_around(generate or Scripted().generate, predictor.score, live=live)

    async def session() -> list[Answered]:
        answered = [await sent(app, fields, path) for fields in requests]
        await live.aclose()
        return answered

    answered = asyncio.run(session())
    assert [one.status for one in answered] == [200] * len(requests), answered
    return answered


@pytest.mark.parametrize("stream", [False, True])
def test_a_rated_answer_is_recorded_without_its_text(tmp_path: Path, stream: bool) -> None:
    predictor = Predictor()
    wanted = {"attributes": {"humor": 4, "verbosity": 0.6}, "score": True, "stream": stream, "guidance": 2}
    [answered] = run(live_in(tmp_path, predictor.score), predictor, wanted)
    [record] = records(tmp_path)
    assert record.model_dump() == {
        "time": datetime.fromtimestamp(NOW_S, UTC),
        "team": "everyone",
        "model": "demo",
        "policy": "runs/demo",
        "profile": None,
        "scales": {a.name: (a.low, a.high) for a in LAB.attributes},
        "requested": {"humor": 4, "verbosity": 0.6},
        "effective": LAB.defaults() | {"humor": 4, "verbosity": 1},
        "measured": VALUES,
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "sampled": False,
        "best_of": 0,
        "guidance": 2,
    }
    assert predictor.num == 1
    [file] = tmp_path.rglob("*.jsonl")
    kept = f"{file} {file.read_text()}"
    id = answered.chunks[0]["id"] if stream else answered.json["id"]
    for never in (TWO_TOKENS, "Why", id, id.partition("-")[2]):
        assert never not in kept


@pytest.mark.parametrize("stream", [False, True])
def test_a_drawn_answer_is_rated_in_the_background_and_costs_its_caller_nothing(tmp_path: Path, stream: bool) -> None:
    predictor, counted = Predictor(), Counted()
    live = live_in(tmp_path, predictor.score, counted, share=0.6)
    [answered] = run(live, predictor, {"attributes": {"humor": 4}, "stream": stream})
    steering = answered.chunks[0]["steering"] if stream else answered.json["steering"]
    assert "measured" not in steering
    if not stream:
        assert answered.json["usage"]["total_tokens"] == 9
    [record] = records(tmp_path)
    assert (record.sampled, record.effective["humor"], record.measured) == (True, 4, VALUES)
    assert counted.observed == [dict.fromkeys(LAB.names, 0.0) | {"humor": 1.5}], "the alert rests on it"
    assert counted.dropped == []


@pytest.mark.parametrize(("draw", "fields", "num", "sampled"), [(0.7, {}, 0, []), (0.7, {"score": True}, 1, [False])])
def test_what_is_not_drawn_is_not_rated(
    tmp_path: Path, draw: float, fields: dict[str, Any], num: int, sampled: list[bool]
) -> None:
    predictor = Predictor()
    run(live_in(tmp_path, predictor.score, share=0.6, draw=lambda: draw), predictor, fields)
    assert predictor.num == num
    assert [record.sampled for record in records(tmp_path)] == sampled


def test_the_chosen_answer_of_best_of_is_recorded_with_its_own_tokens(tmp_path: Path) -> None:
    predictor = Predictor()
    live = live_in(tmp_path, predictor.score, share=1)
    run(live, predictor, {"best_of": 3, "seed": 0}, generate=Counting().generate)
    [record] = records(tmp_path)
    assert (record.best_of, record.completion_tokens, record.sampled) == (3, 1, True)
    assert predictor.num == 3, "it is rated once"


def test_of_several_choices_the_first_is_recorded(tmp_path: Path) -> None:
    predictor = Predictor()
    live = live_in(tmp_path, predictor.score, share=1)
    run(live, predictor, {"n": 3, "seed": 0}, {"n": 3, "seed": 0, "stream": True}, generate=Counting().generate)
    assert [(r.completion_tokens, r.prompt_tokens) for r in records(tmp_path)] == [(1, 7), (1, 7)]


def test_raw_prompts_and_empty_answers_have_no_record(tmp_path: Path) -> None:
    predictor = Predictor()
    live = live_in(tmp_path, predictor.score, share=1)
    run(live, predictor, {"prompt": "Why?"}, path="/v1/completions")
    empty = Scripted((Started(7), Delta("", 0, "stop")))
    run(live, predictor, {}, {"score": True}, generate=empty.generate)
    assert records(tmp_path) == []


def test_the_newer_route_and_teams_are_recorded(tmp_path: Path) -> None:
    predictor = Predictor()
    live = live_in(tmp_path, predictor.score, share=1)
    app = app_around(Scripted().generate, predictor.score, keys_text=KEYS_TEXT, live=live)

    async def session() -> None:
        await sent(app, {"input": "Why?"}, "/v1/responses", key="key-all")
        await sent(app, {}, key="key-games")
        await live.aclose()

    asyncio.run(session())
    found = [(r.team, r.profile) for r in records(tmp_path)]
    assert found == [("all", None), ("games", "gaming")]


def test_values_are_those_that_the_policy_was_labeled_with(tmp_path: Path) -> None:
    """A reply with `score` and a record in the background measure with the same calibration."""
    calibration = json.dumps({"scale": {"humor": 2.0}, "shift": {"humor": -1.0}})
    info = PolicyInfo("demo", LAB.model_dump_json(), "runs/demo", calibration, context=512)
    predictor = Predictor()
    live = live_in(tmp_path, predictor.score, share=1)
    app = app_around(Scripted().generate, predictor.score, models=ServedPolicies([ServedPolicy(info)]), live=live)

    async def session() -> Any:
        await sent(app, {})
        answered = await sent(app, {"score": True})
        await live.aclose()
        return answered.json["steering"]["measured"]

    measured = asyncio.run(session())
    assert measured["humor"] == 4.0
    assert [r.measured for r in records(tmp_path)] == [measured, measured]


def test_a_predictor_that_is_slow_or_away_costs_records_and_no_request(tmp_path: Path) -> None:
    predictor, counted = Predictor(), Counted()
    live = live_in(tmp_path, predictor.score, counted, share=1)
    app = app_around(Scripted().generate, predictor.score, live=live)

    async def session() -> None:
        predictor.go.clear()
        for _ in range(MOST_RATING + 3):
            assert (await sent(app, {})).status == 200
        assert counted.dropped == ["rating"] * 3
        predictor.go.set()
        while live._rating:
            await asyncio.sleep(0)
        predictor.fails = True
        assert (await sent(app, {})).status == 200
        await live.aclose()

    asyncio.run(session())
    assert counted.dropped == ["rating"] * 4
    assert len(records(tmp_path)) == MOST_RATING


def test_a_storage_that_is_away_costs_no_request_and_gets_each_record_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live_module, "MOST_WAITING", 3)
    predictor, counted, away = Predictor(), Counted(), True
    put = LiveStore.put

    def fails(self: LiveStore, file: LiveFile) -> None:
        put(self, file)  # the file may be there, although its writer heard of no success
        if away:
            raise Unwritable(28, "cannot write: no space left")

    monkeypatch.setattr(LiveStore, "put", fails)
    live = live_in(tmp_path, predictor.score, counted)
    app = app_around(Scripted().generate, predictor.score, live=live)

    async def session() -> None:
        nonlocal away
        for _ in range(2):
            for _ in range(2):
                assert (await sent(app, {"score": True})).status == 200
            await live.write()
        assert counted.dropped == ["writing"], "there is room for three"
        away = False
        await live.write()
        assert len(records(tmp_path)) == 2, "the file that was tried before"
        await live.write()

    asyncio.run(session())
    assert len(records(tmp_path)) == 3
    assert len(list(tmp_path.rglob("*.jsonl"))) == 2
    assert "live records were not written" in caplog.text
    assert "no space left" in caplog.text


def test_a_storage_that_hangs_holds_up_no_request_and_no_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predictor, go = Predictor(), threading.Event()
    monkeypatch.setattr(LiveStore, "put", lambda *_: go.wait(20))
    live = live_in(tmp_path, predictor.score)
    app = app_around(Scripted().generate, predictor.score, live=live)

    async def session() -> None:
        await sent(app, {"score": True})
        writing = asyncio.create_task(live.write())
        await asyncio.sleep(0)
        for _ in range(3):
            assert (await sent(app, {"score": True})).status == 200
        assert not writing.done()
        await live.aclose()
        assert not writing.done()
        go.set()
        await writing

    monkeypatch.setattr(live_module, "END_S", 0.01)
    asyncio.run(session())
    assert "4 live records are lost: live.store took longer than 0.01 s" in caplog.text


def test_what_waits_is_written_again_and_again_and_at_once_when_it_is_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor()
    live = live_in(tmp_path, predictor.score)
    app = app_around(Scripted().generate, predictor.score, live=live)

    async def until(num: int) -> None:
        async with asyncio.timeout(20):
            while len(records(tmp_path)) < num:
                await asyncio.sleep(0.005)

    async def session() -> None:
        often = asyncio.create_task(live.keep_written(every_s=0.01))
        for num in (1, 2):
            await sent(app, {"score": True})
            await until(num)
        often.cancel()
        monkeypatch.setattr(live_module, "FILE_RECORDS", 2)
        monkeypatch.setattr(live_module, "PAUSE_S", 0.0)
        seldom = asyncio.create_task(live.keep_written(every_s=3600))
        await sent(app, {"score": True})
        await asyncio.sleep(0.05)
        assert len(records(tmp_path)) == 2
        await sent(app, {"score": True})
        await until(4)
        seldom.cancel()

    asyncio.run(session())
    assert len(list(tmp_path.rglob("*.jsonl"))) == 3


DAY_S = 86_400


def test_old_files_go_and_nothing_else(tmp_path: Path) -> None:
    store, settings = LiveStore(str(tmp_path)), LiveSettings(store=str(tmp_path), retention_days=10)
    ages = (0, 9 * DAY_S, 10 * DAY_S - 1, 10 * DAY_S, 400 * DAY_S)
    kept = {age: LiveFile.of(["{}"], NOW_S - age) for age in ages}
    for file in kept.values():
        store.put(file)
    old = kept[400 * DAY_S].name
    day = old.partition("/")[0]
    foreign = ["notes.txt", f"{day}/notes.jsonl", f"{day}/{old.partition('/')[2]}.gz", f"x/{old}"]
    foreign += [kept[400 * DAY_S].name.replace(f"{day}/", "2026-01-01/"), f"{day}/99999999T999999Z-01234567.jsonl"]
    for name in foreign:
        (Storage(str(tmp_path)) / name).write_bytes(b"not ours")
    (Storage(str(tmp_path)) / f"{old}.0123abcd.tmp").write_bytes(b"half")
    assert store.sweep(settings, NOW_S) == 2
    left = set(Storage(str(tmp_path)).names())
    assert left == {*foreign, *(kept[age].name for age in ages[:3])}
    assert store.sweep(settings, NOW_S) == 0


def test_the_endpoint_removes_what_is_old_also_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ManualClock()
    clock.now = NOW_S
    live = live_in(tmp_path, Predictor().score, clock=clock, retention_days=1)
    LiveStore(str(tmp_path)).put(LiveFile.of(["{}"], NOW_S))
    sweep, tried = LiveStore.sweep, 0

    def swept(self: LiveStore, settings: LiveSettings, now_s: float) -> int:
        nonlocal tried
        tried += 1
        if tried == 1:
            raise OSError("away")
        return sweep(self, settings, now_s)

    monkeypatch.setattr(LiveStore, "sweep", swept)

    async def session() -> None:
        task = asyncio.create_task(live.keep_swept(every_s=0.005))
        async with asyncio.timeout(20):
            while tried < 4:
                await asyncio.sleep(0.005)
            assert len(list(tmp_path.rglob("*.jsonl"))) == 1
            clock.now += DAY_S
            while any(tmp_path.rglob("*.jsonl")):
                await asyncio.sleep(0.005)
        task.cancel()

    asyncio.run(session())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"live": {"share": 0.1}}, r"share is 0\.1, but store is null: set store to a folder, or share to 0"),
        ({"live": {"store": "memory://x"}}, "is gone when the process ends"),
        ({"live": {"store": "x", "share": 1.5}}, "less than or equal to 1"),
        ({"live": {"store": "x"}, "feedback": {"store": "x"}}, r"are the same folder, and a run reads .* live\.store"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ServeSettings.model_validate(settings)


def test_without_a_predictor_there_is_nothing_to_record(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / "config.json").write_text("{}")
    settings = ServeSettings.model_validate({"policy": str(tmp_path / "policy"), "live": {"store": str(tmp_path)}})
    with pytest.raises(ValueError, match=r"live\.store is set, but no attribute predictor is served .* set predictor"):
        locate_all(settings)


def test_it_is_off_unless_a_store_is_named() -> None:
    assert Live.of(LiveSettings(), Predictor().score, Counted()) is None
